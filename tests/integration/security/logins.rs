//! Roles that may not log in run no jobs, whatever keeps them from it.

use crate::support::barrier::{self, Barrier};
use pg_background_mgr_tests::cluster::is_alive;
use pg_background_mgr_tests::{case, literal, wait_until, Db, ServerError, Session};

/// The job must leave no trace of having run.
const TRACE: &str = "insert into ran values (1)";

fn prepare(db: &Db) -> Session {
    let mut admin = db.session();
    admin.run("create table ran (a int); grant insert on ran to public");
    admin
}

/// The reason why a job of `session` is refused, which is an error whose message and SQLSTATE the server has for
/// logins.
#[track_caller]
fn assert_refused(session: &mut Session, launcher: &str, sqlstate: &str, message: &str) -> ServerError {
    let pid = session.value(&format!("select {}", launcher.replace("$1", &literal(TRACE))));
    let error = session.result_error(pid.parse().expect("a process id"));
    assert_eq!(
        (error.severity(), error.sqlstate(), error.message()),
        ("ERROR".to_owned(), sqlstate.to_owned(), message.to_owned())
    );
    error
}

#[track_caller]
fn assert_never_ran(admin: &mut Session) {
    assert_eq!(admin.value("select count(*) from ran"), "0");
}

const PLAIN: &str = "pg_background_launch($1)";

#[case]
fn a_security_definer_function_of_a_role_that_cannot_log_in_is_refused(db: &Db) {
    let mut admin = prepare(db);
    let (user, owner) = (db.role("user", "login"), db.role("owner", "nologin"));
    admin.run(&format!(
        "create function launch_as(text) returns int language sql security definer as \
         'select pg_background_launch($1)'; alter function launch_as owner to {owner}; grant {owner} to {user}"
    ));
    let message = format!("role \"{owner}\" is not permitted to log in");
    for mut session in [db.client().user(&user).connect(), db.session()] {
        assert_refused(&mut session, "launch_as($1)", "28000", &message);
    }
    assert_never_ran(&mut admin);
    admin.run(&format!("alter role {owner} login"));
    let pid = admin.number("select launch_as('select 1')");
    assert_eq!(admin.result(i32::try_from(pid).expect("a process id"), "n int"), ["1"]);
}

#[case]
fn a_role_that_may_not_log_in_any_more_is_refused(db: &Db) {
    let mut admin = prepare(db);
    let user = db.role("user", "login");
    let mut session = db.client().user(&user).connect();
    assert_eq!(session.job("select 1", "n int"), ["1"]);
    admin.run(&format!("alter role {user} nologin"));
    let message = format!("role \"{user}\" is not permitted to log in");
    assert_refused(&mut session, PLAIN, "28000", &message);
    assert_never_ran(&mut admin);
    admin.run(&format!("alter role {user} login"));
    assert_eq!(session.job("select 1", "n int"), ["1"]);
}

#[case]
fn a_dropped_role_is_refused(db: &Db) {
    let mut admin = prepare(db);
    // A grant to the role itself would keep it from being dropped.
    let user = format!("{}_user", db.name);
    admin.run(&format!("create role {user} login; grant execute on all functions in schema public to public"));
    let mut session = db.client().user(&user).connect();
    assert_eq!(session.job("select 1", "n int"), ["1"]);
    let number = admin.value(&format!("select oid from pg_roles where rolname = '{user}'"));
    admin.run(&format!("drop role {user}"));
    let message = format!("role with OID {number} does not exist");
    assert_refused(&mut session, PLAIN, "28000", &message);
    assert_never_ran(&mut admin);
}

#[case]
fn a_role_without_connect_is_refused(db: &Db) {
    let mut admin = prepare(db);
    let (user, name) = (db.role("user", "login"), &db.name);
    let mut session = db.client().user(&user).connect();
    admin.run(&format!("revoke connect on database {name} from public"));
    let message = format!("permission denied for database \"{name}\"");
    let error = assert_refused(&mut session, PLAIN, "42501", &message);
    assert_eq!(error.detail().as_deref(), Some("User does not have CONNECT privilege."));
    assert_never_ran(&mut admin);
    assert_eq!(admin.job("select 1", "n int"), ["1"], "a superuser needs no right");
    admin.run(&format!("grant connect on database {name} to {user}"));
    assert_eq!(session.job("select 1", "n int"), ["1"]);
}

#[case]
fn a_database_that_allows_no_connections_is_refused(db: &Db) {
    let mut admin = prepare(db);
    let (user, name) = (db.role("user", "login"), &db.name);
    let mut session = db.client().user(&user).connect();
    let mut outside = db.cluster.session("postgres");
    outside.run(&format!("alter database {name} allow_connections false"));
    let message = format!("database \"{name}\" is not currently accepting connections");
    assert_refused(&mut session, PLAIN, "55000", &message);
    // For superusers too.
    assert_refused(&mut admin, PLAIN, "55000", &message);
    assert_never_ran(&mut admin);
    outside.run(&format!("alter database {name} allow_connections true"));
    assert_eq!(session.job("select 1", "n int"), ["1"]);
}

#[track_caller]
fn launch_at_barrier(session: &mut Session, barrier: &mut Barrier) -> i32 {
    let pid = session.launch(&format!("{}; select 7", barrier::WAIT));
    barrier.wait_for(pid);
    pid
}

#[case]
fn jobs_count_against_the_connection_limit_of_their_role(db: &Db) {
    let mut admin = prepare(db);
    let user = db.role("user", "login connection limit 3");
    let mut session = db.client().user(&user).connect();
    let mut barrier = Barrier::close(db.session());
    let first = launch_at_barrier(&mut session, &mut barrier);
    let second = launch_at_barrier(&mut session, &mut barrier);
    let message = format!("too many connections for role \"{user}\"");
    assert_refused(&mut session, PLAIN, "53300", &message);
    assert_never_ran(&mut admin);
    barrier.open();
    assert_eq!(session.result(first, "n int"), ["7"]);
    wait_until("the end of the process", || !is_alive(first));
    // One that has ended has freed its place, also while its result waits.
    wait_until("the end of the process", || !is_alive(second));
    assert_eq!(session.job("select 1", "n int"), ["1"]);
    assert_eq!(session.result(second, "n int"), ["7"]);
}

#[case]
fn sessions_count_against_the_connection_limit_of_a_jobs_role(db: &Db) {
    let mut admin = prepare(db);
    let user = db.role("user", "login connection limit 2");
    let client = db.client().user(&user);
    let (mut session, other) = (client.connect(), client.connect());
    let message = format!("too many connections for role \"{user}\"");
    assert_refused(&mut session, PLAIN, "53300", &message);
    assert_never_ran(&mut admin);
    let gone = other.pid();
    drop(other);
    wait_until("the end of the other session", || !is_alive(gone));
    assert_eq!(session.job("select 1", "n int"), ["1"]);
    // A limit below what is there already, and none at all.
    admin.run(&format!("alter role {user} connection limit 0"));
    assert_refused(&mut session, PLAIN, "53300", &message);
    admin.run(&format!("alter role {user} connection limit -1"));
    assert_eq!(session.job("select 1", "n int"), ["1"]);
}

/// One job at a time fits, however fast one follows the other: the process of the one before may still be there.
#[case]
fn jobs_that_have_ended_do_not_count(db: &Db) {
    let user = db.role("user", "login connection limit 2");
    let mut session = db.client().user(&user).connect();
    for number in 0..100 {
        assert_eq!(session.job(&format!("select {number}"), "n int"), [number.to_string()]);
    }
    // Nor does one that waits for its reader.
    let unread = session.launch("select repeat('x', 1000) from generate_series(1, 10000)");
    wait_until("the end of the job", || {
        session.rows(&format!("select state from pg_stat_activity where pid = {unread}")) == ["idle"]
    });
    assert_eq!(session.job("select 1", "n int"), ["1"]);
    assert_eq!(session.result(unread, "line text").len(), 10000);
}

#[case]
fn jobs_count_against_the_connection_limit_of_their_definer(db: &Db) {
    let mut admin = prepare(db);
    let (user, owner) = (db.role("user", "login connection limit 1"), db.role("owner", "login connection limit 1"));
    admin.run(&format!(
        "create function launch_as(text) returns int language sql security definer as \
         'select pg_background_launch($1)'; alter function launch_as owner to {owner}; grant {owner} to {user}"
    ));
    let mut session = db.client().user(&user).connect();
    let mut barrier = Barrier::close(db.session());
    let pid = session.number(&format!("select launch_as({})", literal(barrier::WAIT)));
    barrier.wait_for(i32::try_from(pid).expect("a process id"));
    let message = format!("too many connections for role \"{owner}\"");
    assert_refused(&mut session, "launch_as($1)", "53300", &message);
    assert_never_ran(&mut admin);
    barrier.open();
    session.run(&format!("select pg_background_result({pid})"));
    // What runs as the definer is not the caller's.
    let message = format!("too many connections for role \"{user}\"");
    assert_refused(&mut session, PLAIN, "53300", &message);
}

#[case]
fn jobs_launched_together_do_not_exceed_the_limit(db: &Db) {
    let mut admin = prepare(db);
    let user = db.role("user", "login connection limit 3");
    let mut session = db.client().user(&user).connect();
    let barrier = Barrier::close(db.session());
    let pids: Vec<i32> = (0..6).map(|_| session.launch(barrier::WAIT)).collect();
    let pids_listed = pids.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
    let at_barrier = format!("select count(*) from pg_locks where pid in ({pids_listed}) and not granted");
    let ended = || pids.iter().filter(|pid| !is_alive(**pid)).count();
    wait_until("every job is at the barrier or refused", || {
        let waiting: usize = admin.value(&at_barrier).parse().expect("a number");
        waiting + ended() == pids.len()
    });
    assert!(ended() >= 4, "only two places were left, {} jobs ended", ended());
    barrier.open();
    let refused = pids.iter().filter(|pid| {
        let reply = session.ask(&format!("select pg_background_result({pid})"));
        reply.error.is_some_and(|error| error.sqlstate() == "53300")
    });
    assert!(refused.count() >= 4);
}

#[case]
fn jobs_count_against_the_connection_limit_of_their_database(db: &Db) {
    let mut admin = prepare(db);
    let (user, name) = (db.role("user", "login"), &db.name);
    let mut session = db.client().user(&user).connect();
    let mut barrier = Barrier::close(db.session());
    // The three sessions and one job; sessions that have ended may still be on their way out.
    let sessions = format!("select count(*) from pg_stat_activity where datname = '{name}'");
    wait_until("three sessions", || admin.value(&sessions) == "3");
    admin.run(&format!("alter database {name} connection limit 4"));
    let pid = launch_at_barrier(&mut session, &mut barrier);
    let message = format!("too many connections for database \"{name}\"");
    assert_refused(&mut session, PLAIN, "53300", &message);
    assert_never_ran(&mut admin);
    assert_eq!(admin.job("select 1", "n int"), ["1"], "a superuser is exempt");
    barrier.open();
    assert_eq!(session.result(pid, "n int"), ["7"]);
    wait_until("the end of the process", || !is_alive(pid));
    assert_eq!(session.job("select 1", "n int"), ["1"]);
}

#[case]
fn superusers_are_exempt_from_connection_limits(db: &Db) {
    let strong = db.role("strong", "login superuser connection limit 0");
    db.session().run(&format!("alter database {} connection limit 0", db.name));
    let mut session = db.client().user(&strong).connect();
    let mut barrier = Barrier::close(db.session());
    let pids: Vec<i32> = (0..3).map(|_| launch_at_barrier(&mut session, &mut barrier)).collect();
    barrier.open();
    for pid in pids {
        assert_eq!(session.result(pid, "n int"), ["7"]);
    }
}

#[case]
fn rights_revoked_after_the_launch_are_revoked_for_the_job(db: &Db) {
    let mut admin = prepare(db);
    let user = db.role("user", "login");
    let mut session = db.client().user(&user).connect();
    let mut barrier = Barrier::close(db.session());
    let pid = session.launch(&format!("begin; {}; commit; {TRACE}", barrier::WAIT));
    barrier.wait_for(pid);
    admin.run("revoke insert on ran from public");
    barrier.open();
    assert_eq!(session.result_error(pid).brief(), ("42501".to_owned(), "permission denied for table ran".to_owned()));
    assert_never_ran(&mut admin);
}
