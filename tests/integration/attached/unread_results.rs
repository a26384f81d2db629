//! A job never waits for its reader.

use crate::support::idle_worker::wait_free;
use pg_background_mgr_tests::cluster::is_alive;
use pg_background_mgr_tests::{case, wait_until, Db, Session};

const MILLION: &str = "insert into t values (1); select i, md5(i::text) from generate_series(1, 1000000) i";

/// Launches a job whose rows stay unread, and waits until it has come to rest.
fn launch_unread(session: &mut Session, watcher: &mut Session, text: &str) -> i32 {
    let pid = session.launch(text);
    wait_idle(watcher, pid);
    pid
}

fn wait_idle(watcher: &mut Session, pid: i32) {
    wait_until("the job has come to rest", || {
        watcher.rows(&format!("select state from pg_stat_activity where pid = {pid}")) == ["idle"]
    });
}

fn count(session: &mut Session, pid: i32) -> Vec<String> {
    session.rows(&format!(
        "select count(*), sum(a::bigint), bool_and(b = md5(a::text)) from \
        pg_background_result({pid}) as (a int, b text)"
    ))
}

const WHOLE: [&str; 1] = ["1000000|500000500000|t"];

#[case]
fn a_million_rows_unread_leave_a_committed_job(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table t (a int)");
    let pid = session.launch(MILLION);
    wait_until("the job has committed", || watcher.value("select count(*) from t") == "1");
    wait_idle(&mut watcher, pid);
    assert_eq!(watcher.value(&format!("select backend_type from pg_stat_activity where pid = {pid}")), "pg_background");
}

#[case]
fn a_million_rows_unread_hold_no_lock_and_no_snapshot(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table t (a int)");
    let pid = launch_unread(&mut session, &mut watcher, MILLION);
    wait_free(&mut watcher, pid);
    // What a vacuum may remove shows it too.
    watcher.run("delete from t");
    wait_until("a vacuum removes all", || {
        watcher.run("vacuum t");
        watcher.value("select pg_relation_size('t')") == "0"
    });
}

/// A job has until it ends what a session has until it ends, whoever reads it and when.
#[case]
fn a_million_rows_unread_hold_nothing_of_the_session(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table t (a int)");
    let text = format!("select pg_advisory_lock(5); create temp table mine (a int); {MILLION}");
    let pid = launch_unread(&mut session, &mut watcher, &text);
    wait_free(&mut watcher, pid);
    session.run("set statement_timeout = '20s'");
    assert_eq!(session.value("select pg_advisory_lock(5) is null"), "f");
    assert_eq!(watcher.value("select count(*) from pg_class where relname = 'mine'"), "0");
    assert_eq!(count(&mut session, pid), WHOLE);
}

#[case]
fn a_million_rows_unread_are_read_whole_later(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table t (a int)");
    let pid = launch_unread(&mut session, &mut watcher, MILLION);
    assert_eq!(count(&mut session, pid), WHOLE);
    wait_until("the end of the process", || !is_alive(pid));
}

#[case]
fn a_million_rows_unread_are_given_up_by_detach(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table t (a int)");
    let pid = launch_unread(&mut session, &mut watcher, MILLION);
    session.run(&format!("select pg_background_detach({pid})"));
    wait_until("the end of the process", || !is_alive(pid));
    assert_eq!(session.value("select count(*) from t"), "1");
    // The same for one that is still giving rows.
    let pid = session.launch(MILLION);
    session.run(&format!("select pg_background_detach({pid})"));
    wait_until("the end of the process", || !is_alive(pid));
    assert_eq!(session.value("select count(*) from t"), "2");
}

#[case]
fn a_million_rows_unread_end_with_their_launcher(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table t (a int)");
    let pid = launch_unread(&mut session, &mut watcher, MILLION);
    drop(session);
    wait_until("the end of the process", || !is_alive(pid));
    assert_eq!(watcher.value("select count(*) from t"), "1");
}

/// The names of the temporary files of a process, in any form.
fn temporary_files(db: &Db, pid: i32) -> Vec<String> {
    let directory = db.cluster.data().join("base/pgsql_tmp");
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&format!("pgsql_tmp{pid}."))).collect()
}

#[case]
fn unread_rows_beyond_work_mem_go_to_a_temporary_file(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table t (a int); set work_mem = '64kB'");
    let pid = launch_unread(&mut session, &mut watcher, MILLION);
    assert!(!temporary_files(db, pid).is_empty());
    let query = "select sum(size) > 40000000 from pg_ls_tmpdir() where name like 'pgsql_tmp' || $$".to_owned()
        + &pid.to_string()
        + ".%$$";
    assert_eq!(watcher.value(&query), "t");
    assert_eq!(count(&mut session, pid), WHOLE);
    wait_until("no temporary file is left", || temporary_files(db, pid).is_empty());
}

#[case]
fn unread_rows_are_bounded_by_temp_file_limit(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int); set work_mem = '64kB'; set temp_file_limit = '2MB'");
    let pid = session.launch(MILLION);
    wait_until("the end of the process", || !is_alive(pid));
    session.run("reset temp_file_limit");
    let error = session.error(&format!("select * from pg_background_result({pid}) as (a int, b text)"));
    assert_eq!(error.sqlstate(), "53400");
    assert!(error.message().starts_with("temporary file size exceeds "), "{error}");
    assert_eq!(session.value("select count(*) from t"), "0", "the job failed as a whole");
    assert_eq!(temporary_files(db, pid), [""; 0]);
}

#[case]
fn unread_rows_do_not_stop_a_drop_of_their_table(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table big as select i, md5(i::text) from generate_series(1, 200000) i");
    let pid = launch_unread(&mut session, &mut watcher, "table big");
    watcher.run("set lock_timeout = '10s'; drop table big");
    let query =
        format!("select count(*), bool_and(b = md5(a::text)) from pg_background_result({pid}) as (a int, b text)");
    assert_eq!(session.rows(&query), ["200000|t"]);
}

#[case]
fn a_launcher_with_an_open_transaction_does_not_hold_the_job(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table t (a int)");
    session.run("begin isolation level repeatable read; select count(*) from t");
    let pid = launch_unread(&mut session, &mut watcher, MILLION);
    assert_eq!(watcher.value("select count(*) from t"), "1");
    assert_eq!(count(&mut session, pid), WHOLE);
    session.run("commit");
}

#[case]
fn several_unread_jobs_are_read_in_any_order(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    let texts: Vec<String> =
        (1..=4).map(|number| format!("select i * {number} from generate_series(1, 100000) i")).collect();
    let pids: Vec<i32> = texts.iter().map(|text| session.launch(text)).collect();
    for pid in &pids {
        wait_idle(&mut watcher, *pid);
    }
    for number in [3_usize, 1, 4, 2] {
        let query = format!("select sum(a::bigint) from pg_background_result({}) as (a int)", pids[number - 1]);
        assert_eq!(session.rows(&query), [(5_000_050_000_usize * number).to_string()]);
    }
}

#[case]
fn a_mismatch_leaves_a_million_rows_to_be_read(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table t (a int)");
    let pid = launch_unread(&mut session, &mut watcher, MILLION);
    for columns in ["a int", "a text, b uuid", "a int, b text, c text"] {
        let error = session.error(&format!("select * from pg_background_result({pid}) as ({columns})"));
        assert_eq!(error.sqlstate(), "42804");
    }
    assert_eq!(count(&mut session, pid), WHOLE);
}

/// Cancelled before the first row, the result is still whole; afterwards it has been read.
#[case]
fn a_cancelled_read_of_a_million_rows_is_started_again(db: &Db) {
    let (mut holder, mut session) = (db.session(), db.session());
    holder.run("select pg_advisory_lock(5); create table t (a int)");
    let pid = session.launch(&format!("select pg_advisory_xact_lock(5); {MILLION}"));
    let read = format!("select count(*) from pg_background_result({pid}) as (a int, b text)");
    session.run("set statement_timeout = '300ms'");
    assert_eq!(session.error(&read).sqlstate(), "57014");
    session.run("reset statement_timeout");
    holder.run("select pg_advisory_unlock(5)");
    assert_eq!(session.rows(&read), ["1000000"]);
}

#[case]
fn statements_after_the_unread_rows_are_executed(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table t (a int)");
    let text = "select i from generate_series(1, 300000) i; insert into t values (1); \
                select i from generate_series(1, 300001) i; \
                insert into t values (2)";
    let pid = launch_unread(&mut session, &mut watcher, text);
    assert_eq!(watcher.rows("table t"), ["1", "2"]);
    assert_eq!(session.rows(&format!("select count(*) from pg_background_result({pid}) as (a int)")), ["300001"]);
}

#[case]
fn a_read_cancelled_in_the_middle_is_started_again(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table t (a int)");
    let pid = launch_unread(&mut session, &mut watcher, MILLION);
    // Well below what a million rows take to come over.
    session.run("set statement_timeout = '15ms'");
    for _ in 0..3 {
        assert_eq!(
            session.error(&format!("select count(*) from pg_background_result({pid}) as (a int, b text)")).sqlstate(),
            "57014"
        );
    }
    session.run("reset statement_timeout");
    assert_eq!(count(&mut session, pid), WHOLE);
}

#[case]
fn a_converting_read_cancelled_in_the_middle_is_started_again(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table t (a int)");
    let pid = launch_unread(&mut session, &mut watcher, MILLION);
    for columns in ["a text, b text", "a int, b text", "a text, b text"] {
        session.run("set statement_timeout = '15ms'");
        let query = format!("select count(*) from pg_background_result({pid}) as ({columns})");
        assert_eq!(session.error(&query).sqlstate(), "57014");
        session.run("reset statement_timeout");
        let error = session.error(&format!("select * from pg_background_result({pid}) as (a uuid, b text)"));
        assert_eq!(error.sqlstate(), "42804");
    }
    assert_eq!(count(&mut session, pid), WHOLE);
}

/// A pooler runs DISCARD ALL before another client gets the session.
#[case]
fn discard_all_gives_unread_results_up(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table t (a int)");
    let large = launch_unread(&mut session, &mut watcher, MILLION);
    let small = session.launch("select 7");
    let read = session.launch("select 8");
    session.result(read, "n int");
    session.run("discard all");
    for pid in [large, small, read] {
        assert_eq!(session.result_error(pid).sqlstate(), "42704");
        let error = session.error(&format!("select pg_background_detach({pid})"));
        assert_eq!(error.brief(), ("42704".to_owned(), format!("PID {pid} is not attached to this session")));
    }
    wait_until("the end of the process", || !is_alive(large));
    // What a job discards is its own.
    assert_eq!(session.job("discard all", "tag text"), ["DISCARD ALL"]);
    assert_eq!(session.job("select 9", "n int"), ["9"]);
}

#[case]
fn discard_all_that_fails_gives_nothing_up(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("select 7");
    session.run("begin");
    assert_eq!(session.error("discard all").sqlstate(), "25001");
    session.run("rollback; discard plans; discard temp; discard sequences; close all; deallocate all; reset all");
    assert_eq!(session.result(pid, "n int"), ["7"]);
}
