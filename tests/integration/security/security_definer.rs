//! Jobs of SECURITY DEFINER functions: they become no more than the function could, and their results are its owner's.

use crate::security::identity::{ask_job, definer, PLAIN, WHO};
use crate::support::barrier::{self, Barrier};
use crate::support::batch::Batch;
use pg_background_mgr_tests::{case, literal, wait_until, Db, Session};

/// Messages of the server inside of a SECURITY DEFINER function.
const REFUSED: [&str; 2] = [
    "cannot set parameter \"role\" within security-definer function",
    "cannot set parameter \"session_authorization\" within security-definer function",
];

/// Statements that set a role or a user, in each way that there is, `{target}` or any.
const SETS: [&str; 15] = [
    "set role {target}",
    "set local role {target}",
    "set role none",
    "reset role",
    "set session authorization {target}",
    "set session authorization default",
    "reset session authorization",
    "select set_config('role', '{target}', false), '', ''",
    "select set_config('role', '{target}', true), '', ''",
    "begin; set local role {target}; commit",
    "begin; savepoint s; select 1; rollback to s; set role {target}; commit",
    "begin; select 1; rollback; set role {target}",
    "do $$ begin commit; set role {target}; end $$",
    "do $$ begin begin perform 1 / 0; exception when others then null; end; rollback; set local role {target}; end $$",
    "select become()::text, '', ''",
];

/// A definer that may set the role of a superuser, and a caller; a function that does so while it runs.
fn definer_of_more(db: &Db) -> (String, String, String) {
    let (owner, boss, user) =
        (db.role("owner", "login noinherit"), db.role("boss", "superuser"), db.role("user", "login"));
    db.session().run(&format!(
        "grant {boss} to {owner}; create function become() returns int language sql set role = {boss} as 'select 1'; \
         create function queue_as_{owner}(text) returns uuid language sql security definer as \
         'select uuid_child from pg_background_launch_num(array[$1])'; alter function queue_as_{owner} owner to {owner}"
    ));
    (owner, boss, user)
}

#[case]
fn a_definers_job_becomes_no_more_than_its_function(db: &Db) {
    let (owner, boss, user) = definer_of_more(db);
    let launcher = definer(db, &owner);
    let mut session = db.client().user(&user).connect();
    // In new processes, and in workers that stay, where a job of the owner's own comes in between.
    let mut plain = db.client().user(&owner).connect();
    for _ in 0..2 {
        for set in SETS {
            let text = set.replace("{target}", &boss);
            let error = ask_job(&mut session, &launcher, &text).error.expect("an error");
            assert_eq!(error.sqlstate(), "42501", "{text}: {error}");
            assert!(REFUSED.contains(&error.message().as_str()), "{text}: {error}");
            let who = ask_job(&mut plain, PLAIN, &format!("set role {boss}; {WHO}"));
            assert_eq!(who.last_rows().expect("a row").text_rows(), [format!("{owner}|{boss}|{boss}")]);
        }
    }
    // Nor a job that such a job launches.
    let text = format!(
        "select * from pg_background_result(pg_background_launch('set role {boss}; select 1')) as (a text); \
         select '', '', ''"
    );
    let error = ask_job(&mut session, &launcher, &text).error.expect("an error");
    assert_eq!(error.brief(), ("42501".to_owned(), REFUSED[0].to_owned()));
}

/// Returns how a job of the queue ended: its state and message.
#[track_caller]
fn ended(db: &Db, job: &str) -> String {
    db.session().run(&format!("select * from pg_background_monitor('{job}', false)"));
    db.session()
        .value(&format!("select status || '|' || coalesce(message, '') from log_background where uuid_child = '{job}'"))
}

#[case]
fn a_definers_job_in_the_queue_becomes_no_more(db: &Db) {
    let (owner, boss, user) = definer_of_more(db);
    let mut session = db.client().user(&user).connect();
    for set in ["set role {target}", "do $$ begin rollback; set role {target}; end $$", "reset role", "select become()"]
    {
        let text = literal(&set.replace("{target}", &boss));
        let job = session.value(&format!("select queue_as_{owner}({text})"));
        assert_eq!(ended(db, &job), format!("failed|{}", REFUSED[0]), "{text}");
        // The same worker, another job.
        let plain = db
            .client()
            .user(&owner)
            .connect()
            .value(&format!("select uuid_child from pg_background_launch_num(array['set role {boss}'])"));
        assert_eq!(ended(db, &plain), "succeeded|", "{text}");
    }
}

#[case]
fn a_definers_job_launched_again_becomes_no_more(db: &Db) {
    let (owner, boss, user) = definer_of_more(db);
    let mut session = db.client().user(&user).connect();
    let job = session.value(&format!("select queue_as_{owner}('set role {boss}')"));
    assert_eq!(ended(db, &job), format!("failed|{}", REFUSED[0]));
    for mut again in [db.session(), db.client().user(&owner).connect(), db.session()] {
        again.run(&format!("select pg_background_retry('{job}')"));
        assert_eq!(ended(db, &job), format!("failed|{}", REFUSED[0]));
    }
    let error =
        session.error("select pg_background_launch_num(array['select 1'], p_options => '{\"confined\": false}')");
    assert_eq!(error.sqlstate(), "22023");
}

/// Such a job is refused nothing else than another one is.
#[case]
fn a_definers_job_works_as_others_do(db: &Db) {
    let weak = db.role("weak", "login");
    let launcher = definer(db, &weak);
    let mut session = db.session();
    session.run(&format!(
        "grant create on schema public to {weak}; create table many as select generate_series(1, 20000) a; \
         grant select on many to public"
    ));
    for text in [
        "create table made (a serial primary key, b text); insert into made (b) values ('x'), ('y')",
        "vacuum made",
        "reindex table made",
        "vacuum full made",
        "create temp table mine (a int) on commit drop; select count(*) from mine",
        "declare c cursor with hold for select 1",
        "prepare p as select 1; execute p",
        "do $$ begin create table twice (a int); commit; drop table twice; rollback; drop table twice; end $$",
        "set work_mem = '1MB'; reset all; discard plans; discard temp; discard sequences",
        "create materialized view m as select 1 as a; refresh materialized view m",
        "set max_parallel_workers_per_gather = 2; set parallel_setup_cost = 0; set parallel_tuple_cost = 0; \
         set min_parallel_table_scan_size = 0; select count(*) from many",
        "begin isolation level serializable; select 1; commit",
        "copy made to stdout",
        "analyze made; cluster made using made_pkey; drop materialized view m; drop table made",
    ] {
        let pid = session.value(&format!("select {}", launcher.replace("$1", &literal(text))));
        let reply = session.ask(&format!("select pg_background_result({pid})"));
        assert!(reply.error.is_none(), "{text}: {:?}", reply.error);
    }
}

/// Launches a job that begins when the barrier has been opened; its uuid.
fn launch_behind_barrier(db: &Db, session: &mut Session, text: &str) -> (Barrier, String) {
    let barrier = Barrier::close(db.session());
    let batch = Batch::launch_with(session, &[barrier::WAIT, text], r#"{"mode": "sequential"}"#);
    (barrier, batch.children[1].clone())
}

#[case]
fn a_role_that_is_renamed_stays_the_jobs(db: &Db) {
    let (user, low, high) = (db.role("user", "login"), db.role("low", ""), db.role("high", ""));
    let mut admin = db.session();
    admin.run(&format!("grant {low}, {high} to {user}"));
    let mut session = db.client().user(&user).connect();
    session.run(&format!("set role {low}"));
    let (barrier, last) = launch_behind_barrier(db, &mut session, "select current_user::text");
    admin.run(&format!("alter role {low} rename to {low}_old; alter role {high} rename to {low}"));
    barrier.open();
    ended(db, &last);
    let shown = admin.value(&format!("select result from log_background where uuid_child = '{last}'"));
    assert_eq!(shown, format!("[{{\"current_user\":\"{low}_old\"}}]"));
}

#[case]
fn a_role_that_is_gone_when_its_job_begins_is_refused(db: &Db) {
    let (user, group, other) = (db.role("user", "login"), format!("{}_gone", db.name), format!("{}_next", db.name));
    let mut admin = db.session();
    admin.run(&format!("create role {group}; grant {group} to {user}"));
    let oid = admin.value(&format!("select oid from pg_roles where rolname = '{group}'"));
    let mut session = db.client().user(&user).connect();
    admin.run(&format!(
        "grant execute on all functions in schema public to {group}; grant select on log_background to {group}"
    ));
    session.run(&format!("set role {group}"));
    let (barrier, last) = launch_behind_barrier(db, &mut session, "select 1");
    // Another one has its name.
    admin.run(&format!(
        "drop owned by {group}; drop role {group}; create role {other}; \
         alter role {other} rename to {group}; grant {group} to {user}"
    ));
    barrier.open();
    assert_eq!(ended(db, &last), format!("failed|role with OID {oid} does not exist"));
    admin.run(&format!("drop role {group}"));
}

/// Asserts that the session gets the answer of a process id that means nothing.
#[track_caller]
fn assert_not_attached(session: &mut Session, pid: i64) {
    let expected = ("42704".to_owned(), format!("PID {pid} is not attached to this session"));
    for call in ["select pg_background_result", "select * from pg_background_detach"] {
        assert_eq!(session.error(&format!("{call}({pid})")).brief(), expected);
    }
}

#[case]
fn a_definers_result_is_not_its_callers(db: &Db) {
    let user = db.role("user", "login");
    definer(db, "postgres");
    let mut session = db.client().user(&user).connect();
    let pid = session.number("select launch_as_postgres('select 1, 2, rolpassword from pg_authid limit 1')");
    assert_not_attached(&mut session, pid);
    assert_eq!(session.rows(&format!("select a, b from read_as_postgres({pid})")), ["1|2"]);
    // Nor is it told that there was one.
    assert_not_attached(&mut session, pid);
    let again = session.error(&format!("select * from read_as_postgres({pid})"));
    assert_eq!(again.brief(), ("42704".to_owned(), format!("result of the job with PID {pid} has already been read")));
    // And the other way round: what a definer's function calls is the definer, and nobody else.
    let own = session.number("select pg_background_launch('select 1, 2, 3')");
    let error = session.error(&format!("select * from read_as_postgres({own})"));
    assert_eq!(error.brief(), ("42704".to_owned(), format!("PID {own} is not attached to this session")));
    assert_eq!(session.rows(&format!("select pg_background_result({own})")), ["(1,2,3)"]);
}

/// ON DELETE CASCADE runs as the owner of the table that refers, without being restricted otherwise.
#[case]
fn a_result_is_not_read_by_a_trigger_of_another_role(db: &Db) {
    let thief = db.role("thief", "login");
    let mut session = db.session();
    session.run(&format!(
        "create table pk (id int primary key); insert into pk values (1), (2); \
         grant references, select on pk to {thief}; \
         create schema lair authorization {thief}"
    ));
    db.client().user(&thief).connect().run(
        "create table lair.fk (id int references public.pk on delete cascade); insert into lair.fk values (1), (2); \
         create table lair.loot (who text, loot text, sqlstate text); \
         create function lair.steal() returns trigger language plpgsql as $$ declare p int; r text; begin \
         for p in select pid from pg_stat_activity loop \
         begin select x.t into r from public.pg_background_result(p) as x (t text); \
         insert into lair.loot values (session_user || ' as ' || current_user, r, null); \
         exception when others then insert into lair.loot values (p, null, sqlstate); end; \
         begin perform public.pg_background_detach(p); \
         insert into lair.loot values ('detached', p, null); exception when others then null; end; \
         end loop; return old; end $$; \
         create trigger steal before delete on lair.fk for each row execute function lair.steal()",
    );
    let pid = session.launch("select 'secret'::text");
    wait_until("the end of the job", || {
        session.rows(&format!("select state from pg_stat_activity where pid = {pid}")) == ["idle"]
    });
    session.run("delete from pk where id = 1");
    assert_eq!(session.rows("select * from lair.loot where loot is not null"), [""; 0]);
    assert_eq!(session.rows("select distinct sqlstate from lair.loot"), ["42704"]);
    assert_eq!(session.result(pid, "t text"), ["secret"]);
    // Nor is it told that there was one.
    session.run("delete from lair.loot; delete from pk where id = 2");
    assert_eq!(session.rows("select distinct sqlstate from lair.loot"), ["42704"]);
}

#[case]
fn a_result_is_not_read_after_set_role_or_set_session_authorization(db: &Db) {
    let weak = db.role("weak", "login");
    let mut session = db.session();
    for (become_weak, back) in [
        ("set role", "reset role"),
        ("begin; set local role", "commit"),
        ("set session authorization", "reset session authorization"),
    ] {
        let pid = session.number("select pg_background_launch('select 7')");
        session.run(&format!("{become_weak} {weak}"));
        let error = session.error(&format!("select pg_background_result({pid})"));
        assert_eq!(error.brief(), ("42704".to_owned(), format!("PID {pid} is not attached to this session")));
        session.run(back);
        assert_eq!(session.rows(&format!("select pg_background_result({pid})")), ["(7)"], "{become_weak}");
        // A superuser reads what was launched as another role.
        session.run(&format!("{become_weak} {weak}"));
        let pid = session.number("select pg_background_launch('select 8')");
        session.run(back);
        assert_eq!(session.rows(&format!("select pg_background_result({pid})")), ["(8)"], "{become_weak}");
    }
}

#[case]
fn a_role_that_inherits_reads_the_results_of_its_group(db: &Db) {
    let (heir, stranger) = (db.role("heir", "login"), db.role("stranger", "login noinherit"));
    let group = db.role("group", "nologin");
    db.session().run(&format!("grant {group} to {heir}, {stranger}"));
    for (user, reads) in [(&heir, true), (&stranger, false)] {
        let mut session = db.client().user(user).connect();
        session.run(&format!("set role {group}"));
        let pid = session.number("select pg_background_launch('select 7')");
        session.run("reset role");
        if !reads {
            assert_not_attached(&mut session, pid);
            session.run(&format!("set role {group}"));
        }
        assert_eq!(session.rows(&format!("select pg_background_result({pid})")), ["(7)"]);
    }
}
