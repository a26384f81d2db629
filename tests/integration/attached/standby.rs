//! Jobs on a read-only standby, and after its promotion.

use pg_background_mgr_tests::{case, wait_until, Cluster, FOREVER};

fn pair() -> (Cluster, Cluster) {
    let primary = Cluster::start_with_extension(&[]);
    primary.session("postgres").run("create table t as select generate_series(1, 1000) as a");
    let standby = Cluster::start_standby(&primary);
    (primary, standby)
}

#[case]
fn jobs_run_on_a_standby() {
    let (primary, standby) = pair();
    let before = standby.baseline();
    let mut session = standby.session("postgres");
    assert_eq!(session.job("select pg_is_in_recovery(), count(*) from t", "r bool, n bigint"), ["t|1000"]);
    let error = session.job_error("insert into t values (1)");
    assert_eq!(error.brief(), ("25006".to_owned(), "cannot execute INSERT in a read-only transaction".to_owned()));
    let error = session.job_error("vacuum t");
    assert_eq!(error.brief(), ("25006".to_owned(), "cannot execute VACUUM during recovery".to_owned()));
    assert_eq!(session.job("begin; select count(*) from t; commit; show transaction_read_only", "r text"), ["on"]);
    let pid = session.launch("select a from t, generate_series(1, 500)");
    wait_until("the job has come to rest", || {
        session.rows(&format!("select state from pg_stat_activity where pid = {pid}")) == ["idle"]
    });
    assert_eq!(session.rows(&format!("select count(*) from pg_background_result({pid}) as (a int)")), ["500000"]);
    // What the primary commits is seen by the next job.
    primary.session("postgres").job("insert into t values (1001)", "result text");
    wait_until("the row on the standby", || session.job("select max(a) from t", "n int") == ["1001"]);
    drop(session);
    standby.assert_sound(&before);
}

#[case]
fn jobs_write_after_promotion() {
    let (_primary, standby) = pair();
    let mut session = standby.session("postgres");
    let early = session.launch("select count(*) from t");
    session.run("select pg_promote()");
    wait_until("the end of recovery", || !session.holds("select pg_is_in_recovery()"));
    assert_eq!(session.result(early, "n bigint"), ["1000"]);
    assert_eq!(session.job("insert into t values (2000)", "result text"), ["INSERT 0 1"]);
    assert_eq!(session.job("vacuum t", "result text"), ["VACUUM"]);
    drop(session);
    standby.wait_no_workers();
}

/// A standby does not answer for jobs that it does not know, whatever the log of the primary says.
#[case]
fn jobs_of_the_primary_are_not_stopped_on_a_standby() {
    let (primary, standby) = pair();
    let mut session = primary.session("postgres");
    let job = session.value(&format!("select uuid_child from pg_background_launch_num(array['select {FOREVER}'])"));
    let mut reader = standby.session("postgres");
    let row = format!("select count(*) from log_background where uuid_child = '{job}'");
    wait_until("the row on the standby", || reader.value(&row) == "1");
    for uuid in [job.as_str(), "00000000-0000-8000-8000-000000000000"] {
        let error = reader.error(&format!("select * from pg_background_stop('{uuid}')"));
        assert_eq!(error.brief(), ("25006".to_owned(), "cannot stop background jobs during recovery".to_owned()));
        let error = reader.error(&format!("select * from pg_background_retry('{uuid}')"));
        assert_eq!(error.brief(), ("25006".to_owned(), "cannot launch background jobs during recovery".to_owned()));
    }
    let error = reader.error("select pg_background_launch_num('select 1')");
    assert_eq!(error.brief(), ("25006".to_owned(), "cannot launch background jobs during recovery".to_owned()));
    assert_eq!(session.value(&format!("select now from pg_background_stop('{job}')")), "stopped");
}
