//! ALTER EXTENSION UPDATE while there are jobs.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{array, times, wait_at_barrier, Batch};
use pg_background_mgr_tests::{case, wait_until, Cluster, Installation, Session, Stop};
use std::fs;

/// Two older versions that differ from the current one in little. The first update leaves the log alone, the second
/// wants it for itself.
fn add_versions(installation: &Installation) {
    let directory = installation.extensions();
    let file = |versions: &str| directory.join(format!("pg_background_mgr--{versions}.sql"));
    let script = fs::read_to_string(file("0.2.0")).expect("the script of the extension");
    fs::write(file("0.0.8"), script).expect("a script");
    fs::write(file("0.0.8--0.0.9"), "COMMENT ON VIEW log_background IS 'updated';\n").expect("a script");
    let later = "ALTER MATERIALIZED VIEW background_mgr.log SET (fillfactor = 71);\n";
    fs::write(file("0.0.9--0.2.0"), later).expect("a script");
}

#[track_caller]
fn update(session: &mut Session, version: &str) {
    session.run(&format!(
        "set statement_timeout = '20s'; \
         alter extension pg_background_mgr update to '{version}'; reset statement_timeout"
    ));
    let installed = "select extversion from pg_extension where extname = 'pg_background_mgr'";
    assert_eq!(session.value(installed), version);
}

/// The processes that ran the jobs of a batch.
#[track_caller]
fn processes(session: &mut Session, batch: &Batch) -> Vec<String> {
    session.rows(&format!("select distinct pid from log_background where uuid_parent = '{}'", batch.parent))
}

#[track_caller]
fn assert_gone(session: &mut Session, pids: &[String]) {
    let query = format!("select count(*) from pg_stat_activity where pid in ({})", pids.join(", "));
    wait_until("the workers from before have gone", || session.value(&query) == "0");
}

#[case]
fn the_extension_is_updated_with_jobs_in_every_state() {
    let settings = [("pg_background_mgr.max_workers", "2"), ("pg_background_mgr.worker_idle_timeout", "1h")];
    // Declared first, it goes last.
    let installation;
    let mut cluster = Cluster::start_new(&settings);
    installation = Installation::beside(&mut cluster.session("postgres"));
    add_versions(&installation);
    cluster.stop(Stop::Fast);
    cluster.run_from(&installation);
    cluster.start();

    let (mut session, mut admin) = (cluster.session("postgres"), cluster.session("postgres"));
    admin.run("create extension pg_background_mgr version '0.0.8'; create table ran (a int)");
    let first = Batch::launch(&mut session, &["insert into ran values (1)", "select 1 / 0"]);
    assert_eq!(first.finish(&mut session), ["succeeded", "failed"]);
    let idle = processes(&mut admin, &first);

    // With workers that have nothing to do: none of them takes another job.
    update(&mut admin, "0.0.9");
    let barrier = Barrier::close(cluster.session("postgres"));
    let second = Batch::launch(&mut session, &times(&format!("insert into ran values (2); {}", barrier::WAIT), 2));
    // As many as there may be: there is no room for one from before.
    wait_at_barrier(&mut admin, 2);
    barrier.open();
    second.succeed(&mut session);
    assert!(processes(&mut admin, &second).iter().all(|pid| !idle.contains(pid)));
    assert_gone(&mut admin, &idle);

    // With jobs that run, that wait, and that are not in the log yet.
    let barrier = Barrier::close(cluster.session("postgres"));
    let text = format!("insert into ran values (3); {}", barrier::WAIT);
    let third = Batch::launch(&mut session, &times(&text, 6));
    wait_at_barrier(&mut admin, 2);
    let fourth = Batch::launch(&mut session, &["insert into ran values (4)", "select 1 / 0"]);
    let running = "select pid from log_background where status = 'running'";
    let before = admin.rows(running);
    update(&mut admin, "0.2.0");
    assert_eq!(admin.rows(running), before);
    let counts = "select status, count(*) from log_background group by status order by status";
    assert_eq!(admin.rows(counts), ["failed|1", "queued|6", "running|2", "succeeded|3"]);
    let stopped = session.rows(&format!("select was, now from pg_background_stop('{}')", third.children[5]));
    assert_eq!(stopped, ["queued|stopped"]);
    barrier.open();
    let states = third.finish(&mut session);
    assert_eq!(states, ["succeeded", "succeeded", "succeeded", "succeeded", "succeeded", "stopped"]);
    assert_eq!(fourth.finish(&mut session), ["succeeded", "failed"]);
    assert_gone(&mut admin, &before);
    let by_others = format!(
        "select count(*) from log_background where uuid_parent = '{}' and pid not in ({})",
        third.parent,
        before.join(", ")
    );
    assert_eq!(admin.value(&by_others), "3", "who ran when the extension was updated ran no other job");

    // Afterwards.
    Batch::call(&mut admin, &format!("pg_background_launch_num({})", array(&["insert into ran values (5)"])))
        .succeed(&mut admin);
    session.run(&format!("select * from pg_background_retry('{}')", first.parent));
    assert_eq!(first.finish(&mut session), ["succeeded", "failed"]);
    assert_eq!(session.value("select count(*) from log_background"), "13");
    assert_eq!(session.rows("select a, count(*) from ran group by a order by a"), ["1|1", "2|2", "3|5", "4|1", "5|1"]);
}
