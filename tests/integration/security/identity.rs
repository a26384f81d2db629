//! Rights that a job has: whose they are.

use pg_background_mgr_tests::{case, literal, Db, Reply, Session};

/// Reads as `session user|current user|role`.
pub const WHO: &str = "select session_user::text, current_user::text, current_setting('role')";

/// Statements by which a job could try to become somebody else. `{target}`: a role that the launcher was not.
const ESCAPES: [&str; 14] = [
    "reset role",
    "set role none",
    "set local role none",
    "set role {target}",
    "set local role {target}",
    "select set_config('role', '{target}', false)",
    "reset session authorization",
    "set session authorization default",
    "set session authorization {target}",
    "set local session authorization {target}",
    "reset all",
    "begin; set local role none; rollback",
    "begin; set local role none; commit",
    "do $$ begin execute 'set role {target}'; exception when others then execute 'set role none'; end $$",
];

/// The rows and the error of `sql`, launched by `launcher`: an expression with `$1` in place of the text. The result
/// of a definer's job is read with the rights of the definer.
pub fn ask_job(session: &mut Session, launcher: &str, sql: &str) -> Reply {
    let pid = session.value(&format!("select {}", launcher.replace("$1", &literal(sql))));
    match launcher.strip_prefix("launch_").and_then(|rest| rest.strip_suffix("($1)")) {
        Some(how) => session.ask(&format!("select * from read_{how}({pid})")),
        None => session.ask(&format!("select * from pg_background_result({pid}) as (a text, b text, c text)")),
    }
}

#[track_caller]
fn who(session: &mut Session, launcher: &str) -> String {
    let reply = ask_job(session, launcher, WHO);
    match reply.last_rows() {
        Some(rows) if reply.error.is_none() => rows.text_rows().concat(),
        _ => panic!("{:?}", reply.error),
    }
}

/// Asserts that a job stays within the roles `allowed`, whatever its text tries; `targets` are roles that it must not
/// become.
#[track_caller]
fn assert_confined(session: &mut Session, launcher: &str, allowed: &[&str], targets: &[&str]) {
    for target in targets {
        for escape in ESCAPES {
            let text = format!("{}; {WHO}", escape.replace("{target}", target));
            let reply = ask_job(session, launcher, &text);
            if let Some(error) = reply.error {
                assert_eq!(error.sqlstate(), "42501", "{text}: {error}");
                continue;
            }
            let rows = reply.last_rows().expect("a row").text_rows();
            for name in rows.concat().split('|').take(2) {
                assert!(allowed.contains(&name), "{text}\n  gave {rows:?}, allowed: {allowed:?}");
            }
        }
    }
}

pub const PLAIN: &str = "pg_background_launch($1)";

/// A function that reads a result with the rights of `owner`.
fn reader(db: &Db, name: &str, owner: &str) {
    db.session().run(&format!(
        "create function {name}(int) returns table (a text, b text, c text) language sql security definer as \
         'select * from public.pg_background_result($1) as (a text, b text, c text)'; \
         alter function {name} owner to {owner}"
    ));
}

/// A function that launches its argument with the rights of `owner`; as a launcher for [`ask_job`]. Another one reads
/// the result.
pub fn definer(db: &Db, owner: &str) -> String {
    db.session().run(&format!(
        "create function launch_as_{owner}(text) returns int language plpgsql security definer as \
         $$ begin return pg_background_launch($1); end $$; alter function launch_as_{owner} owner to {owner}"
    ));
    reader(db, &format!("read_as_{owner}"), owner);
    format!("launch_as_{owner}($1)")
}

#[case]
fn a_job_of_a_plain_session_is_its_users(db: &Db) {
    let (user, other) = (db.role("user", "login"), db.role("other", "login"));
    let mut session = db.client().user(&user).connect();
    assert_eq!(who(&mut session, PLAIN), format!("{user}|{user}|none"));
    assert_confined(&mut session, PLAIN, &[&user], &["postgres", &other]);
    assert_eq!(who(&mut db.session(), PLAIN), "postgres|postgres|none");
}

#[case]
fn set_role_is_the_jobs(db: &Db) {
    let (user, group, other) = (db.role("user", "login"), db.role("group", "login"), db.role("other", "login"));
    db.session().run(&format!("grant {group} to {user}"));
    let mut session = db.client().user(&user).connect();
    session.run(&format!("set role {group}"));
    assert_eq!(who(&mut session, PLAIN), format!("{user}|{group}|{group}"));
    assert_confined(&mut session, PLAIN, &[&user, &group], &["postgres", &other]);
    session.run("reset role");
    assert_eq!(who(&mut session, PLAIN), format!("{user}|{user}|none"));
}

#[case]
fn set_local_role_is_the_jobs(db: &Db) {
    let (user, group) = (db.role("user", "login"), db.role("group", "login"));
    db.session().run(&format!("grant {group} to {user}"));
    let mut session = db.client().user(&user).connect();
    session.run(&format!("begin; set local role {group}"));
    assert_eq!(who(&mut session, PLAIN), format!("{user}|{group}|{group}"));
    session.run("rollback");
    assert_eq!(who(&mut session, PLAIN), format!("{user}|{user}|none"));
}

/// `ALTER ROLE … SET role` holds for a worker's login as well.
#[case]
fn a_role_that_is_set_at_login_is_not_a_job_that_has_none(db: &Db) {
    let (user, group, caller) = (db.role("user", "login noinherit"), db.role("group", ""), db.role("caller", "login"));
    db.session().run(&format!("grant {group} to {user}; alter role {user} set role = {group}"));
    let mut session = db.client().user(&user).connect();
    for _ in 0..2 {
        assert_eq!(who(&mut session, PLAIN), format!("{user}|{group}|{group}"));
        session.run("set role none");
        assert_eq!(who(&mut session, PLAIN), format!("{user}|{user}|none"));
        session.run("reset role");
    }
    let launcher = definer(db, &user);
    let mut session = db.client().user(&caller).connect();
    assert_eq!(who(&mut session, &launcher), format!("{user}|{user}|none"));
}

#[case]
fn set_role_of_a_superuser_is_the_jobs(db: &Db) {
    let weak = db.role("weak", "login");
    let mut session = db.session();
    session.run(&format!("create table secret (a int); set role {weak}"));
    assert_eq!(who(&mut session, PLAIN), format!("postgres|{weak}|{weak}"));
    assert_eq!(session.job_error("table secret").sqlstate(), "42501");
    assert_eq!(session.job_error("create role nobody").sqlstate(), "42501");
    // As in the session itself, which can go back too.
    assert_eq!(session.job("reset role; table secret", "a int"), [""; 0]);
}

#[case]
fn a_group_that_cannot_log_in_can_be_the_role(db: &Db) {
    let (user, group) = (db.role("user", "login"), db.role("group", "nologin"));
    db.session().run(&format!("grant {group} to {user}"));
    let mut session = db.client().user(&user).connect();
    session.run(&format!("set role {group}"));
    assert_eq!(who(&mut session, PLAIN), format!("{user}|{group}|{group}"));
}

#[case]
fn a_role_that_the_session_may_not_set_any_more_is_refused(db: &Db) {
    let (user, group) = (db.role("user", "login"), db.role("group", "nologin"));
    db.session().run(&format!("grant {group} to {user}"));
    let mut session = db.client().user(&user).connect();
    session.run(&format!("set role {group}"));
    db.session().run(&format!("revoke {group} from {user}"));
    let error = session.job_error(WHO);
    assert_eq!(error.brief(), ("42501".to_owned(), format!("permission denied to set role \"{group}\"")));
}

/// The job does not run as the login role instead: what the caller must not do, its job must not do either.
#[case]
fn a_role_dropped_while_it_is_set_is_refused(db: &Db) {
    let user = db.role("user", "login");
    let group = format!("{}_group", db.name);
    let mut admin = db.session();
    admin.run(&format!(
        "create role {group}; grant {group} to {user}; \
         grant execute on all functions in schema public to public; \
         create table secret (a int); alter table secret owner to {user}"
    ));
    let mut session = db.client().user(&user).connect();
    session.run(&format!("set role {group}"));
    admin.run(&format!("drop role {group}"));
    assert_eq!(session.error("table secret").sqlstate(), "42501");
    let reply = session.ask("select pg_background_launch('table secret')");
    let error = match &reply.error {
        Some(error) => error.clone(),
        None => {
            let pid = reply.last_rows().expect("a row").text_rows().concat();
            session.result_error(pid.parse().expect("a process id"))
        }
    };
    assert!(["22023", "42704", "28000", "42501"].contains(&error.sqlstate().as_str()), "{error}");
}

#[case]
fn set_session_authorization_is_the_jobs(db: &Db) {
    let (weak, group) = (db.role("weak", "login"), db.role("group", "login"));
    db.session().run(&format!("grant {group} to {weak}"));
    let mut session = db.session();
    session.run(&format!("set session authorization {weak}"));
    assert_eq!(who(&mut session, PLAIN), format!("{weak}|{weak}|none"));
    assert_confined(&mut session, PLAIN, &[&weak, &group], &["postgres"]);
    session.run(&format!("set role {group}"));
    assert_eq!(who(&mut session, PLAIN), format!("{weak}|{group}|{group}"));
    assert_confined(&mut session, PLAIN, &[&weak, &group], &["postgres"]);
    session.run("reset session authorization");
    assert_eq!(who(&mut session, PLAIN), "postgres|postgres|none");
}

#[case]
fn a_security_definer_function_of_a_superuser_launches_as_the_superuser(db: &Db) {
    let user = db.role("user", "login");
    let launcher = definer(db, "postgres");
    let mut session = db.client().user(&user).connect();
    assert_eq!(who(&mut session, &launcher), "postgres|postgres|none");
    // What the caller launches itself stays its own, before and after.
    assert_eq!(who(&mut session, PLAIN), format!("{user}|{user}|none"));
    let pid = session.number("select launch_as_postgres('create table made (a int); select 1, 2, 3')");
    assert_eq!(session.rows(&format!("select * from read_as_postgres({pid})")), ["1|2|3"]);
    assert_eq!(db.session().value("select tableowner from pg_tables where tablename = 'made'"), "postgres");
}

#[case]
fn a_security_definer_function_of_a_weaker_role_launches_as_that_role(db: &Db) {
    let (weak, user) = (db.role("weak", "login"), db.role("user", "login"));
    let launcher = definer(db, &weak);
    let mut session = db.session();
    assert_eq!(who(&mut session, &launcher), format!("{weak}|{weak}|none"));
    assert_confined(&mut session, &launcher, &[&weak], &["postgres", &user]);
    let mut session = db.client().user(&user).connect();
    assert_eq!(who(&mut session, &launcher), format!("{weak}|{weak}|none"));
    assert_confined(&mut session, &launcher, &[&weak], &["postgres", &user]);
}

#[case]
fn a_security_definer_function_counts_for_more_than_set_role(db: &Db) {
    let (weak, other) = (db.role("weak", "login"), db.role("other", "login"));
    let launcher = definer(db, &weak);
    let mut session = db.session();
    session.run(&format!("set role {other}"));
    assert_eq!(who(&mut session, &launcher), format!("{weak}|{weak}|none"));
    assert_confined(&mut session, &launcher, &[&weak], &["postgres", &other]);
}

#[case]
fn a_security_definer_function_of_the_role_that_is_set_hides_the_session_user(db: &Db) {
    let weak = db.role("weak", "login");
    let launcher = definer(db, &weak);
    let mut session = db.session();
    session.run(&format!("set role {weak}"));
    assert_eq!(who(&mut session, &launcher), format!("{weak}|{weak}|none"));
    assert_confined(&mut session, &launcher, &[&weak], &["postgres"]);
}

#[case]
fn nested_security_definer_functions_launch_each_as_its_owner(db: &Db) {
    let (outer, inner) = (db.role("outer", "login"), db.role("inner", "login"));
    definer(db, &inner);
    db.session().run(&format!(
        "create function nested(text) returns int[] language plpgsql security definer as $$ \
         declare first int := pg_background_launch($1); second int := launch_as_{inner}($1); \
         begin return array[first, second, pg_background_launch($1)]; end $$; \
         alter function nested owner to {outer}"
    ));
    let mut session = db.session();
    let pids = session.value(&format!("select array_to_string(nested({}), ' ')", literal(WHO)));
    let users: Vec<String> = pids
        .split(' ')
        .map(|pid| session.result(pid.parse().expect("a process id"), "a text, b text, c text").concat())
        .collect();
    let expected = [&outer, &inner, &outer].map(|name| format!("{name}|{name}|none"));
    assert_eq!(users, expected);
    assert_confined(&mut session, "(nested($1))[1]", &[&outer], &["postgres", &inner]);
    assert_confined(&mut session, "(nested($1))[2]", &[&inner], &["postgres", &outer]);
    assert_confined(&mut session, "(nested($1))[3]", &[&outer], &["postgres", &inner]);
}

#[case]
fn an_invokers_function_inside_a_definers_launches_as_the_definer(db: &Db) {
    let weak = db.role("weak", "login");
    db.session().run(&format!(
        "create function plain(text) returns int language plpgsql as $$ begin return pg_background_launch($1); end $$; \
         create function wrapped(text) returns int language sql security definer as 'select plain($1)'; \
         alter function wrapped owner to {weak}"
    ));
    let mut session = db.session();
    assert_eq!(who(&mut session, "wrapped($1)"), format!("{weak}|{weak}|none"));
    assert_confined(&mut session, "wrapped($1)", &[&weak], &["postgres"]);
    assert_eq!(who(&mut session, "plain($1)"), "postgres|postgres|none");
}

#[case]
fn a_security_definer_trigger_launches_as_its_owner(db: &Db) {
    let weak = db.role("weak", "login");
    let mut session = db.session();
    session.run(&format!(
        "create table t (sql text, pid int); \
         create function launch_row() returns trigger language plpgsql security definer as \
         $$ begin new.pid := pg_background_launch(new.sql); return new; end $$; \
         alter function launch_row owner to {weak}; \
         create trigger launch before insert on t for each row execute function launch_row(); \
         insert into t values ({})",
        literal(WHO)
    ));
    let pid = session.value("select pid from t");
    assert_eq!(
        session.result(pid.parse().expect("a process id"), "a text, b text, c text"),
        [format!("{weak}|{weak}|none")]
    );
}

#[case]
fn a_job_of_a_job_has_its_identity(db: &Db) {
    let (weak, group) = (db.role("weak", "login"), db.role("group", "login"));
    db.session().run(&format!("grant {group} to {weak}"));
    let launcher = definer(db, &weak);
    let inside = |text: &str| {
        format!(
            "select * from pg_background_result(pg_background_launch({})) as (a text, b text, c text)",
            literal(text)
        )
    };
    let mut session = db.session();
    let reply = ask_job(&mut session, &launcher, &inside(WHO));
    assert_eq!(reply.last_rows().expect("a row").text_rows(), [format!("{weak}|{weak}|none")]);
    for escape in ["reset role", "set role postgres", "set session authorization postgres"] {
        let text = inside(&format!("{escape}; {WHO}"));
        let reply = ask_job(&mut session, &launcher, &text);
        match reply.error {
            Some(error) => assert_eq!(error.sqlstate(), "42501", "{text}"),
            None => assert_eq!(reply.last_rows().expect("a row").text_rows(), [format!("{weak}|{weak}|none")]),
        }
    }
    let mut session = db.client().user(&weak).connect();
    session.run(&format!("set role {group}"));
    let reply = ask_job(&mut session, PLAIN, &inside(&inside(WHO)));
    assert_eq!(reply.last_rows().expect("a row").text_rows(), [format!("{weak}|{group}|{group}")]);
}

/// Notes who it is, across commits and rollbacks.
const WANDERER: &str = "create table seen (place int, a text, b text); grant insert on seen to public; \
    create procedure note(int) language sql as 'insert into seen values ($1, session_user, current_user)'; \
    create procedure wander() language plpgsql as $$ begin \
    call note(1); commit; call note(2); rollback; call note(3); commit; \
    begin perform 1 / 0; exception when division_by_zero then call note(4); end; commit; \
    call note(5); commit; rollback; call note(6); end $$";

const SEEN: &str = "select string_agg(place || ' ' || a || ' ' || b, ', ' order by place) from seen";

fn seen(session_user: &str, current_user: &str) -> String {
    let notes: Vec<String> =
        [1, 3, 4, 5, 6].iter().map(|place| format!("{place} {session_user} {current_user}")).collect();
    notes.join(", ")
}

#[case]
fn a_procedure_that_commits_and_rolls_back_keeps_the_jobs_identity(db: &Db) {
    let (weak, group) = (db.role("weak", "login"), db.role("group", "login"));
    let launcher = definer(db, &weak);
    let mut session = db.session();
    session.run(WANDERER);
    session.run(&format!("grant {group} to {weak}"));
    let run = |session: &mut Session, launcher: &str| {
        let pid = session.number(&format!("select {}", launcher.replace("$1", "'call wander()'")));
        assert_eq!(session.result(i32::try_from(pid).expect("a process id"), "tag text"), ["CALL"]);
    };
    run(&mut session, &launcher);
    assert_eq!(session.value(SEEN), seen(&weak, &weak));
    session.run("delete from seen");
    let mut other = db.client().user(&weak).connect();
    other.run(&format!("set role {group}"));
    run(&mut other, PLAIN);
    assert_eq!(session.value(SEEN), seen(&weak, &group));
    session.run("delete from seen");
    other.run("reset role");
    run(&mut other, PLAIN);
    assert_eq!(session.value(SEEN), seen(&weak, &weak));
    // The same text in blocks of its own.
    for text in ["begin; rollback", "begin; commit", "begin; savepoint s; rollback to s; commit"] {
        let reply = ask_job(&mut session, &launcher, &format!("{text}; {WHO}"));
        assert_eq!(reply.last_rows().expect("a row").text_rows(), [format!("{weak}|{weak}|none")], "{text}");
    }
}

#[case]
fn a_caught_error_keeps_the_jobs_identity(db: &Db) {
    let weak = db.role("weak", "login");
    let launcher = definer(db, &weak);
    let mut session = db.session();
    let strong = db.role("strong", "login");
    session.run(&format!(
        "create function broken() returns void language plpgsql security definer as \
         $$ begin perform 1 / 0; end $$; alter function broken owner to {strong}"
    ));
    let text = format!("do $$ begin perform broken(); exception when division_by_zero then null; end $$; {WHO}");
    let reply = ask_job(&mut session, &launcher, &text);
    assert_eq!(reply.last_rows().expect("a row").text_rows(), [format!("{weak}|{weak}|none")]);
}

#[case]
fn a_launch_after_a_rollback_in_a_procedure_has_the_role_in_effect(db: &Db) {
    let (user, group) = (db.role("user", "login"), db.role("group", "login"));
    let mut admin = db.session();
    admin.run(&format!(
        "grant {group} to {user}; create table pids (place int, pid int); grant all on pids to public; \
         create procedure launching() language plpgsql as $$ begin \
         insert into pids values (1, pg_background_launch({who})); commit; \
         insert into pids values (2, pg_background_launch({who})); commit; rollback; \
         insert into pids values (3, pg_background_launch({who})); commit; \
         set local role {group}; insert into pids values (4, pg_background_launch({who})); commit; \
         insert into pids values (5, pg_background_launch({who})); end $$",
        who = literal(WHO)
    ));
    let mut session = db.client().user(&user).connect();
    let mut identities = |session: &mut Session| -> Vec<String> {
        let pids = admin.rows("select pid from pids order by place");
        admin.run("delete from pids");
        // Jobs of the group among them, whose rights the user has.
        let mut read = |pid: &String| session.result(pid.parse().expect("a process id"), "a text, b text, c text");
        pids.iter().map(|pid| read(pid).concat()).collect()
    };
    let plain = format!("{user}|{user}|none");
    let as_group = format!("{user}|{group}|{group}");
    session.run("call launching()");
    assert_eq!(identities(&mut session), [&*plain, &plain, &plain, &as_group, &plain]);
    session.run(&format!("set role {group}"));
    session.run("call launching()");
    session.run("reset role");
    assert_eq!(identities(&mut session), [as_group.as_str(); 5]);
}

#[case]
fn the_objects_of_a_job_belong_to_its_role(db: &Db) {
    let (user, group) = (db.role("user", "login"), db.role("group", "nologin"));
    let mut admin = db.session();
    admin.run(&format!("grant {group} to {user}; grant create on schema public to public"));
    let mut session = db.client().user(&user).connect();
    session.job("create table mine (a int)", "tag text");
    session.run(&format!("set role {group}"));
    session.job("create table ours (a int)", "tag text");
    assert_eq!(
        admin.rows("select tablename, tableowner from pg_tables where schemaname = 'public' order by 1"),
        [format!("mine|{user}"), format!("ours|{group}")]
    );
}

#[case]
fn row_security_holds_for_a_job(db: &Db) {
    let (user, other) = (db.role("user", "login"), db.role("other", "login"));
    db.session().run(&format!(
        "create table t (owner text, a int); insert into t values ('{user}', 1), ('{other}', 2); \
         grant select on t to public; alter table t enable row level security; \
         create policy own on t using (owner = current_user)"
    ));
    for (role, expected) in [(&user, "1"), (&other, "2")] {
        let mut session = db.client().user(role).connect();
        assert_eq!(session.job("select a from t", "a int"), [expected]);
    }
    let launcher = definer(db, &other);
    let mut session = db.client().user(&user).connect();
    let reply = ask_job(&mut session, &launcher, "select owner, '', '' from t");
    assert_eq!(reply.last_rows().expect("a row").text_rows(), [format!("{other}||")]);
}

/// The job sees them as the function does; it cannot change them, for its role could not.
#[case]
fn settings_of_a_superuser_hold_in_a_weaker_definers_job(db: &Db) {
    let weak = db.role("weak", "login");
    let launcher = definer(db, &weak);
    let mut session = db.session();
    session.run("set session_replication_role = replica; set log_min_duration_statement = '1h'; set my.own = 'x'");
    let text = "select current_setting('session_replication_role'), current_setting('log_min_duration_statement'), \
                current_setting('my.own')";
    let reply = ask_job(&mut session, &launcher, text);
    assert_eq!(reply.last_rows().expect("a row").text_rows(), ["replica|1h|x"], "{:?}", reply.error);
    for change in [
        "set session_replication_role = origin",
        "set local session_replication_role = local",
        "reset session_replication_role",
        "set log_min_duration_statement = 0",
        "select set_config('log_min_duration_statement', '0', false), '', ''",
    ] {
        let error = ask_job(&mut session, &launcher, change).error.expect("an error");
        assert_eq!(error.sqlstate(), "42501", "{change}: {error}");
    }
}

#[case]
fn settings_of_a_definers_function_hold_in_its_job(db: &Db) {
    let user = db.role("user", "login");
    db.session().run(
        "create function launch_quietly(text) returns int language plpgsql security definer \
         set log_min_duration_statement = '2h' set search_path = pg_catalog as \
         $$ begin return public.pg_background_launch($1); end $$",
    );
    reader(db, "read_quietly", "postgres");
    let mut session = db.client().user(&user).connect();
    let text =
        "select current_setting('log_min_duration_statement'), current_setting('search_path'), current_user::text";
    let reply = ask_job(&mut session, "launch_quietly($1)", text);
    assert_eq!(reply.last_rows().expect("a row").text_rows(), ["2h|pg_catalog|postgres"]);
    assert_eq!(session.value("show log_min_duration_statement"), "-1");
}

/// A caller can set a module's setting before the module is loaded. Once it is, the server drops the value if the
/// caller had no right to it; the job of a superuser's function must not take it either.
#[case]
fn a_weaker_caller_sets_nothing_in_a_superusers_job(db: &Db) {
    let (user, strong) = (db.role("user", "login"), db.role("strong", "login superuser"));
    db.session().run(&format!(
        "create function launch_strongly(text) returns int language sql security definer as \
         'select pg_background_launch($1)'; alter function launch_strongly owner to {strong}"
    ));
    reader(db, "read_strongly", &strong);
    let mut session = db.client().user(&user).connect();
    session.run("set plpgsql.variable_conflict = 'use_column'");
    let text = "do $$ begin null; end $$; select current_setting('plpgsql.variable_conflict'), '', ''";
    for preloaded in [false, true] {
        if preloaded {
            db.session().run(&format!("alter role {strong} set session_preload_libraries = 'plpgsql'"));
        }
        let reply = ask_job(&mut session, "launch_strongly($1)", text);
        let error = &reply.error;
        let rows = reply.last_rows().map(|rows| rows.text_rows()).unwrap_or_default();
        assert_eq!(rows, ["error||"], "preloaded: {preloaded}, {error:?}");
    }
}
