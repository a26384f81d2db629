//! Notices of jobs.

use crate::support::compare_with_client::assert_like_client;
use pg_background_mgr_tests::cluster::is_alive;
use pg_background_mgr_tests::{case, literal, wait_until, Db};

const ALL_LEVELS: &str =
    "do $$ begin raise info 'i'; raise notice 'n'; raise warning 'w'; raise log 'l'; raise debug 'd'; end $$";

#[case]
fn notices_arrive_at_their_level(db: &Db) {
    let mut session = db.session();
    session.job(ALL_LEVELS, "result text");
    assert_eq!(session.notice_texts(), ["INFO: i", "NOTICE: n", "WARNING: w"]);
    assert_like_client(db, "", ALL_LEVELS, "");
    assert_like_client(db, "", "drop table if exists missing; commit", "");
}

#[case]
fn notices_carry_every_field(db: &Db) {
    let text =
        "do $$ begin raise warning 'the message' using errcode = '01ABC', detail = 'the detail', hint = 'the hint', \
                column = 'col', constraint = 'con', datatype = 'typ', table = 'tab', schema = 'sch'; end $$";
    let mut session = db.session();
    session.job(text, "result text");
    let notices = session.notices();
    assert_eq!(notices.len(), 1);
    let fields: Vec<_> = "VCMDHcndts".chars().map(|letter| notices[0].field(letter).unwrap_or_default()).collect();
    assert_eq!(
        fields,
        ["WARNING", "01ABC", "the message", "the detail", "the hint", "col", "con", "typ", "tab", "sch"]
    );
    assert_like_client(db, "", text, "");
}

/// A notice wakes the client long before the job ends: its process still waits for the lock.
#[case]
fn notices_come_while_the_result_waits(db: &Db) {
    let (mut holder, mut session) = (db.session(), db.session());
    holder.run("select pg_advisory_lock(5)");
    let pid = session.launch(
        "do $$ begin perform pg_advisory_xact_lock_shared(6); raise notice 'early'; perform \
         pg_advisory_xact_lock(5); end $$",
    );
    let read = format!("select * from pg_background_result({pid}) as (tag text)");
    session.send(&read);
    assert_eq!(session.next_notice().message(), "early");
    let waits = format!("select {} = any (pg_blocking_pids({pid}))", holder.pid());
    wait_until("the job goes on and waits", || holder.holds(&waits));
    holder.run("select pg_advisory_unlock(5)");
    assert_eq!(session.finish(&read).last_rows().expect("rows").text_rows(), ["DO"]);
}

#[case]
fn notices_from_before_are_given_when_the_result_is_called(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("do $$ begin raise notice 'early'; end $$; select 1");
    wait_until("the end of the process", || !is_alive(pid));
    session.run("select 1");
    assert_eq!(session.notice_texts(), [""; 0], "nothing before the result is asked for");
    assert_eq!(session.result(pid, "n int"), ["1"]);
    assert_eq!(session.notice_texts(), ["NOTICE: early"]);
}

#[case]
fn notices_of_a_failed_job_come_before_its_error(db: &Db) {
    assert_like_client(db, "", "do $$ begin raise notice 'first'; perform 1 / 0; end $$", "");
    assert_like_client(db, "", "begin; begin; select 1 / 0", "");
}

#[case]
fn notices_keep_their_order(db: &Db) {
    let text = "do $$ begin for i in 1 .. 2000 loop raise notice '%', i; end loop; end $$";
    assert_like_client(db, "", text, "");
}

#[case]
fn client_min_messages_of_the_launcher_decides(db: &Db) {
    assert_like_client(db, "set client_min_messages = warning", ALL_LEVELS, "");
    assert_like_client(db, "set client_min_messages = error", ALL_LEVELS, "");
    assert_like_client(db, "set client_min_messages = log", "do $$ begin raise log 'l'; raise notice 'n'; end $$", "");
    assert_like_client(db, "", "set client_min_messages = error; do $$ begin raise warning 'w'; end $$", "");
}

#[case]
fn client_min_messages_at_the_read_decides_too(db: &Db) {
    let mut session = db.session();
    let pid = session.launch(ALL_LEVELS);
    session.run("set client_min_messages = warning");
    session.result(pid, "tag text");
    assert_eq!(session.notice_texts(), ["INFO: i", "WARNING: w"]);
}

#[case]
fn log_messages_go_to_the_log(db: &Db) {
    let mut session = db.session();
    let mark = db.log_mark();
    let pid = session
        .launch("do $$ begin raise log 'for the log'; raise warning 'for both'; raise notice 'for none'; end $$");
    session.result(pid, "tag text");
    assert_eq!(session.notice_texts(), ["WARNING: for both", "NOTICE: for none"]);
    db.cluster.wait_log(mark, "the warning", |line| line.text == "for both");
    let lines = db.cluster.log_since(mark);
    let count = |text: &str| lines.iter().filter(|line| line.text == text).count();
    assert_eq!((count("for the log"), count("for both"), count("for none")), (1, 1, 0));
}

#[case]
fn notices_are_not_given_to_another_job(db: &Db) {
    let mut session = db.session();
    let noisy = session.launch("do $$ begin raise notice 'mine'; end $$");
    wait_until("the end of the process", || !is_alive(noisy));
    session.job("select 1", "n int");
    assert_eq!(session.notice_texts(), [""; 0]);
    session.result(noisy, "tag text");
    assert_eq!(session.notice_texts(), ["NOTICE: mine"]);
}

#[case]
fn notices_of_a_detached_job_are_dropped(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("do $$ begin raise notice 'unheard'; end $$");
    session.run(&format!("select pg_background_detach({pid})"));
    wait_until("the end of the process", || !is_alive(pid));
    session.job("select 1", "n int");
    assert_eq!(session.notice_texts(), [""; 0]);
}

#[case]
fn notices_come_once_when_a_read_is_repeated(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("do $$ begin raise notice 'once'; end $$; select 1");
    wait_until("the end of the process", || !is_alive(pid));
    assert_eq!(session.error(&format!("select * from pg_background_result({pid}) as (n uuid)")).sqlstate(), "42804");
    let first = session.notice_texts();
    assert_eq!(session.result(pid, "n int"), ["1"]);
    let second = session.notice_texts();
    assert_eq!([first, second].concat(), ["NOTICE: once"]);
}

#[case]
fn many_unread_notices_do_not_hold_the_job(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    let pid = session.launch(
        "do $$ begin for i in 1 .. 20000 loop raise notice 'notice %', i; end loop; insert into t values (1); end $$",
    );
    wait_until("the job has committed", || session.value("select count(*) from t") == "1");
    session.result(pid, "tag text");
    let notices = session.notice_texts();
    assert_eq!(notices.len(), 20_000);
    assert_eq!(notices[19_999], "NOTICE: notice 20000");
}

#[case]
fn vacuum_verbose_gives_its_info_messages(db: &Db) {
    let mut session = db.session();
    session.run("create table sales (a int primary key)");
    assert_eq!(session.job("vacuum verbose public.sales", "result text"), ["VACUUM"]);
    let notices = session.notice_texts();
    assert!(notices.iter().all(|notice| notice.starts_with("INFO: ")), "{notices:?}");
    assert!(notices[0].starts_with("INFO: vacuuming \"") && notices[0].contains("public.sales"), "{notices:?}");
}

#[case]
fn notices_of_a_nested_job_pass_through(db: &Db) {
    let mut session = db.session();
    let inner = "do $i$ begin raise notice 'inner'; end $i$";
    let outer = format!(
        "do $o$ begin raise notice 'outer'; perform * from pg_background_result(pg_background_launch({})) as (r text); \
         raise notice 'outer again'; end $o$",
        literal(inner)
    );
    session.job(&outer, "result text");
    assert_eq!(session.notice_texts(), ["NOTICE: outer", "NOTICE: inner", "NOTICE: outer again"]);
}

#[case]
fn notices_inside_a_plpgsql_launcher_arrive(db: &Db) {
    let mut session = db.session();
    session.run(
        "do $o$ begin perform * from pg_background_result(pg_background_launch(\
         'do $i$ begin raise notice ''from the job''; end $i$')) as (r text); end $o$",
    );
    assert_eq!(session.notice_texts(), ["NOTICE: from the job"]);
}
