//! The harness itself. Needs no extension.

use pg_background_mgr_tests::cluster::{is_alive, signal_process};
use pg_background_mgr_tests::{case, wait_until, Cluster, Signal, Stop, SLEEP_FOREVER};

#[case]
fn a_dropped_cluster_leaves_no_process_and_no_file() {
    let cluster = Cluster::start_new(&[]);
    let pid = cluster.postmaster();
    let data = cluster.data();
    assert!(is_alive(pid) && data.exists() && cluster.processes().len() > 3);
    drop(cluster);
    assert!(!is_alive(pid));
    assert!(!data.parent().expect("a place").exists());
}

#[case]
fn a_cluster_whose_postmaster_was_killed_leaves_nothing() {
    let cluster = Cluster::start_new(&[]);
    let mut session = cluster.session("postgres");
    session.send(SLEEP_FOREVER);
    cluster.signal_postmaster(Signal::SIGKILL);
    wait_until("the end of the postmaster", || !cluster.is_running());
    signal_process(session.pid(), Signal::SIGTERM);
    cluster.wait_stopped();
    cluster.start();
    assert_eq!(cluster.session("postgres").value("select 1"), "1");
    cluster.stop(Stop::Immediate);
    assert!(cluster.processes().is_empty());
}

#[case]
fn a_session_shows_what_a_client_sees() {
    let cluster = Cluster::start_new(&[]);
    let mut session = cluster.session("postgres");
    let reply = session
        .run("create table t (a int); insert into t values (1), (null); select a, 'x' b from t; copy t to stdout");
    assert_eq!(reply.tags(), ["CREATE TABLE", "INSERT 0 2", "SELECT 2", "COPY 2"]);
    assert_eq!(reply.last_rows().expect("rows").text_rows(), ["1|x", "∅|x"]);
    assert_eq!(reply.statements[3].copied, b"1\n\\N\n");
    let reply = session.ask("do $$begin raise notice 'n'; end$$; select 1/0");
    assert_eq!(reply.tags(), ["DO"]);
    assert_eq!(reply.error.expect("an error").brief(), ("22012".to_owned(), "division by zero".to_owned()));
    assert_eq!(session.notice_texts(), ["NOTICE: n"]);
    let mark = cluster.log_mark();
    assert_eq!(session.error("select nothing").position().as_deref(), Some("8"));
    let line = cluster.wait_log(mark, "the error", |line| line.kind == "ERROR");
    assert_eq!((line.pid, line.sqlstate.as_str()), (session.pid(), "42703"));
    session.run("listen c; notify c, 'p'");
    assert_eq!(session.notification().payload, "p");
    let output = cluster.psql("postgres", &["-At", "-c", "select 2"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "2\n");
}

#[case]
fn a_cancel_request_reaches_the_session() {
    let cluster = Cluster::start_new(&[]);
    let mut session = cluster.session("postgres");
    let mut other = cluster.session("postgres");
    session.send(SLEEP_FOREVER);
    other.wait_asleep(session.pid());
    session.canceller().cancel();
    assert_eq!(session.finish("the sleep").error.expect("an error").sqlstate(), "57014");
}

#[case]
fn a_standby_follows_its_primary() {
    let primary = Cluster::start_new(&[]);
    let standby = Cluster::start_standby(&primary);
    primary.session("postgres").run("create table t as select 7 as a");
    let mut session = standby.session("postgres");
    wait_until("the table on the standby", || session.ask("select a from t").error.is_none());
    assert_eq!(session.value("select a from t"), "7");
    assert!(session.holds("select pg_is_in_recovery()"));
}
