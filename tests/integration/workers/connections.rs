//! Connections to other servers, an origin, a backup: no reset takes back what a job leaves of these.

use crate::support::batch::{drain, Batch};
use crate::support::idle_worker::{get_idle_worker, run, wait_idle};
use pg_background_mgr_tests::env::env;
use pg_background_mgr_tests::{case, wait_until, Cluster, Db, Session};

/// A text that opens a connection under one name, and leaves a transaction in it that has locked `held`.
fn connecting(session: &mut Session) -> String {
    session.run("create extension if not exists dblink; create table if not exists held (a int)");
    let place = session.value("select split_part(current_setting('unix_socket_directories'), ',', 1)");
    let (database, user) = (session.value("select current_database()"), session.value("select current_user"));
    format!(
        "select dblink_connect('c', 'host={place} dbname={database} user={user} application_name=remote_{database}'); \
         select dblink_exec('c', 'begin'); select dblink_exec('c', 'lock table held')"
    )
}

/// Waits until nothing is left of the connection of a job.
#[track_caller]
fn wait_free(session: &mut Session) {
    let left = "select count(*) from pg_stat_activity where application_name = 'remote_' || current_database()";
    wait_until("the end of the connection", || session.value(left) == "0");
    session.run("begin; lock table held nowait; commit");
}

#[case(library = "dblink")]
fn a_connection_ends_with_its_job(db: &Db) {
    let mut session = db.session();
    let text = connecting(&mut session);
    for (next, expected) in [(text.clone(), None), (format!("{text}; select 1 / 0"), Some("22012".to_owned()))] {
        for _ in 0..2 {
            get_idle_worker(&mut session);
            let outcome = run(&mut session, &next).1;
            let sqlstate = outcome.error.map(|error| error[&'C'].clone());
            assert_eq!(sqlstate, expected);
            wait_free(&mut session);
            assert_eq!(run(&mut session, "select dblink_get_connections()").1.rows, ["()"]);
        }
    }
}

#[case(library = "dblink")]
fn a_connection_ends_with_a_job_of_the_queue(db: &Db) {
    let mut session = db.session();
    let text = connecting(&mut session);
    let failing = format!("{text}; select 1 / 0");
    let batch = Batch::launch(&mut session, &[&text, &failing, &text, "select dblink_get_connections()::text"]);
    drain(&mut session);
    for (job, status) in ["succeeded", "failed", "succeeded", "succeeded"].iter().enumerate() {
        assert_eq!(batch.log(&mut session, job, "status"), *status);
    }
    assert_eq!(batch.log(&mut session, 1, "sqlstate"), "22012");
    assert_eq!(batch.log(&mut session, 3, "result"), "[{\"dblink_get_connections\":null}]");
    wait_free(&mut session);
}

#[case(library = "postgres_fdw")]
fn a_foreign_server_is_left_with_its_job(db: &Db) {
    let mut session = db.session();
    let place = session.value("select split_part(current_setting('unix_socket_directories'), ',', 1)");
    session.run(&format!(
        "create extension postgres_fdw; create table held (a int); \
         create server s foreign data wrapper postgres_fdw options (host '{place}', dbname '{name}', \
         application_name 'remote_{name}'); \
         create user mapping for public server s options (user 'postgres'); \
         create foreign table f (a int) server s options (table_name 'held')",
        name = db.name
    ));
    let first = get_idle_worker(&mut session);
    assert_eq!(run(&mut session, "select count(*) from f").0, first);
    wait_free(&mut session);
    assert_ne!(run(&mut session, "select pg_backend_pid()").0, first);
}

#[case(library = "dblink")]
fn a_connection_ends_also_where_the_library_is_preloaded() {
    let cluster = Cluster::start_with_extension(&[("session_preload_libraries", "dblink")]);
    let mut session = cluster.session("postgres");
    let text = connecting(&mut session);
    for _ in 0..3 {
        assert!(run(&mut session, &text).1.error.is_none());
        wait_free(&mut session);
    }
    drop(session);
    cluster.wait_no_workers();
}

/// The session gives its next job as soon as it has the result of the one before.
#[case(library = "dblink")]
fn the_next_job_is_not_refused(db: &Db) {
    let mut session = db.session();
    let text = connecting(&mut session).replace("; select dblink_exec('c', 'lock table held')", "");
    for _ in 0..20 {
        get_idle_worker(&mut session);
        for text in [text.as_str(), "select 1", &text, "select 1"] {
            let pid = session.launch(text);
            session.run(&format!("select pg_background_result({pid})"));
        }
    }
}

#[case(library = "pg_trgm")]
fn a_library_that_keeps_nothing_costs_no_worker(db: &Db) {
    let mut session = db.session();
    session.run("create extension pg_trgm");
    let pid = get_idle_worker(&mut session);
    for text in ["select similarity('a', 'b')", "do $$ begin null; end $$", "load 'auto_explain'", "select 1"] {
        assert_eq!(run(&mut session, text).0, pid, "{text}");
    }
}

#[case]
fn a_replication_origin_ends_with_its_job(db: &Db) {
    let (mut session, name) = (db.session(), &db.name);
    session.run(&format!("select pg_replication_origin_create('{name}')"));
    let pid = get_idle_worker(&mut session);
    for fails in ["", "; select 1 / 0"] {
        let text = format!("select pg_replication_origin_session_setup('{name}'){fails}");
        assert_eq!(run(&mut session, &text).0, pid);
        let (next, outcome) = run(&mut session, "select pg_replication_origin_session_is_setup()");
        assert_eq!((next, outcome.rows), (pid, vec!["(f)".to_owned()]));
    }
    let text = format!("select pg_replication_origin_session_setup('{name}')");
    let batch = Batch::launch(&mut session, &[&text, "select pg_replication_origin_session_is_setup() as is"]);
    drain(&mut session);
    assert_eq!(batch.log(&mut session, 1, "result"), "[{\"is\":false}]");
    wait_idle(&mut session, pid);
    session.run(&format!("select pg_replication_origin_drop('{name}')"));
}

#[case]
fn a_base_backup_ends_with_its_job(db: &Db) {
    let mut session = db.session();
    let (start, stop) = match env().version {
        15.. => ("select pg_backup_start('b', true)::text", "select pg_backup_stop(false)::text"),
        _ => ("select pg_start_backup('b', true, false)::text", "select pg_stop_backup(false, false)::text"),
    };
    for _ in 0..2 {
        get_idle_worker(&mut session);
        assert!(run(&mut session, start).1.error.is_none());
        assert_eq!(run(&mut session, stop).1.error.expect("an error")[&'C'], "55000");
    }
    let batch = Batch::launch(&mut session, &[start, stop, start]);
    drain(&mut session);
    let states: Vec<String> = (0..3).map(|job| batch.log(&mut session, job, "status")).collect();
    assert_eq!(states, ["succeeded", "failed", "succeeded"]);
}
