//! Files that a server which has died left beside its log, where they cannot become rows at once.

use crate::crash::outcome_files::files;
use crate::support::batch::{crash, retry, set_server, Batch, LOCK_LOG, WORKERS};
use pg_background_mgr_tests::{case, wait_until, Cluster, Session, SLEEP_FOREVER};
use std::fs;

/// Returns a cluster that has crashed, a session, the batch that ran, and one of which there is only a file. Its one
/// worker stays for an hour.
fn crashed() -> (Cluster, Session, Batch, Batch) {
    let settings = [("pg_background_mgr.max_workers", "1"), ("pg_background_mgr.worker_idle_timeout", "1h")];
    let cluster = Cluster::start_with_extension(&settings);
    let mut session = cluster.session("postgres");
    session.run("create table ran (a int)");
    let running = Batch::launch(&mut session, &[SLEEP_FOREVER]);
    running.wait_state(&mut session, 0, "running");
    wait_until("its row", || running.written(&mut session) == ["queued"]);
    let waiting = Batch::launch(&mut session, &["insert into ran values (1)"]);
    assert_eq!(waiting.written(&mut session), [""; 0]);
    let session = crash(&cluster);
    assert_eq!(files(&cluster).len(), 1);
    (cluster, session, running, waiting)
}

#[case]
fn a_row_that_is_being_deleted_keeps_back_its_own_job_only() {
    let (cluster, mut session, running, waiting) = crashed();
    let mut pruner = cluster.session("postgres");
    pruner.run("begin");
    assert_eq!(pruner.value("select pg_background_prune('0')"), "1");
    Batch::launch(&mut session, &["select 6"]).succeed(&mut session);
    assert_eq!(waiting.written(&mut session), ["queued"]);
    assert_eq!(waiting.states(&mut session), ["lost"]);
    retry(&mut session, &waiting.parent);
    waiting.succeed(&mut session);
    session.run(&format!("delete from log_background where uuid_parent = '{}'", waiting.parent));
    assert_eq!(waiting.states(&mut session), [""; 0]);
    pruner.run("commit");
    // The worker's own is left.
    let directory = cluster.data().join("pg_background_mgr");
    wait_until("no file", || fs::read_dir(&directory).expect("a directory").count() <= 1);
    assert_eq!(waiting.states(&mut session), [""; 0]);
    assert_eq!(running.states(&mut session), [""; 0]);
    assert_eq!(session.value("select count(*) from ran"), "1");
}

#[case]
fn a_worker_that_stays_tries_again() {
    let (cluster, mut session, running, waiting) = crashed();
    let mut locker = cluster.session("postgres");
    locker.run(LOCK_LOG);
    let batch = Batch::launch(&mut session, &["select 6"]);
    let now = format!("select status from pg_background_monitor('{}', false, '0')", batch.parent);
    wait_until("the job", || session.rows(&now) == ["succeeded"]);
    locker.run("rollback");
    wait_until("the rows", || waiting.written(&mut session) == ["queued"]);
    wait_until("no file", || files(&cluster).is_empty());
    assert_eq!(session.value(WORKERS), "1");
    for batch in [running, waiting] {
        assert_eq!(batch.states(&mut session), ["lost"]);
    }
}

/// The file would bring it back, as it was before the job was launched again.
#[case]
fn a_row_stays_while_its_file_does() {
    let (cluster, mut session, _, waiting) = crashed();
    let file = cluster.data().join("pg_background_mgr").join(files(&cluster).concat());
    let kept = cluster.data().join("kept");
    fs::hard_link(&file, &kept).expect("a second name");
    Batch::launch(&mut session, &["select 6"]).succeed(&mut session);
    wait_until("no file", || files(&cluster).is_empty());
    fs::rename(&kept, &file).expect("its first name");
    assert_eq!(session.value("select pg_background_prune('0')"), "2");
    session.run("delete from log_background");
    assert_eq!(waiting.written(&mut session), ["queued"]);
    set_server(&cluster, &mut session, "pg_background_mgr.worker_idle_timeout", "0");
    Batch::launch(&mut session, &["select 7"]).succeed(&mut session);
    wait_until("no file", || files(&cluster).is_empty());
    assert_eq!(session.value("select pg_background_prune('0')"), "2");
    assert_eq!(waiting.states(&mut session), [""; 0]);
}
