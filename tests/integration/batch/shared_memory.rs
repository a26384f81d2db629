//! Dynamic shared memory: what the queue takes is given back, and there is too little of it.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{counts, drain, load, set_server, wait_at_barrier, Batch, WORKERS};
use pg_background_mgr_tests::server_log::LogLine;
use pg_background_mgr_tests::{case, wait_until, Cluster, Session, Stop};

/// A call that launches so many jobs with a text of 100 kB each.
fn long_jobs(count: usize) -> String {
    format!(
        "pg_background_launch_num((select array_agg('select ' || i || ' --' || repeat('x', 100000)) \
         from generate_series(1, {count}) i))"
    )
}

/// Bytes of all segments.
fn bytes(cluster: &Cluster) -> u64 {
    let sizes = cluster.segments();
    let size = |name: &String| name.split_once('(')?.1.split_once(' ')?.0.parse::<u64>().ok();
    sizes.iter().filter_map(size).sum()
}

#[case]
fn a_large_batch_gives_its_memory_back() {
    // Also when its workers go at once.
    for timeout in ["0", "1s"] {
        let cluster = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", timeout)]);
        let mut session = cluster.session("postgres");
        Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
        for _ in 0..2 {
            let batch = Batch::call(&mut session, &long_jobs(150));
            assert!(bytes(&cluster) > 15_000_000, "{:?}", cluster.segments());
            batch.succeed(&mut session);
            // The sessions that have launched it and followed it are still there.
            wait_until("no worker", || session.value(WORKERS) == "0");
            wait_until("the memory", || bytes(&cluster) < 3_000_000);
        }
        assert_eq!(counts(&mut session, "true"), ["succeeded 301"]);
    }
}

#[case]
fn a_large_batch_runs_and_is_looked_at() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.max_workers", "6")]);
    let (mut session, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    load(&mut session);
    let held: Vec<Batch> = (0..6).map(|_| Batch::launch(&mut session, &[barrier::WAIT])).collect();
    wait_at_barrier(&mut session, 6);
    // More of them than there are segments for.
    let batches: Vec<Batch> = (0..40).map(|_| Batch::call(&mut session, &long_jobs(10))).collect();
    let mut other = cluster.session("postgres");
    let seen = "select count(*), min(length(query)) from pg_background_jobs where status = 'queued'";
    assert_eq!(other.rows(seen), ["400|100011"]);
    assert_eq!(other.value(&format!("select count(*) from pg_background_stop('{}')", batches[1].parent)), "10");
    barrier.open();
    drain(&mut session);
    assert_eq!(counts(&mut other, "true"), ["stopped 10", "succeeded 396"]);
    assert_eq!(other.value(&format!("select count(*) from pg_background_retry('{}')", batches[1].parent)), "10");
    batches[1].succeed(&mut other);
    assert_eq!(held[0].states(&mut session), ["succeeded"]);
    set_server(&cluster, &mut session, "pg_background_mgr.worker_idle_timeout", "0");
    wait_until("no worker", || session.value(WORKERS) == "0");
}

/// A server with so much more dynamic shared memory than it takes itself, and a session. None = it cannot be had.
fn with_little_memory(kilobytes: u32) -> Option<(Cluster, Session)> {
    let mut cluster = Cluster::start_with_extension(&[]);
    let mut session = cluster.session("postgres");
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    drop(session);
    cluster.restart();
    drop(cluster.session("postgres"));
    let own = bytes(&cluster).div_ceil(1024) as u32;
    cluster.stop(Stop::Fast);
    if !cluster.limit_shared_memory(own + kilobytes) {
        eprintln!("skipped: only root can limit the shared memory of a server");
        return None;
    }
    cluster.start();
    let session = cluster.session("postgres");
    Some((cluster, session))
}

#[track_caller]
fn assert_refused(session: &mut Session, query: &str, states: &[&str]) {
    let error = session.error(query);
    assert!(states.contains(&error.sqlstate().as_str()), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("/dev/shm") && hint.contains("--shm-size")), "{error}");
}

#[case]
fn a_batch_that_does_not_fit_is_refused() {
    let Some((cluster, mut session)) = with_little_memory(8 * 1024) else { return };
    for _ in 0..3 {
        assert_refused(&mut session, &format!("select * from {}", long_jobs(150)), &["53200"]);
        assert_refused(&mut session, "select pg_background_launch('select 1', 64 * 1024 * 1024)", &["53100", "58P01"]);
        // What fits runs.
        Batch::call(&mut session, &long_jobs(30)).succeed(&mut session);
        assert_eq!(session.job("select 1", "a int"), ["1"]);
    }
    assert_eq!(counts(&mut session, "true"), ["succeeded 91"]);
    cluster.stop(Stop::Fast);
}

#[case]
fn without_memory_for_the_queue_the_log_is_read() {
    let Some((cluster, mut session)) = with_little_memory(700) else { return };
    let mark = cluster.log_mark();
    assert_eq!(session.rows("select status, query from log_background"), ["succeeded|select 1"]);
    assert_eq!(session.value("select count(*) from pg_background_jobs where status = 'running'"), "0");
    assert_eq!(session.value("select count(*) from pg_background_batches"), "1");
    for _ in 0..3 {
        assert_eq!(session.job("select 1", "a int"), ["1"]);
    }
    let pid = session.launch("select 2");
    session.run(&format!("select pg_background_detach({pid})"));
    wait_until("no worker", || session.value(WORKERS) == "0");
    let is_bad = |line: &LogLine| ["ERROR", "FATAL", "PANIC", "exited"].iter().any(|word| line.text.contains(word));
    let bad: Vec<_> = cluster.log_since(mark).into_iter().filter(is_bad).collect();
    assert!(bad.is_empty(), "{bad:?}");
    assert_refused(&mut session, "select * from pg_background_launch_num(array['select 1'])", &["53200"]);
    cluster.stop(Stop::Fast);
}
