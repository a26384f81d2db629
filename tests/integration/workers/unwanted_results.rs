//! Workers whose results nobody wants, or has read yet: which of them stay, and what comes of the jobs after those.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::wait_gone;
use crate::support::idle_worker::{read, run_and_wait_idle, terminate_idle_workers, wait_idle};
use pg_background_mgr_tests::cluster::is_alive;
use pg_background_mgr_tests::{case, wait_until, Cluster, Db, Session};

/// Results that jobs may give: little, more than a queue has, an error, nothing; and bytes of their queues.
const JOBS: [(&str, usize); 6] = [
    ("select 1", 65_536),
    ("select generate_series(1, 100000)", 65_536),
    ("select 1 / 0", 65_536),
    ("set work_mem = '1MB'", 65_536),
    ("select 1", 600_000),
    ("select generate_series(1, 100000)", 64),
];

/// Launches a job in a new process that waits at the barrier first.
fn launch_new(session: &mut Session, barrier: &mut Barrier, (text, queue): (&str, usize)) -> i32 {
    let text = format!("{}; {text}", barrier::WAIT);
    let pid = session.number(&format!("select pg_background_launch($sql${text}$sql$, {queue})"));
    let pid = i32::try_from(pid).expect("a process id");
    barrier.wait_for(pid);
    pid
}

#[case]
fn a_new_worker_stays_whose_job_was_given_up(db: &Db) {
    let mut other = db.session();
    for job in JOBS {
        let (mut session, mut barrier) = (db.session(), Barrier::close(db.session()));
        terminate_idle_workers(&mut other);
        let pid = launch_new(&mut session, &mut barrier, job);
        session.run(&format!("select pg_background_detach({pid})"));
        barrier.open();
        wait_idle(&mut other, pid);
        for session in [&mut session, &mut other] {
            assert_eq!(run_and_wait_idle(session, "select 1"), pid, "{job:?}");
        }
        assert_eq!(
            session.result_error(pid).message(),
            format!("result of the job with PID {pid} has already been read")
        );
    }
}

#[case]
fn a_new_worker_stays_whose_launcher_has_gone(db: &Db) {
    let mut other = db.session();
    for job in JOBS {
        let (mut leaving, mut barrier) = (db.session(), Barrier::close(db.session()));
        terminate_idle_workers(&mut other);
        let pid = launch_new(&mut leaving, &mut barrier, job);
        let process = leaving.pid();
        drop(leaving);
        wait_gone(process);
        barrier.open();
        wait_idle(&mut other, pid);
        assert_eq!(run_and_wait_idle(&mut other, "select 1"), pid, "{job:?}");
    }
}

#[case]
fn jobs_after_given_up_ones_give_their_own_results(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    let given_up = [
        "select -1",
        "do $$ begin raise notice 'of another'; end $$; select -2, 'x'",
        "select -3 from generate_series(1, 100)",
        "select repeat('y', 300000)",
        "select i, repeat('z', 100) from generate_series(1, 3000) i",
        "select 1 / 0",
        "",
    ];
    for round in 0..8 {
        for (number, text) in given_up.iter().enumerate() {
            let number = round * 10 + number;
            let pids: Vec<i32> =
                (0..=number % 3).map(|_| session.launch(&format!("insert into ran values (1); {text}"))).collect();
            let before = session.launch(&format!("select {number}, 'before'"));
            for pid in pids {
                session.run(&format!("select pg_background_detach({pid})"));
            }
            let after = session.launch(&format!("do $$ begin raise notice 'own'; end $$; select {number}, 'after'"));
            session.notices();
            for (pid, which) in [(after, "after"), (before, "before")] {
                let outcome = read(&mut session, pid);
                assert_eq!((outcome.rows, outcome.error), (vec![format!("({number},{which})")], None), "{text}");
                let notices: Vec<_> = outcome.notices.iter().map(|notice| notice[&'M'].as_str()).collect();
                assert_eq!(notices, ["own"][..usize::from(which == "after")], "{text}");
            }
        }
    }
    // All have run, but for those whose last statement failed.
    let (mut expected, mut launched) = (0, 0);
    for number in (0..8).flat_map(|round| (0..given_up.len()).map(move |number| round * 10 + number)) {
        launched += number % 3 + 1;
        expected += if number % 10 == 5 { 0 } else { number % 3 + 1 };
    }
    assert!(launched > expected);
    wait_until("all have run", || session.value("select count(*) from ran") == expected.to_string());
}

#[case]
fn what_a_given_up_job_leaves_is_reset(db: &Db) {
    let (mut session, mut barrier) = (db.session(), Barrier::close(db.session()));
    let usual = session.value("show work_mem");
    let leaves = "set work_mem = '77MB'; create temp table mine (a int); prepare p as select 1; \
                  select pg_advisory_lock(99), set_config('my.own', 'x', false)";
    let pid = launch_new(&mut session, &mut barrier, (leaves, 65_536));
    session.run(&format!("select pg_background_detach({pid})"));
    barrier.open();
    wait_idle(&mut session, pid);
    assert_eq!(session.value("select pg_try_advisory_lock(99)"), "t");
    let seen = "select pg_backend_pid(), current_setting('work_mem'), to_regclass('pg_temp.mine'), \
                (select count(*) from pg_prepared_statements), current_setting('my.own', true)";
    let rows = session.job(seen, "pid int, a text, b text, c int8, d text");
    assert!(rows[0].starts_with(&format!("{pid}|{usual}|")), "{rows:?}");
    assert_eq!(rows[0].rsplit('|').nth(1), Some("0"));
    assert!(!rows[0].contains("mine") && !rows[0].ends_with('x'), "{rows:?}");
}

#[case]
fn a_loop_that_gives_up_all_results_finds_workers() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "1h")]);
    let before = cluster.baseline();
    let mut session = cluster.session("postgres");
    session.run("create table ran (pid int)");
    session.run(
        "do $$ begin for i in 1 .. 300 loop \
         perform pg_background_detach(pg_background_launch('insert into ran values (pg_backend_pid())')); \
         end loop; end $$",
    );
    wait_until("all have run", || session.value("select count(*) from ran") == "300");
    let workers = session.number("select count(distinct pid) from ran");
    assert!(workers < 150, "{workers} processes for 300 jobs");
    drop(session);
    cluster.assert_sound(&before);
}

/// Ends the wait of a session that polls until a job's process has gone, before the idle timeout.
#[case]
fn a_worker_with_an_unread_result_goes() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "1h")]);
    let before = cluster.baseline();
    let mut session = cluster.session("postgres");
    // A new process, and one that has had a job.
    for _ in 0..2 {
        let pid = session.launch("select 7");
        wait_gone(pid);
        assert_eq!(session.result(pid, "n int"), ["7"]);
        let pid = session.launch("select 8");
        assert_eq!(session.result(pid, "n int"), ["8"]);
        wait_idle(&mut session, pid);
        assert!(is_alive(pid), "a worker stays whose result was read");
    }
    drop(session);
    cluster.assert_sound(&before);
}
