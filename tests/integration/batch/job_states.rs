//! States of jobs while they run and end: nothing runs but what has a worker, and what has ended stays ended.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{states_after, stop, times, wait_at_barrier, Batch, ENDED};
use pg_background_mgr_tests::env::forced_parallel;
use pg_background_mgr_tests::{case, wait_until, Cluster, Db, Session};
use std::collections::{HashMap, HashSet};

/// Every column that tells what came of a job.
const WHOLE: &str =
    "uuid_child, status, pid, name, query, result, start_time_exec, end_time_exec, attempts, row_count, \
    command_tag, sqlstate, message, detail, hint, context";

/// A job as somebody sees it.
struct Seen {
    child: String,
    parent: String,
    status: String,
    pid: String,
}

fn look(session: &mut Session, query: &str) -> Vec<Seen> {
    let rows = session.rows(query);
    let seen = rows.iter().map(|row| {
        let mut parts = row.split('|').map(str::to_owned);
        let mut next = || parts.next().expect("four columns");
        Seen { child: next(), parent: next(), status: next(), pid: next() }
    });
    seen.collect()
}

/// Record of the jobs that have been seen so far.
#[derive(Default)]
struct Witness {
    ends: HashMap<String, String>,
    looks: usize,
}

impl Witness {
    /// A job has one state at a time; what has ended stays as it is; each worker runs one job.
    fn check(&mut self, seen: &[Seen], workers: usize, limits: &[(&Batch, usize)]) {
        self.looks += 1;
        let running: Vec<&Seen> = seen.iter().filter(|job| job.status == "running").collect();
        let pids: HashSet<&str> = running.iter().map(|job| job.pid.as_str()).collect();
        assert_eq!(pids.len(), running.len(), "one job for each worker, look {}", self.looks);
        assert!(!pids.contains("∅"), "what runs has a worker");
        assert!(running.len() <= workers, "{} jobs run, look {}", running.len(), self.looks);
        for (batch, limit) in limits {
            let count = running.iter().filter(|job| job.parent == batch.parent).count();
            assert!(count <= *limit, "{count} jobs of a batch run, look {}", self.looks);
        }
        let children: HashSet<&str> = seen.iter().map(|job| job.child.as_str()).collect();
        assert_eq!(children.len(), seen.len(), "each job is there once");
        for job in seen {
            let has_ended = ENDED.contains(&format!("'{}'", job.status));
            match self.ends.get(&job.child) {
                Some(end) => assert_eq!(&job.status, end, "what has ended stays so, look {}", self.looks),
                None if has_ended => drop(self.ends.insert(job.child.clone(), job.status.clone())),
                None => {}
            }
        }
    }
}

#[case(oldest_and_newest)]
fn only_what_has_a_worker_runs() {
    const WORKERS: usize = 3;
    const JOBS: usize = 600;
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.max_workers", "3")]);
    let mut session = cluster.session("postgres");
    session.run("create table ran (a int)");
    let mut watchers: Vec<Session> = (0..3).map(|_| cluster.session("postgres")).collect();
    let mut witness = Witness::default();
    while witness.looks < 200 {
        let narrow =
            Batch::launch_with(&mut session, &times("insert into ran values (1)", JOBS), r#"{"max_workers": 2}"#);
        let wide = Batch::launch(&mut session, &times("select 1", JOBS));
        let of_both = format!("where uuid_parent in ('{}', '{}')", narrow.parent, wide.parent);
        let mut ended = HashMap::new();
        loop {
            for (watcher, source) in
                watchers.iter_mut().zip(["pg_background_jobs", "log_background", "pg_background_monitor()"])
            {
                let query = format!("select uuid_child, uuid_parent, status, pid from {source} {of_both}");
                let seen = look(watcher, &query);
                assert_eq!(seen.len(), 2 * JOBS, "{source}");
                witness.check(&seen, WORKERS, &[(&narrow, 2), (&wide, WORKERS)]);
            }
            let counts = format!(
                "select uuid_parent, running, succeeded, total, \
                 queued + running + succeeded + failed + stopped + lost, \
                 percent = round(100.0 * (succeeded + failed + stopped + lost) / total, 1), \
                 (estimate is not null) = (succeeded > 0 and succeeded < total) from pg_background_batches {of_both}"
            );
            let mut all = true;
            for row in watchers[0].rows(&counts) {
                let parts: Vec<&str> = row.split('|').collect();
                let numbers: Vec<usize> = parts[1..5].iter().map(|number| number.parse().expect("a number")).collect();
                let limit = if parts[0] == narrow.parent { 2 } else { WORKERS };
                assert!(numbers[0] <= limit, "{row}");
                assert_eq!(numbers[2..], [JOBS, JOBS], "{row}");
                assert_eq!(parts[5..], ["t", "t"], "{row}");
                let before = ended.insert(parts[0].to_owned(), numbers[1]).unwrap_or(0);
                assert!(before <= numbers[1], "what has ended stays so: {before}, {row}");
                all &= numbers[1] == JOBS;
            }
            if all {
                break;
            }
        }
    }
}

/// A worker runs one job also where a query comes to batches one after the other.
#[case]
fn each_worker_runs_one_job() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.max_workers", "3")]);
    let mut session = cluster.session("postgres");
    let mut watcher = cluster.session("postgres");
    let mut witness = Witness::default();
    while witness.looks < 100 {
        // In turns, so that each worker goes from batch to batch.
        let batches: Vec<Batch> = (0..40).map(|_| Batch::launch(&mut session, &times("select 1", 10))).collect();
        let parents: Vec<&str> = batches.iter().map(|batch| batch.parent.as_str()).collect();
        let query = format!(
            "select uuid_child, uuid_parent, status, pid from pg_background_jobs where uuid_parent = any ('{{{}}}')",
            parents.join(",")
        );
        loop {
            let seen = look(&mut watcher, &query);
            assert_eq!(seen.len(), 400);
            witness.check(&seen, 3, &[]);
            if seen.iter().all(|job| job.status == "succeeded") {
                break;
            }
        }
    }
}

/// A transaction that began before sees that what has ended has ended, with all that came of it.
#[case]
fn an_old_snapshot_shows_how_jobs_have_ended(db: &Db) {
    let (mut session, mut old, barrier) = (db.session(), db.session(), Barrier::close(db.session()));
    session.run("create table ran (a int)");
    let insert = format!("{}; insert into ran values (1) returning a", barrier::WAIT);
    let late = format!("{}; select 1 / 0", barrier::WAIT);
    let texts = [
        insert.as_str(),
        &late,
        "select 'x' as a",
        "do $$ begin raise exception 'm' using detail = 'd', hint = 'h'; end $$",
    ];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"max_workers": 2}"#);
    wait_at_barrier(&mut session, 2);
    // None of the rows is final.
    assert_eq!(batch.written(&mut session), times("queued", 4));
    old.run("begin isolation level repeatable read");
    assert_eq!(old.value("select count(*) from log_background"), "4");
    let after = Batch::launch(&mut session, &["select 1 as b", "select 2 / 0"]);
    barrier.open();
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed", "succeeded", "failed"]);
    assert_eq!(after.finish(&mut session), ["succeeded", "failed"]);
    let whole = |batch: &Batch| {
        format!("select {WHOLE} from log_background where uuid_parent = '{}' order by uuid_child", batch.parent)
    };
    for batch in [&batch, &after] {
        let now = session.rows(&whole(batch));
        assert_eq!(old.rows(&whole(batch)), now, "as long as the server knows them");
    }
    let known = format!("select count(*) from background_mgr.live() where uuid_parent = '{}'", batch.parent);
    let runs = "select count(*) from background_mgr.live() where status in ('queued', 'running') and is_recorded \
                and database = (select oid from pg_database where datname = current_database())";
    wait_until("the server has forgotten them", || {
        assert_eq!(old.rows(runs), ["0"]);
        session.value(&known) == "0"
    });
    assert_eq!(old.rows(&whole(&batch)), session.rows(&whole(&batch)));
    let counts = format!(
        "select queued, running, succeeded, failed, total, percent from pg_background_batches where uuid_parent = '{}'",
        batch.parent
    );
    assert_eq!(old.rows(&counts), ["0|0|2|2|4|100.0"]);
}

#[case]
fn a_row_that_was_deleted_is_not_seen_to_run(db: &Db) {
    let (mut session, mut old, barrier) = (db.session(), db.session(), Barrier::close(db.session()));
    let batch = Batch::launch(&mut session, &[barrier::WAIT]);
    wait_at_barrier(&mut session, 1);
    old.run("begin isolation level repeatable read");
    assert_eq!(batch.states(&mut old), ["running"]);
    barrier.open();
    batch.succeed(&mut session);
    session.run("delete from log_background");
    let known = format!("select count(*) from background_mgr.live() where uuid_parent = '{}'", batch.parent);
    wait_until("the server has forgotten it", || {
        let states = batch.states(&mut old);
        assert!(states.is_empty() || states == ["succeeded"], "{states:?}");
        session.value(&known) == "0"
    });
    assert_eq!(batch.states(&mut old), [""; 0]);
}

#[case]
fn what_was_stopped_is_stopped_for_everybody(db: &Db) {
    let (mut session, mut old, mut watcher) = (db.session(), db.session(), db.session());
    let barrier = Barrier::close(db.session());
    let batch = Batch::launch_with(&mut session, &times(barrier::WAIT, 300), r#"{"max_workers": 2}"#);
    wait_at_barrier(&mut session, 2);
    let known = format!("select count(*) from background_mgr.live() where uuid_parent = '{}'", batch.parent);
    old.run("begin isolation level repeatable read");
    assert_eq!(old.value("select count(*) from log_background where status = 'running'"), "2");
    assert_eq!(states_after(&stop(&mut session, &batch.parent, None)), times("stopped", 300));
    wait_until("the server has forgotten them", || {
        for (who, looker) in [("another session", &mut watcher), ("an old snapshot", &mut old)] {
            for source in ["log_background", "pg_background_jobs", "pg_background_monitor()"] {
                let states = format!("select distinct status from {source} where uuid_parent = '{}'", batch.parent);
                assert_eq!(looker.rows(&states), ["stopped"], "{who}, {source}");
            }
        }
        session.value(&known) == "0"
    });
    assert_eq!(old.value("select count(*) from log_background where status = 'stopped'"), "300");
    barrier.open();
}

/// Reading a row as it is now takes a snapshot, which a process that leads parallel workers may not.
#[case]
fn views_are_read_beside_a_parallel_plan(db: &Db) {
    let (mut session, mut old, barrier) = (db.session(), db.session(), Barrier::close(db.session()));
    session.run("create table big as select g as a from generate_series(1, 1000) as g; analyze big");
    let batch = Batch::launch(&mut session, &[barrier::WAIT]);
    wait_at_barrier(&mut session, 1);
    old.run(&format!(
        "begin isolation level repeatable read; set local {} = on; set local parallel_setup_cost = 0; \
         set local parallel_tuple_cost = 0; set local min_parallel_table_scan_size = 0",
        forced_parallel()
    ));
    assert_eq!(batch.states(&mut old), ["running"]);
    barrier.open();
    batch.succeed(&mut session);
    let known = format!("select count(*) from background_mgr.live() where uuid_parent = '{}'", batch.parent);
    wait_until("the server has forgotten it", || session.value(&known) == "0");
    assert!(old.rows("explain (costs off) select count(*) from big").concat().contains("Gather"));
    for view in ["log_background", "pg_background_jobs", "pg_background_batches"] {
        // Of this batch: a superuser sees what runs in all databases.
        let own = format!("from {view} as v where uuid_parent = '{}'", batch.parent);
        let query = format!(
            "select (select count(*) from big), (select count(*) {own}), (select min(v::text) is not null {own})"
        );
        assert_eq!(old.rows(&query), ["1000|1|t"], "{view}");
    }
}
