//! Jobs that one sees and runs, and whose they are: row security and grants.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{cell, counts, drain, states_after, stop, wait_at_barrier, Batch, FREEZE_LOG, LOCK_LOG};
use pg_background_mgr_tests::env::env;
use pg_background_mgr_tests::{case, wait_until, Db, Session, FOREVER, SLEEP_FOREVER};

const VIEWS: [&str; 5] = [
    "log_background",
    "pg_background_jobs",
    "pg_background_batches",
    "pg_background_monitor()",
    "pg_background_monitor(null::uuid, false)",
];

/// The users whose jobs a session sees; every way to look must show the same.
#[track_caller]
fn users_seen(session: &mut Session) -> String {
    let jobs = "(select * from public.pg_background_jobs where database = current_database()) j";
    let views = ["public.log_background", jobs, "public.pg_background_batches"];
    let seen: Vec<String> = views
        .iter()
        .map(|view| {
            let list = "string_agg(distinct user_name::text, ' ' order by user_name::text)";
            session.value(&format!("select coalesce({list}, '') from {view}"))
        })
        .collect();
    assert!(seen.iter().all(|users| *users == seen[0]), "{seen:?}");
    let logged = session.value("select count(*) from public.log_background");
    let monitor = "(select * from public.pg_background_monitor() where uuid_child in \
                   (select uuid_child from public.log_background)) m";
    for view in [monitor, jobs] {
        assert_eq!(session.value(&format!("select count(*) from {view}")), logged, "{view}");
    }
    seen[0].clone()
}

/// Two roles with jobs that have ended, that run, and that wait; and a superuser's.
struct Roles {
    first: String,
    second: String,
    sessions: Vec<Session>,
    batches: Vec<Batch>,
    barrier: Barrier,
}

fn set_roles(db: &Db) -> Roles {
    let (first, second) = (db.role("first", "login"), db.role("second", "login"));
    let barrier = Barrier::close(db.session());
    let (mut sessions, mut batches) = (Vec::new(), Vec::new());
    for user in [&first, &second, &"postgres".to_owned()] {
        let mut session = db.client().user(user).connect();
        let texts = ["select 1", barrier::WAIT, "select 3"];
        batches.push(Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential"}"#));
        sessions.push(session);
    }
    wait_at_barrier(&mut db.session(), 3);
    Roles { first, second, sessions, batches, barrier }
}

impl Roles {
    fn end(mut self) {
        self.barrier.open();
        for (session, batch) in self.sessions.iter_mut().zip(&self.batches) {
            batch.succeed(session);
        }
    }
}

#[case]
fn each_role_sees_its_own_jobs(db: &Db) {
    let mut roles = set_roles(db);
    let (first, second) = (roles.first.clone(), roles.second.clone());
    assert_eq!(users_seen(&mut roles.sessions[0]), first);
    assert_eq!(users_seen(&mut roles.sessions[1]), second);
    for view in VIEWS {
        let count = roles.sessions[0].number(&format!("select count(*) from {view}"));
        assert_eq!(count, if view.contains("batches") { 1 } else { 3 }, "{view}");
    }
    // Also what the view does not show by itself.
    let others = format!("select count(*) from log_background where uuid_parent = '{}'", roles.batches[1].parent);
    assert_eq!(roles.sessions[0].value(&others), "0");
    let nobody = db.role("nobody", "login");
    assert_eq!(users_seen(&mut db.client().user(&nobody).connect()), "");
    roles.end();
}

#[case]
fn members_see_the_jobs_of_their_roles(db: &Db) {
    let roles = set_roles(db);
    let member = db.role("member", "login");
    db.session().run(&format!("grant {} to {member}", roles.first));
    let mut session = db.client().user(&member).connect();
    assert_eq!(users_seen(&mut session), roles.first);
    // Without inheritance it takes a SET ROLE.
    let distant = db.role("distant", "login noinherit");
    let with = if pg_background_mgr_tests::env::env().version >= 16 { " with inherit false" } else { "" };
    db.session().run(&format!("grant {} to {distant}{with}", roles.second));
    let mut session = db.client().user(&distant).connect();
    assert_eq!(users_seen(&mut session), "");
    session.run(&format!("set role {}", roles.second));
    assert_eq!(users_seen(&mut session), roles.second);
    roles.end();
}

#[case]
fn superusers_and_statistics_readers_see_all(db: &Db) {
    let roles = set_roles(db);
    let all = format!("{} {} postgres", roles.first, roles.second);
    let mut sorted: Vec<&str> = all.split(' ').collect();
    sorted.sort_unstable();
    let all = sorted.join(" ");
    let reader = db.role("reader", "login");
    db.session().run(&format!("grant pg_read_all_stats to {reader}"));
    assert_eq!(users_seen(&mut db.session()), all);
    let mut session = db.client().user(&reader).connect();
    assert_eq!(users_seen(&mut session), all);
    // It reads, and no more.
    let error = session.error(&format!("select * from pg_background_stop('{}')", roles.batches[0].parent));
    assert!(["42501", "42704"].contains(&error.sqlstate().as_str()), "{error}");
    roles.end();
}

/// Wherever it is kept: neither rows of a job nor what its error says, which quotes them.
#[case]
fn statistics_readers_see_no_results(db: &Db) {
    let (owner, reader) = (db.role("owner", "login"), db.role("reader", "login"));
    let mut admin = db.session();
    admin.run(&format!("grant pg_read_all_stats to {reader}"));
    let mut session = db.client().user(&owner).connect();
    let mut other = db.client().user(&reader).connect();
    let mut locker = db.session();
    let raise = "do $$ begin raise exception 'secret message' using detail = 'secret detail', hint = 'secret hint', \
                 errcode = 'SEC01'; end $$";
    let again =
        "do $$ begin raise exception 'secret attempt' using detail = 'secret detail', errcode = 'SEC02'; end $$";
    let jobs = format!(
        r#"[{{"query": "select 'secret result' as s"}}, {{"query": {raise}}}, "select {FOREVER}",
            {{"query": {again}, "max_attempts": 2, "retry_delay": "1 h"}}, "select {FOREVER}"]"#,
        raise = format_args!("{raise:?}"),
        again = format_args!("{again:?}"),
    );
    let told = "string_agg(concat_ws('|', status, sqlstate, message, row_count, attempts), ' ' order by uuid_child)";
    let data =
        "count(result), count(detail), count(hint), count(context), count(*) filter (where log::text like '%secret%' \
                and query not like '%secret%')";
    for lock in [None, Some(FREEZE_LOG)] {
        if let Some(lock) = lock {
            locker.run(lock);
        }
        let batch = Batch::launch_json(&mut session, &jobs);
        let states = "select string_agg(status, ' ' order by uuid_child) from pg_background_monitor('{}', false, '0')";
        let states = states.replace("{}", &batch.parent);
        wait_until("a job of each kind", || session.value(&states) == "succeeded failed running queued running");
        assert_eq!(states_after(&stop(&mut session, &batch.children[2], None)), ["stopped"]);
        let of_batch = format!("from log_background as log where uuid_parent = '{}'", batch.parent);
        let seen = other.value(&format!("select {told} {of_batch}"));
        let of_owner = session.value(&format!("select {told} {of_batch}"));
        let stopped = format!("stopped|57014|stopped by user \"{owner}\"|1");
        assert!(seen.contains("failed|SEC01|1") && seen.contains(&stopped), "{seen}");
        assert!(of_owner.contains("failed|SEC01|secret message|1"), "{of_owner}");
        assert_eq!(other.rows(&format!("select {data} {of_batch}")), ["0|0|0|0|0"], "{lock:?}");
        let shown = session.value(&format!("select {data} {of_batch}"));
        assert_eq!(shown.split('|').next(), Some("1"), "{shown}");
        for source in ["pg_background_jobs", "pg_background_monitor()"] {
            let query =
                format!("select count(result), count(message) from {source} where uuid_parent = '{}'", batch.parent);
            assert_eq!(other.rows(&query), ["0|1"], "{source}, {lock:?}");
        }
        session.run(&format!("select pg_background_stop('{}')", batch.parent));
        locker.run("rollback");
        drain(&mut session);
    }
    // From the server alone.
    locker.run(LOCK_LOG);
    let batch = Batch::launch(&mut session, &["select 'secret' as s", raise]);
    let query = format!("select status, result, message from pg_background_monitor('{}', false)", batch.parent);
    assert_eq!(other.rows(&query), ["succeeded|∅|∅", "failed|∅|∅"]);
    assert_eq!(session.rows(&query), ["succeeded|[{\"s\":\"secret\"}]|∅", "failed|∅|secret message"]);
    locker.run("rollback");
}

#[case]
fn what_is_seen_follows_the_current_role(db: &Db) {
    let roles = set_roles(db);
    let mut session = db.session();
    session.run(&format!("set role {}", roles.first));
    assert_eq!(users_seen(&mut session), roles.first);
    session.run(&format!("reset role; set session authorization {}", roles.second));
    assert_eq!(users_seen(&mut session), roles.second);
    session.run("reset session authorization");
    // A prepared statement is no way around.
    session.run("prepare look as select count(*) from log_background");
    assert_eq!(session.value("execute look"), "9");
    session.run(&format!("set role {}", roles.first));
    assert_eq!(session.value("execute look"), "3");
    roles.end();
}

#[case]
fn functions_in_a_query_do_not_leak_rows(db: &Db) {
    let roles = set_roles(db);
    db.session().run(&format!("grant create on schema public to {}", roles.first));
    let mut session = db.client().user(&roles.first).connect();
    session.run(
        "create function leak(text) returns boolean language plpgsql cost 0.0000001 as \
         $$ begin raise notice '%', $1; return true; end $$",
    );
    for view in ["log_background", "pg_background_jobs", "pg_background_batches"] {
        session.run(&format!("select * from {view} where leak(user_name::text || ' ' || uuid_parent)"));
        let told = session.notice_texts();
        assert!(!told.is_empty() && told.iter().all(|line| line.contains(&roles.first)), "{view}: {told:?}");
    }
    roles.end();
}

/// Calls of what the manager adds to the interface.
const CALLS: [&str; 13] = [
    "pg_background_launch_num('select 1')",
    "pg_background_launch_num(array['select 1'])",
    "pg_background_launch_num('[\"select 1\"]'::jsonb)",
    "pg_background_monitor()",
    "pg_background_monitor('01234567-89ab-cdef-0123-456789abcdef')",
    "pg_background_monitor('01234567-89ab-cdef-0123-456789abcdef'::uuid)",
    "pg_background_stop('01234567-89ab-cdef-0123-456789abcdef')",
    "pg_background_stop('01234567-89ab-cdef-0123-456789abcdef'::uuid)",
    "pg_background_retry('01234567-89ab-cdef-0123-456789abcdef')",
    "pg_background_retry('01234567-89ab-cdef-0123-456789abcdef'::uuid)",
    "pg_background_prune('1 day')",
    "pg_background_report_progress(1)",
    "log_background",
];

fn stranger(db: &Db, name: &str) -> String {
    let role = format!("{}_{name}", db.name);
    db.session().run(&format!("create role {role} login"));
    role
}

#[track_caller]
fn assert_denied(session: &mut Session, prefix: &str) {
    for call in CALLS.iter().chain(&["pg_background_jobs", "pg_background_batches"]) {
        let error = session.error(&format!("select * from {prefix}{call}"));
        assert_eq!(error.sqlstate(), "42501", "{call}: {error}");
    }
}

#[track_caller]
fn assert_granted(session: &mut Session, prefix: &str) {
    for call in CALLS.iter().chain(&["pg_background_jobs", "pg_background_batches"]) {
        let reply = session.ask(&format!("select * from {prefix}{call}"));
        // What is not there is not there; but one may ask.
        assert!(reply.error.as_ref().is_none_or(|error| error.sqlstate() == "42704"), "{call}: {:?}", reply.error);
    }
}

#[case]
fn public_has_nothing_of_the_manager(db: &Db) {
    let role = stranger(db, "stranger");
    assert_denied(&mut db.client().user(&role).connect(), "");
    assert_eq!(db.session().value("select count(*) from log_background"), "0");
    let granted = "select c.relname from pg_class c, aclexplode(c.relacl) a where a.grantee = 0 \
                   and c.relname like '%background%'";
    assert_eq!(db.session().rows(granted), [""; 0]);
}

#[case]
fn a_grant_gives_functions_and_views(db: &Db) {
    let role = stranger(db, "role");
    let mut admin = db.session();
    admin.run(&format!("select pg_background_grant('{role}')"));
    let mut session = db.client().user(&role).connect();
    assert_granted(&mut session, "");
    drain(&mut session);
    assert_eq!(counts(&mut session, "true"), ["succeeded 3"]);
    // By a group too.
    let member = stranger(db, "member");
    admin.run(&format!("grant {role} to {member}"));
    let mut session = db.client().user(&member).connect();
    assert_granted(&mut session, "");
    drain(&mut session);
}

#[case]
fn a_revoke_takes_functions_and_views(db: &Db) {
    let role = stranger(db, "role");
    let mut admin = db.session();
    admin.run(&format!("select pg_background_grant('{role}')"));
    let (mut session, barrier) = (db.client().user(&role).connect(), Barrier::close(db.session()));
    admin.run(&format!("create table ran (a int); grant insert on ran to {role}"));
    let text = format!("{}; insert into ran values (1)", barrier::WAIT);
    let batch = Batch::launch_with(&mut session, &[&text, "insert into ran values (2)"], r#"{"max_workers": 1}"#);
    wait_at_barrier(&mut admin, 1);
    admin.run(&format!("select pg_background_revoke('{role}')"));
    assert_denied(&mut session, "");
    // What was launched with the right runs.
    barrier.open();
    batch.succeed(&mut admin);
    assert_eq!(admin.rows("select a from ran order by a"), ["1", "2"]);
    // Nothing is left that would keep the role.
    admin.run(&format!("drop owned by {role}"));
}

#[case]
fn a_granted_role_does_not_grant_or_read_the_table(db: &Db) {
    let (role, other) = (db.role("role", "login"), stranger(db, "other"));
    let mut session = db.client().user(&role).connect();
    for text in [
        format!("select pg_background_grant('{other}')"),
        "select * from background_mgr.log".to_owned(),
        "select nextval('background_mgr.log_id')".to_owned(),
    ] {
        assert_eq!(session.error(&text).sqlstate(), "42501", "{text}");
    }
    session.run(&format!("grant select on log_background to {other}"));
    assert_eq!(db.client().user(&other).connect().error("select * from log_background").sqlstate(), "42501");
}

#[case]
fn the_manager_works_in_a_schema_of_its_own(db: &Db) {
    let role = stranger(db, "role");
    let mut admin = db.session();
    for schema in ["bg", "\"Odd \"\"schema\"\"; ünï\""] {
        admin.run(&format!(
            "drop extension pg_background_mgr; create schema {schema}; \
             create extension pg_background_mgr schema {schema}"
        ));
        let mut session = db.client().user(&role).connect();
        assert_eq!(session.error(&format!("select * from {schema}.pg_background_monitor()")).sqlstate(), "42501");
        admin.run(&format!("select {schema}.pg_background_grant('{role}')"));
        assert_granted(&mut session, &format!("{schema}."));
        let call = format!(
            "select status from {schema}.pg_background_launch_num('select 1, select 2 / 0', p_exec_type => 'sync')"
        );
        assert_eq!(session.rows(&call), ["succeeded", "failed"]);
        let all = format!("select count(*) from {schema}.log_background where status in ('succeeded', 'failed')");
        wait_until("the end of all jobs", || session.value(&all) == "5");
        assert_eq!(session.value(&format!("select {schema}.pg_background_prune('0')")), "5");
        admin.run(&format!("select {schema}.pg_background_revoke('{role}')"));
        assert_eq!(session.error(&format!("select * from {schema}.log_background")).sqlstate(), "42501");
    }
}

#[case]
fn uuids_cannot_be_guessed(db: &Db) {
    let mut session = db.session();
    let batches: Vec<Batch> = (0..100).map(|_| Batch::launch(&mut session, &["select 1"])).collect();
    let bytes = |batch: &Batch| -> Vec<u8> {
        let digits = batch.children[0].replace('-', "");
        (0..16).map(|place| u8::from_str_radix(&digits[2 * place..2 * place + 2], 16).expect("digits")).collect()
    };
    let all: Vec<Vec<u8>> = batches.iter().map(bytes).collect();
    // Bytes in which there is no order to be seen.
    let varied = (0..16).filter(|place| {
        let mut values: Vec<u8> = all.iter().map(|uuid| uuid[*place]).collect();
        values.sort_unstable();
        values.dedup();
        values.len() > 50
    });
    assert!(varied.count() >= 6, "at least 48 random bits: {:?}", &batches[..5]);
    drain(&mut session);
}

/// RESET ROLE in the text of another leads to who has launched it, not to who has it run again.
#[case]
fn a_retry_does_not_lend_the_login_of_who_asks(db: &Db) {
    let (bob, group) = (db.role("bob", "login"), db.role("app", ""));
    let mut admin = db.session();
    admin.run(&format!("grant {group} to {bob}"));
    let mut session = db.client().user(&bob).connect();
    let text = "reset role; select session_user";
    let batch = Batch::launch(&mut session, &[&format!("{text}; alter role {bob} superuser")]);
    assert_eq!(batch.finish(&mut session), ["failed"]);
    session.run(&format!("set role {group}"));
    let of_group =
        Batch::launch(&mut session, &[&format!("{text}; select 1 / (count(*) - 1) from pg_class where false")]);
    assert_eq!(of_group.finish(&mut session), ["succeeded"]);
    let failing = Batch::launch(&mut session, &[&format!("{text}; select 1 / 0")]);
    assert_eq!(failing.finish(&mut session), ["failed"]);
    // The same login may, with the role that it had.
    session.run(&format!("select * from public.pg_background_retry('{}')", failing.parent));
    assert_eq!(failing.finish(&mut session), ["failed"]);
    assert_eq!(failing.log(&mut session, 0, "sqlstate"), "22012");
    for (role, batch, sqlstate) in [(&bob, &batch, "42501"), (&group, &failing, "28000")] {
        admin.run(&format!("set role {role}"));
        admin.run(&format!("select * from public.pg_background_retry('{}')", batch.parent));
        assert_eq!(batch.finish(&mut admin), ["failed"]);
        assert_eq!(batch.log(&mut admin, 0, "sqlstate"), sqlstate);
        admin.run("reset role");
    }
    assert_eq!(admin.value(&format!("select rolsuper from pg_roles where rolname = '{bob}'")), "f");
}

/// The role that a process has logged in as decides, as for `pg_cancel_backend`.
#[case]
fn jobs_in_a_superusers_login_are_not_stopped_by_others(db: &Db) {
    let (app, operator) = (db.role("app", "login"), db.role("operator", "login"));
    db.session().run(&format!("grant pg_signal_backend to {operator}"));
    let mut admin = db.session();
    let mut other = db.client().user(&operator).connect();
    for (role, may) in [(format!("set session authorization {app}"), true), (format!("set role {app}"), false)] {
        admin.run(&role);
        let batch = Batch::launch(&mut admin, &[SLEEP_FOREVER]);
        batch.wait_state(&mut admin, 0, "running");
        let stop = format!("select now from public.pg_background_stop('{}')", batch.parent);
        if may {
            assert_eq!(other.rows(&stop), ["stopped"]);
        } else {
            assert_eq!(other.error(&stop).sqlstate(), "42704");
            assert_eq!(admin.rows(&stop), ["stopped"]);
            // Nor when it is in the log alone.
            drain(&mut admin);
            assert_eq!(other.error(&stop).sqlstate(), "42704");
        }
        admin.run("reset session authorization");
    }
}

/// A member that inherits has the rights of a superuser's tables, and is none.
#[case]
fn members_of_a_superuser_do_not_stop_or_retry_its_jobs(db: &Db) {
    let (boss, clerk, plain) =
        (db.role("boss", "login superuser"), db.role("clerk", "login inherit"), db.role("plain", "login"));
    let options = if env().version >= 16 { " with inherit true, set false" } else { "" };
    db.session().run(&format!("grant {boss} to {clerk}{options}; grant {plain} to {clerk}{options}"));
    let (mut admin, mut member) = (db.client().user(&boss).connect(), db.client().user(&clerk).connect());
    let of_superuser = |error: pg_background_mgr_tests::ServerError| {
        let message = "permission denied to stop or retry background jobs of a superuser";
        assert_eq!(error.brief(), ("42501".to_owned(), message.to_owned()));
    };
    let batch = Batch::launch(&mut admin, &[SLEEP_FOREVER, "select 1 / 0"]);
    batch.wait_state(&mut admin, 0, "running");
    let (stop, retry) = (
        format!("select now from pg_background_stop('{}')", batch.parent),
        format!("select pg_background_retry('{}')", batch.parent),
    );
    of_superuser(member.error(&stop));
    assert_eq!(admin.rows(&format!("select now from pg_background_stop('{}')", batch.children[0])), ["stopped"]);
    drain(&mut admin);
    of_superuser(member.error(&stop));
    of_superuser(member.error(&retry));
    assert_eq!(admin.rows(&retry).len(), 2);
    assert_eq!(db.session().rows(&stop).len(), 2);
    // Of a role that is no superuser it may both.
    let mut other = db.client().user(&plain).connect();
    let batch = Batch::launch(&mut other, &[SLEEP_FOREVER]);
    assert_eq!(member.rows(&format!("select now from pg_background_stop('{}')", batch.parent)), ["stopped"]);
    drain(&mut admin);
    assert_eq!(member.rows(&format!("select pg_background_retry('{}')", batch.parent)).len(), 1);
    assert_eq!(other.rows(&format!("select now from pg_background_stop('{}')", batch.parent)), ["stopped"]);
}

#[case]
fn what_one_may_not_see_looks_as_what_is_not_there(db: &Db) {
    let stranger = stranger(db, "stranger");
    let mut session = db.session();
    session
        .run(&format!("select pg_background_grant('{stranger}'); grant usage on schema background_mgr to {stranger}"));
    let batch = Batch::launch(&mut session, &[SLEEP_FOREVER]);
    batch.wait_state(&mut session, 0, "running");
    let epoch = session.value("select max(epoch) from background_mgr.log");
    let state = |uuid: &str| format!("select * from background_mgr.state('{uuid}', {epoch}, null, true, false)");
    let mut other = db.client().user(&stranger).connect();
    let of_nobody = other.rows(&state(crate::support::batch::NOBODY));
    assert_eq!(other.rows(&state(&batch.children[0])), of_nobody);
    session.run(&format!("select * from public.pg_background_stop('{}')", batch.parent));
    drain(&mut session);
    assert_eq!(other.rows(&state(&batch.children[0])), of_nobody);
}

#[case]
fn a_definers_function_launches_for_its_owner_only(db: &Db) {
    let (user, owner) = (db.role("user", "login"), db.role("owner", "login"));
    let mut admin = db.session();
    admin.run(&format!(
        "create function launch_as(text) returns uuid language sql security definer as \
         $$ select uuid_parent from public.pg_background_launch_num(array[$1]) $$; \
         alter function launch_as owner to {owner}"
    ));
    let mut session = db.client().user(&user).connect();
    let parent = session.value("select launch_as('select current_user::text as c, session_user::text as s')");
    assert_eq!(session.error(&format!("select * from pg_background_monitor('{parent}')")).sqlstate(), "42704");
    assert_eq!(users_seen(&mut session), "");
    let mut mine = db.client().user(&owner).connect();
    assert_eq!(mine.rows(&format!("select status from pg_background_monitor('{parent}', false)")), ["succeeded"]);
    let who = format!("select concat_ws(' ', {}, {}) from log_background", cell("c"), cell("s"));
    assert_eq!(mine.value(&who), format!("{owner} {owner}"));
    drain(&mut admin);
}
