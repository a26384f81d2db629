//! A worker that has nothing to do is in nobody's way, and is what a new one would be.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{times, wait_at_barrier, wait_gone, Batch};
use crate::support::idle_worker::{
    get_idle_worker, run, run_and_wait_idle, terminate_idle_workers, wait_idle, Outcome,
};
use pg_background_mgr_tests::cluster::is_alive;
use pg_background_mgr_tests::{case, wait_until, Cluster, Db, Session, Stop};

/// The workers leave by themselves, though nobody has a job for them and none would be theirs.
#[case]
fn workers_leave_when_their_role_or_the_extension_changes() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "1h")]);
    let mut admin = cluster.session("postgres");
    admin.run("create role weak login; create role other; select pg_background_grant('weak')");
    // Of a session, and of the queue.
    let workers = |user: &str| {
        let mut session = cluster.client("postgres").user(user).connect();
        let direct = get_idle_worker(&mut session);
        let mut barrier = Barrier::close(cluster.session("postgres"));
        assert_eq!(session.launch(barrier::WAIT), direct);
        barrier.wait_for(direct);
        let batch = Batch::launch(&mut session, &["select 1"]);
        batch.succeed(&mut session);
        let queued = batch.log(&mut session, 0, "pid").parse().expect("a process id");
        barrier.open();
        session.result(direct, "a text");
        [direct, queued].map(|pid| {
            wait_idle(&mut session, pid);
            pid
        })
    };
    for change in [
        "alter role weak nologin; alter role weak login",
        "alter role weak set work_mem = '5MB'",
        "alter database postgres set work_mem = '6MB'",
        "revoke connect on database postgres from public",
    ] {
        let pids = workers("weak");
        admin.run(change);
        pids.into_iter().for_each(wait_gone);
        admin.run("grant connect on database postgres to public");
    }
    let pids = workers("weak");
    admin.run("select pg_background_revoke('weak'); drop owned by weak; drop role weak");
    pids.into_iter().for_each(wait_gone);
    // What concerns them not leaves them alone.
    let [direct, queued] = workers("postgres");
    admin.run("alter role other set work_mem = '7MB'; drop role other; create table ran (a int)");
    assert!(is_alive(direct) && is_alive(queued));
    // A worker of the queue is one of the extension that it found.
    admin.run("drop extension pg_background_mgr");
    wait_gone(queued);
    admin.run("create extension pg_background_mgr");
    Batch::launch(&mut admin, &["select 1"]).succeed(&mut admin);
}

/// Runs `command` outside of a database that sessions have just left and idle workers have not.
#[track_caller]
fn assert_at_once(db: &Db, command: &str) {
    let mut outside = db.cluster.session("postgres");
    // The server itself waits five seconds for others to leave.
    outside.run("set statement_timeout = '3s'");
    outside.run(command);
}

/// A database of which only workers that have nothing to do are left; their processes.
#[track_caller]
fn left_to_workers(db: &Db, name: &str) -> Vec<i32> {
    db.cluster.session("postgres").run(&format!("create database {name} template prepared"));
    let mut session = db.cluster.session(name);
    let workers: Vec<i32> = (0..2).map(|_| session.launch("select 1")).collect();
    for pid in &workers {
        session.result(*pid, "n int");
        wait_idle(&mut session, *pid);
    }
    let pid = session.pid();
    drop(session);
    wait_gone(pid);
    assert!(workers.iter().all(|pid| is_alive(*pid)));
    workers
}

#[case]
fn a_database_is_dropped_at_once(db: &Db) {
    let name = format!("{}_other", db.name);
    for _ in 0..3 {
        let workers = left_to_workers(db, &name);
        assert_at_once(db, &format!("drop database {name}"));
        workers.into_iter().for_each(wait_gone);
    }
}

#[case]
fn a_database_is_renamed_at_once(db: &Db) {
    let (name, new) = (format!("{}_other", db.name), format!("{}_new", db.name));
    left_to_workers(db, &name);
    assert_at_once(db, &format!("alter database {name} rename to {new}"));
    assert_eq!(db.cluster.session(&new).job("select current_database()", "name name"), std::slice::from_ref(&new));
    wait_until("the session has gone", || db.session().ask(&format!("drop database {new}")).error.is_none());
}

#[case]
fn a_database_is_copied_at_once(db: &Db) {
    let (name, copy) = (format!("{}_other", db.name), format!("{}_copy", db.name));
    left_to_workers(db, &name);
    assert_at_once(db, &format!("create database {copy} template {name}"));
    assert_at_once(db, &format!("drop database {copy}"));
    assert_at_once(db, &format!("drop database {name}"));
}

/// A role with a worker that has nothing to do, and a session of it; its name.
#[track_caller]
fn role_with_worker(db: &Db) -> (Session, String) {
    let role = format!("{}_user", db.name);
    let mut admin = db.session();
    admin.run(&format!("create role {role} login"));
    admin.run("grant execute on all functions in schema public to public");
    admin.run("create table ran (a int); grant insert on ran to public");
    let mut session = db.client().user(&role).connect();
    get_idle_worker(&mut session);
    (session, role)
}

/// A job of `session` fails as it does in a new process, and runs nothing.
#[track_caller]
fn assert_refused(db: &Db, session: &mut Session, sqlstate: &str) {
    let text = "insert into public.ran values (1)";
    let mut admin = db.session();
    let (_, outcome) = run(session, text);
    assert_eq!(outcome.error.as_ref().expect("an error")[&'C'], sqlstate, "{outcome:?}");
    terminate_idle_workers(&mut admin);
    assert_eq!(run(session, text).1, outcome, "as in a new process");
    assert_eq!(admin.value("select count(*) from public.ran"), "0");
}

#[case]
fn a_dropped_role_runs_nothing(db: &Db) {
    let (mut session, role) = role_with_worker(db);
    db.session().run(&format!("drop role {role}"));
    assert_refused(db, &mut session, "28000");
}

/// Between `take` and `give` the role runs nothing in the worker that it has; then it does again. The role is dropped.
#[track_caller]
fn assert_refused_between(db: &Db, user: (Session, String), take: &str, give: &str, sqlstate: &str) {
    let (mut session, role) = user;
    let mut admin = db.session();
    admin.run(take);
    assert_refused(db, &mut session, sqlstate);
    admin.run(give);
    assert_eq!(session.job("select 1", "n int"), ["1"]);
    drop(session);
    admin.run(&format!("drop role {role}"));
}

#[case]
fn a_role_that_may_not_log_in_any_more_runs_nothing(db: &Db) {
    let user = role_with_worker(db);
    let (take, give) = (format!("alter role {} nologin", user.1), format!("alter role {} login", user.1));
    assert_refused_between(db, user, &take, &give, "28000");
}

#[case]
fn a_role_without_connect_runs_nothing(db: &Db) {
    let name = &db.name;
    let take = format!("revoke connect on database {name} from public");
    let give = format!("grant connect on database {name} to public");
    assert_refused_between(db, role_with_worker(db), &take, &give, "42501");
}

#[case]
fn a_role_that_is_no_superuser_any_more_has_no_such_job(db: &Db) {
    let (mut session, role) = role_with_worker(db);
    let mut admin = db.session();
    let who = "select current_setting('is_superuser'), (select rolsuper from pg_roles where rolname = current_user)";
    for (option, expected) in [("superuser", "(on,t)"), ("nosuperuser", "(off,f)"), ("superuser", "(on,t)")] {
        admin.run(&format!("alter role {role} {option}"));
        for _ in 0..3 {
            assert_eq!(run(&mut session, who).1.rows, [expected], "{option}");
        }
    }
    // A worker that came before the commit is not what one would be after it.
    session.run(&format!("begin; alter role {role} nosuperuser"));
    for _ in 0..3 {
        assert_eq!(run(&mut session, who).1.rows, ["(on,t)"]);
    }
    session.run("commit");
    for _ in 0..3 {
        assert_eq!(run(&mut session, who).1.rows, ["(off,f)"]);
    }
    // Rights that it has by another role are looked at when they are used.
    admin.run(&format!(
        "alter role {role} nosuperuser; create table secret as select 7 a; create role {role}_group; \
                        grant select on secret to {role}_group"
    ));
    let pid = get_idle_worker(&mut session);
    let read = "select a from secret";
    assert_eq!(run(&mut session, read).1.error.expect("an error")[&'C'], "42501");
    admin.run(&format!("grant {role}_group to {role}"));
    assert_eq!(
        run(&mut session, read),
        (pid, Outcome { rows: vec!["(7)".to_owned()], error: None, notices: Vec::new() })
    );
    admin.run(&format!("revoke {role}_group from {role}"));
    assert_eq!(run(&mut session, read).1.error.expect("an error")[&'C'], "42501");
    drop(session);
    admin.run(&format!("drop table secret; drop role {role}_group, {role}"));
}

/// Asserts that a job has at once what a new session has of a setting.
#[track_caller]
fn assert_has(session: &mut Session, expected: &str) {
    let shown = "select concat_ws(' ', current_setting('my.own', true), current_setting('work_mem'))";
    for _ in 0..3 {
        assert_eq!(session.job(shown, "a text"), [expected]);
    }
}

#[case]
fn new_settings_of_the_role_and_the_database_hold(db: &Db) {
    let (mut session, role) = role_with_worker(db);
    let (mut admin, name) = (db.session(), &db.name);
    for (change, expected) in [
        (format!("alter role {role} set work_mem = '5MB'"), "5MB"),
        (format!("alter role {role} set work_mem = '6MB'"), "6MB"),
        (format!("alter database {name} set my.own = 'database'"), "database 6MB"),
        (format!("alter role {role} in database {name} set my.own = 'both'"), "both 6MB"),
        (format!("alter role {role} reset work_mem"), "both 4MB"),
        (format!("alter database {name} set work_mem = '7MB'"), "both 7MB"),
        (format!("alter role {role} in database {name} reset all"), "database 7MB"),
        (format!("alter database {name} reset all"), "4MB"),
    ] {
        admin.run(&change);
        assert_has(&mut session, expected);
    }
    drop(session);
    admin.run(&format!("drop role {role}"));
}

#[case]
fn settings_that_are_not_committed_change_nothing_for_others(db: &Db) {
    let (mut session, role) = role_with_worker(db);
    let (mut admin, name) = (db.session(), &db.name);
    // For the session that changes them neither: its job is another session.
    let mut own = db.session();
    admin.run(&format!("begin; alter role {role} set work_mem = '5MB'; alter database {name} set work_mem = '6MB'"));
    assert_has(&mut session, "4MB");
    assert_has(&mut admin, "4MB");
    assert_has(&mut own, "4MB");
    admin.run("rollback");
    for session in [&mut session, &mut admin, &mut own] {
        assert_has(session, "4MB");
    }
    admin.run(&format!("begin; alter database {name} set work_mem = '6MB'"));
    assert_has(&mut admin, "4MB");
    admin.run("commit");
    for session in [&mut session, &mut admin, &mut own] {
        assert_has(session, "6MB");
    }
    drop(session);
    admin.run(&format!("drop role {role}"));
}

#[case]
fn the_extension_is_dropped_and_made_again(db: &Db) {
    let mut session = db.session();
    for schema in ["public", "elsewhere", "public"] {
        session.run(&format!("create schema if not exists elsewhere; set search_path = {schema}"));
        session.run(&format!("drop extension pg_background_mgr; create extension pg_background_mgr schema {schema}"));
        for _ in 0..3 {
            let result = "select a from pg_background_result(pg_background_launch('select 7')) as (a int)";
            assert_eq!(session.value(result), "7");
        }
        let ended = "select status from pg_background_launch_num(array['select 1', 'select 2'], p_exec_type => 'sync')";
        assert_eq!(session.rows(ended), ["succeeded", "succeeded"], "{schema}");
        assert_eq!(session.value("select count(*) from log_background where status = 'succeeded'"), "2");
        // While results are unread, too.
        session.run("create table kept as select pg_background_launch('select 8') pid");
        session.run(&format!("drop extension pg_background_mgr; create extension pg_background_mgr schema {schema}"));
        assert_eq!(session.value("select a from kept, pg_background_result(pid) as (a int)"), "8");
        session.run("drop table kept");
    }
}

#[case]
fn a_new_configuration_holds() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "1h")]);
    let mut plain = cluster.session("postgres");
    let mut set = cluster.client("postgres").parameter("options", "-c work_mem=9MB").connect();
    plain.run("load 'pg_background_mgr'");
    let shown = "select current_setting('work_mem') || ' ' || current_setting('maintenance_work_mem')";
    for value in ["5MB", "6MB", "7MB"] {
        // Each may have one of its own since.
        terminate_idle_workers(&mut plain);
        let pid = get_idle_worker(&mut plain);
        assert_eq!(run_and_wait_idle(&mut set, "select 1"), pid);
        cluster.configure(&[("work_mem", value), ("maintenance_work_mem", value)]);
        cluster.reload();
        wait_until("the new configuration", || plain.value("show work_mem") == value);
        wait_until("it is the job's", || plain.job(shown, "a text") == [format!("{value} {value}")]);
        wait_until("and the other one's", || set.job(shown, "a text") == [format!("9MB {value}")]);
        assert_eq!(plain.job(shown, "a text"), [format!("{value} {value}")]);
    }
    // An idle timeout of zero sends away those that are idle already, and none stays.
    let pids = [plain.launch("select 1"), plain.launch("select 1")];
    for pid in pids {
        plain.result(pid, "n int");
        wait_idle(&mut plain, pid);
    }
    cluster.configure(&[("pg_background_mgr.worker_idle_timeout", "0")]);
    cluster.reload();
    pids.into_iter().for_each(wait_gone);
    wait_until("the new configuration", || plain.value("show pg_background_mgr.worker_idle_timeout") == "0");
    for _ in 0..3 {
        let pid = plain.launch("select 1");
        plain.result(pid, "n int");
        wait_gone(pid);
    }
}

#[case]
fn another_role_gets_the_processes() {
    let cluster = Cluster::start_with_extension(&[
        ("max_worker_processes", "4"),
        ("max_logical_replication_workers", "0"),
        ("pg_background_mgr.reserved_workers", "0"),
        ("pg_background_mgr.worker_idle_timeout", "1h"),
    ]);
    let mut admin = cluster.session("postgres");
    admin.run("create role weak login; select pg_background_grant('weak')");
    let mut weak = cluster.client("postgres").user("weak").connect();
    for round in 0..4 {
        // All four have had something to do, for one role; as many stay as may.
        let session = if round % 2 == 0 { &mut admin } else { &mut weak };
        let batch = Batch::launch(session, &times("select pg_sleep(0.01)", 12));
        batch.succeed(session);
        let session = if round % 2 == 0 { &mut weak } else { &mut admin };
        let barrier = Barrier::close(cluster.session("postgres"));
        let pids: Vec<i32> = (0..4).map(|_| session.launch(barrier::WAIT)).collect();
        wait_at_barrier(session, 4);
        assert_eq!(session.error("select pg_background_launch('select 1')").sqlstate(), "53000");
        barrier.open();
        for pid in pids {
            session.result(pid, "a text");
        }
    }
    // Two roles by turns, with one more than fits.
    for _ in 0..10 {
        for session in [&mut admin, &mut weak] {
            let pids: Vec<i32> = (0..3).map(|n| session.launch(&format!("select {n}"))).collect();
            for (n, pid) in pids.into_iter().enumerate() {
                assert_eq!(session.result(pid, "n int"), [n.to_string()]);
            }
        }
    }
}

#[case]
fn the_worker_that_is_idle_for_longest_makes_room() {
    // Two may be idle.
    let cluster = Cluster::start_with_extension(&[
        ("max_worker_processes", "6"),
        ("max_logical_replication_workers", "0"),
        ("pg_background_mgr.worker_idle_timeout", "1h"),
    ]);
    let mut admin = cluster.session("postgres");
    admin.run("create role a login; create role b login; select pg_background_grant('a'), pg_background_grant('b')");
    let mut sessions = [cluster.client("postgres").user("a").connect(), cluster.client("postgres").user("b").connect()];
    let [a, b] = [0, 1].map(|number| get_idle_worker(&mut sessions[number]));
    let third = get_idle_worker(&mut admin);
    wait_gone(a);
    for _ in 0..3 {
        assert_eq!(run_and_wait_idle(&mut admin, "select 1"), third);
        assert_eq!(run_and_wait_idle(&mut sessions[1], "select 1"), b);
    }
    get_idle_worker(&mut sessions[0]);
    wait_gone(third);
    // One that is not what a login of now would be goes when there is another.
    admin.run("alter role b set work_mem = '5MB'");
    let next = get_idle_worker(&mut sessions[1]);
    wait_gone(b);
    assert_eq!(run_and_wait_idle(&mut sessions[1], "select 1"), next);
    // However many come, two stay.
    let pids: Vec<i32> = (0..4).map(|_| admin.launch("select 1")).collect();
    for pid in &pids {
        admin.result(*pid, "n int");
    }
    let left = "select count(*) from pg_stat_activity where backend_type = 'pg_background'";
    wait_until("two are left", || admin.number(left) == 2);
}

#[case]
fn a_parallel_query_gets_its_workers() {
    let cluster = Cluster::start_with_extension(&[
        ("max_worker_processes", "8"),
        ("pg_background_mgr.worker_idle_timeout", "1h"),
    ]);
    let mut session = cluster.session("postgres");
    session.run("create table t as select generate_series(1, 50000) a; analyze t");
    let barrier = Barrier::close(cluster.session("postgres"));
    let pids: Vec<i32> = (0..6).map(|_| session.launch(barrier::WAIT)).collect();
    wait_at_barrier(&mut session, 6);
    barrier.open();
    for pid in pids {
        session.result(pid, "a text");
    }
    Batch::launch(&mut session, &times("select pg_sleep(0.01)", 20)).succeed(&mut session);
    let idle = "select count(*) from pg_stat_activity where backend_type = 'pg_background'";
    wait_until("those that are too many have gone", || session.number(idle) <= 3);
    assert!(session.number(idle) > 0, "one stays");
    session.run(
        "set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0; \
                 set max_parallel_workers_per_gather = 4",
    );
    let explain = "explain (analyze, costs off, timing off, summary off) select count(*) from t";
    wait_until("the postmaster knows", || {
        let plan = session.rows(explain).join("\n");
        assert!(plan.contains("Workers Planned: 4"), "{plan}");
        plan.contains("Workers Launched: 4")
    });
    for _ in 0..3 {
        assert!(session.rows(explain).iter().any(|line| line.contains("Workers Launched: 4")));
    }
}

#[case]
fn servers_stop_at_once() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "1h")]);
    for how in [Stop::Fast, Stop::Smart, Stop::Immediate] {
        let mut session = cluster.session("postgres");
        let mark = cluster.log_mark();
        let (first, second) = (session.launch("select 1"), session.launch("select 2"));
        for pid in [first, second] {
            session.result(pid, "n int");
            wait_idle(&mut session, pid);
        }
        Batch::launch(&mut session, &["select 1", "select 1 / 0"]).wait(&mut session);
        // One whose result is unread.
        session.launch("select generate_series(1, 100000)");
        drop(session);
        cluster.stop(how);
        let bad: Vec<String> =
            cluster.log_since(mark).into_iter().filter(|line| line.kind == "PANIC").map(|line| line.text).collect();
        assert!(bad.is_empty(), "{bad:?}");
        cluster.start();
    }
}

#[case]
fn a_connection_limit_holds_for_each_job(db: &Db) {
    let role = db.role("limited", "login connection limit 2");
    let mut session = db.client().user(&role).connect();
    for _ in 0..3 {
        assert_eq!(session.job("select 1", "n int"), ["1"]);
    }
    let other = db.client().user(&role).connect();
    assert_eq!(session.job_error("select 1").sqlstate(), "53300");
    drop(other);
    wait_until("a free connection", || {
        let launch = "select * from pg_background_result(pg_background_launch('select 1')) as (n int)";
        session.ask(launch).error.is_none()
    });
}
