//! Timeouts, each for one statement of a job, and the waits of a job on locks.

use crate::support::compare_with_client::assert_like_client;
use pg_background_mgr_tests::env::env;
use pg_background_mgr_tests::{case, Db, FOREVER, SLEEP_FOREVER};

#[case]
fn statement_timeout_ends_a_statement(db: &Db) {
    assert_like_client(db, "set statement_timeout = '300ms'", SLEEP_FOREVER, "");
    let mut session = db.session();
    session.run("set statement_timeout = '300ms'");
    let pid = session.launch(SLEEP_FOREVER);
    session.run("reset statement_timeout");
    let error = session.result_error(pid);
    assert_eq!(error.brief(), ("57014".to_owned(), "canceling statement due to statement timeout".to_owned()));
}

#[case]
fn statement_timeout_is_for_each_statement(db: &Db) {
    // Together beyond the timeout, each well below it.
    let text = "select pg_sleep(1.2); select pg_sleep(1.2); select pg_sleep(1.2); select 'done'::text";
    let mut session = db.session();
    session.run("set statement_timeout = '3s'");
    let pid = session.launch(text);
    session.run("reset statement_timeout");
    assert_eq!(session.result(pid, "word text"), ["done"]);
}

#[case]
fn statement_timeout_set_in_the_text_holds_for_the_next_statement(db: &Db) {
    assert_like_client(db, "", &format!("set statement_timeout = '200ms'; select {FOREVER}"), "");
    let mut session = db.session();
    assert_eq!(session.job("select current_setting('statement_timeout')", "value text"), ["0"]);
}

#[case]
fn statement_timeout_can_be_caught_in_the_job(db: &Db) {
    let text = &format!(
        "do $$ begin perform {FOREVER}; exception when query_canceled then \
                insert into t values (1); end $$; select count(*) from t"
    );
    assert_like_client(db, "create table t (a int); set statement_timeout = '300ms'", text, "table t");
}

#[case]
fn lock_timeout_ends_a_wait_for_a_lock(db: &Db) {
    let mut holder = db.session();
    holder.run("create table t (a int)");
    holder.run("begin; lock table t");
    let mut session = db.session();
    session.run("set lock_timeout = '300ms'");
    let error = session.job_error("select * from t");
    assert_eq!(error.brief(), ("55P03".to_owned(), "canceling statement due to lock timeout".to_owned()));
    holder.run("rollback");
    assert_eq!(session.job("select count(*) from t", "n bigint"), ["0"]);
}

#[case]
fn lock_timeout_is_for_each_statement(db: &Db) {
    let mut holder = db.session();
    holder.run("create table t (a int)");
    holder.run("begin; lock table t");
    let mut session = db.session();
    let text = "do $$ begin lock table t; exception when lock_not_available then raise notice 'first'; end $$; \
                set lock_timeout = '100ms'; lock table t";
    session.run("set lock_timeout = '300ms'");
    let error = session.job_error(text);
    assert_eq!(error.sqlstate(), "55P03");
    assert_eq!(session.notice_texts(), ["NOTICE: first"]);
}

#[case(since = 17)]
fn transaction_timeout_ends_the_job(db: &Db) {
    let mut session = db.session();
    session.run("set transaction_timeout = '500ms'");
    let pid = session.launch(SLEEP_FOREVER);
    session.run("reset transaction_timeout");
    let error = session.result_error(pid);
    assert_eq!((error.severity(), error.sqlstate()), ("ERROR".to_owned(), "25P04".to_owned()));
}

#[case]
fn idle_timeouts_do_not_touch_a_job_that_waits_to_be_read(db: &Db) {
    let mut session = db.session();
    session.run("set idle_in_transaction_session_timeout = '100ms'");
    if env().version >= 14 {
        session.run("set idle_session_timeout = '100ms'");
    }
    let pid = session.launch("select generate_series(1, 200000)");
    session.run("set idle_in_transaction_session_timeout = 0");
    if env().version >= 14 {
        session.run("set idle_session_timeout = 0");
    }
    // Longer than the timeouts, on the server's clock.
    session.run("select pg_sleep(0.5)");
    assert_eq!(session.rows(&format!("select count(*) from pg_background_result({pid}) as (n int)")), ["200000"]);
}

#[case]
fn statement_timeout_of_the_launcher_ends_its_wait_only(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int); select pg_advisory_lock(1)");
    let pid = session.launch("select pg_advisory_xact_lock_shared(2); insert into t values (1)");
    assert_eq!(session.result(pid, "nothing text"), [""]);
    let mut holder = db.session();
    holder.run("select pg_advisory_lock(2)");
    let pid = session.launch("select pg_advisory_xact_lock(2); insert into t values (2) returning a");
    session.run("set statement_timeout = '300ms'");
    let error = session.result_error(pid);
    assert_eq!(error.brief(), ("57014".to_owned(), "canceling statement due to statement timeout".to_owned()));
    session.run("reset statement_timeout");
    holder.run("select pg_advisory_unlock(2)");
    assert_eq!(session.result(pid, "a int"), ["2"]);
    assert_eq!(session.rows("table t"), ["1", "2"]);
}
