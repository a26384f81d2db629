//! Reading results: with and without a column list, once, by its launcher only.

use pg_background_mgr_tests::cluster::is_alive;
use pg_background_mgr_tests::{case, wait_until, Db};

const STATE_READ: &str = "42704";

fn already_read(pid: i32) -> (String, String) {
    (STATE_READ.to_owned(), format!("result of the job with PID {pid} has already been read"))
}

#[case]
fn a_column_list_reads_typed_rows(db: &Db) {
    let mut session = db.session();
    let pid = session
        .launch("select 1, 'a'::text, now() is not null, null::date union all select 2, null, false, '2001-02-03'");
    let query = format!(
        "select a + 1, b || '!', not c, d + 1 from pg_background_result({pid}) as (a int, b text, c bool, d date)"
    );
    assert_eq!(session.rows(&query), ["2|a!|f|∅", "3|∅|t|2001-02-04"]);
}

#[case]
fn without_a_column_list_each_row_is_a_record(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("select 1, 'a b'::text, null::int union all select 2, 'c', 3");
    assert_eq!(session.rows(&format!("select pg_background_result({pid})")), ["(1,\"a b\",)", "(2,c,3)"]);
    let pid = session.launch("select 7 where false");
    assert_eq!(session.rows(&format!("select pg_background_result({pid})")), [""; 0]);
}

#[case]
fn a_tag_in_a_select_list_is_a_record(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("vacuum pg_am");
    assert_eq!(session.rows(&format!("select pg_background_result({pid})")), ["(VACUUM)"]);
    let pid = session.launch("create table t (a int); insert into t values (1)");
    assert_eq!(
        session.rows(&format!("select pg_background_result({pid})")),
        ["(\"CREATE TABLE\")", "(\"INSERT 0 1\")"]
    );
}

#[case]
fn a_launch_and_its_result_in_one_statement(db: &Db) {
    let mut session = db.session();
    let query = "select * from pg_background_result(pg_background_launch('select 2 + 2')) as (n int)";
    assert_eq!(session.rows(query), ["4"]);
    assert_eq!(session.rows("select pg_background_result(pg_background_launch('select 5, 6'))"), ["(5,6)"]);
    let pid = session.value("select * from pg_background_launch('select 3')");
    assert_eq!(session.rows(&format!("select * from pg_background_result({pid}) as (n int)")), ["3"]);
}

#[case]
fn a_result_is_a_table_like_others(db: &Db) {
    let mut session = db.session();
    session.run("create table t as select i as a, i * i as b from generate_series(1, 10) i");
    let pid = session.launch("select i from generate_series(1, 20) i");
    let query = format!(
        "select r.a, t.b from pg_background_result({pid}) as r (a int) join t using (a) where r.a % 3 = 0 order \
         by r.a desc limit 2"
    );
    assert_eq!(session.rows(&query), ["9|81", "6|36"]);
    let pid = session.launch("select i from generate_series(1, 20) i");
    session.run(&format!("insert into t select a, 0 from pg_background_result({pid}) as (a int)"));
    assert_eq!(session.value("select count(*) from t where b = 0"), "20");
    let pid = session.launch("select i from generate_series(1, 20) i");
    let query = format!(
        "with r as (select * from pg_background_result({pid}) as (a int)) \
         select count(*), (select max(a) from r) from r"
    );
    assert_eq!(session.rows(&query), ["20|20"]);
}

#[case]
fn a_result_is_read_in_plpgsql(db: &Db) {
    let mut session = db.session();
    session.run(
        "do $$ declare r record; total int := 0; n int; begin \
         for r in select * from pg_background_result(pg_background_launch('select i from generate_series(1, 4) i')) \
         as (a int) \
         loop total := total + r.a; end loop; \
         select * into n from pg_background_result(pg_background_launch('select 32')) as (n int); \
         raise notice '% %', total, n; end $$",
    );
    assert_eq!(session.notice_texts(), ["NOTICE: 10 32"]);
}

#[case]
fn results_of_several_jobs_are_read_in_any_order(db: &Db) {
    let mut session = db.session();
    let pids: Vec<i32> = (0..8).map(|number| session.launch(&format!("select {number}"))).collect();
    for number in [3, 7, 0, 5, 1, 6, 2, 4] {
        assert_eq!(session.result(pids[number], "n int"), [number.to_string()]);
    }
}

#[case]
fn results_of_several_jobs_are_read_in_one_statement(db: &Db) {
    let mut session = db.session();
    let query = "select r.* from (select pg_background_launch(format('select %s, ''job''::text', i)) as pid \
                 from generate_series(1, 6) i offset 0) jobs, \
                 lateral pg_background_result(pid) as r (n int, word text) order by 1";
    assert_eq!(session.rows(query), ["1|job", "2|job", "3|job", "4|job", "5|job", "6|job"]);
}

#[case]
fn rows_keep_their_order(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("select i from generate_series(1, 300000) i order by i desc");
    let query = format!(
        "select count(*), count(*) filter (where n = 300001 - place) \
         from pg_background_result({pid}) with ordinality as r (n, place)"
    );
    // A column list and WITH ORDINALITY exclude each other; ROWS FROM takes both.
    let query = query.replace(
        &format!("pg_background_result({pid}) with ordinality as r (n, place)"),
        &format!("rows from (pg_background_result({pid}) as (n int)) with ordinality as r (n, place)"),
    );
    assert_eq!(session.rows(&query), ["300000|300000"]);
}

#[case]
fn rows_without_columns_are_counted(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("select from generate_series(1, 3)");
    assert_eq!(session.rows(&format!("select pg_background_result({pid})")), ["()", "()", "()"]);
}

#[case]
fn a_row_of_the_greatest_width_arrives_whole(db: &Db) {
    let mut session = db.session();
    let values: Vec<String> = (1..=1600).map(|number| number.to_string()).collect();
    let columns: Vec<String> = (1..=1600).map(|number| format!("c{number} int")).collect();
    let text = format!("select {}", values.join(", "));
    assert_eq!(session.job(&text, &columns.join(", ")), [values.join("|")]);
}

#[case]
fn a_value_of_many_megabytes_arrives_whole(db: &Db) {
    let mut session = db.session();
    let text = "select string_agg(md5(i::text), '') from generate_series(1, 500000) i";
    let expected = session.value("select md5(string_agg(md5(i::text), '')) from generate_series(1, 500000) i");
    let pid = session.launch(text);
    let query = format!("select md5(a), length(a) from pg_background_result({pid}) as (a text)");
    assert_eq!(session.rows(&query), [format!("{expected}|16000000")]);
}

#[case]
fn rows_greater_than_the_queue_arrive_whole(db: &Db) {
    let mut session = db.session();
    let pid = session
        .number("select pg_background_launch('select i, repeat(i::text, 10000) from generate_series(1, 50) i', 1024)");
    let query = format!(
        "select count(*), bool_and(b = repeat(a::text, 10000)) from pg_background_result({pid}) as (a int, b text)"
    );
    assert_eq!(session.rows(&query), ["50|t"]);
}

#[case]
fn a_smaller_and_a_greater_queue_give_the_same(db: &Db) {
    let mut session = db.session();
    for size in [128, 8192, 65_536, 16_777_216] {
        let pid = session
            .number(&format!("select pg_background_launch('select i from generate_series(1, 100000) i', {size})"));
        let query = format!("select count(*), sum(a) from pg_background_result({pid}) as (a int)");
        assert_eq!(session.rows(&query), ["100000|5000050000"], "{size}");
    }
    let pid = session.number("select pg_background_launch(sql => 'select 1', queue_size => 65536)");
    assert_eq!(session.rows(&format!("select * from pg_background_result(pid => {pid}) as (n int)")), ["1"]);
}

#[case]
fn the_alias_launches_too(db: &Db) {
    let mut session = db.session();
    let pid = session.number("select background_launch('select 2 + 2')");
    assert_eq!(session.rows(&format!("select * from pg_background_result({pid}) as (n int)")), ["4"]);
}

#[case]
fn a_result_is_read_once(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("select 1");
    assert_eq!(session.result(pid, "n int"), ["1"]);
    assert_eq!(session.result_error(pid).brief(), already_read(pid));
    assert_eq!(session.error(&format!("select pg_background_result({pid})")).brief(), already_read(pid));
}

#[case]
fn a_result_read_in_part_has_been_read(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("select i from generate_series(1, 100000) i");
    assert_eq!(session.rows(&format!("select pg_background_result({pid}) limit 1")), ["(1)"]);
    assert_eq!(session.result_error(pid).brief(), already_read(pid));
    let pid = session.launch("select i from generate_series(1, 100000) i");
    session.run(&format!("begin; declare c cursor for select * from pg_background_result({pid}) as (n int)"));
    assert_eq!(session.rows("fetch 2 from c"), ["1", "2"]);
    session.run("close c; commit");
    assert_eq!(session.result_error(pid).brief(), already_read(pid));
}

#[case]
fn a_failed_job_is_read_once(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("select 1 / 0");
    assert_eq!(session.result_error(pid).sqlstate(), "22012");
    assert_eq!(session.result_error(pid).brief(), already_read(pid));
}

#[case]
fn a_result_given_up_is_not_read(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("select 1");
    assert_eq!(session.rows(&format!("select pg_background_detach({pid})")), [""]);
    let error = session.result_error(pid);
    assert_eq!(error.brief(), (STATE_READ.to_owned(), format!("result of the job with PID {pid} has been given up")));
    let pid = session.launch("select 1");
    assert_eq!(session.rows(&format!("select * from pg_background_detach({pid})")), [""]);
}

#[case]
fn a_detached_job_runs_on(db: &Db) {
    let (mut holder, mut session) = (db.session(), db.session());
    session.run("create table t (a int)");
    holder.run("select pg_advisory_lock(5)");
    let pid = session.launch("select pg_advisory_xact_lock(5); insert into t values (1)");
    session.run(&format!("select pg_background_detach({pid})"));
    holder.run("select pg_advisory_unlock(5)");
    wait_until("the detached job's row", || session.value("select count(*) from t") == "1");
    wait_until("the end of its process", || !is_alive(pid));
}

fn not_attached(pid: i32) -> (String, String) {
    ("42704".to_owned(), format!("PID {pid} is not attached to this session"))
}

#[case]
fn an_unknown_pid_is_refused(db: &Db) {
    let mut session = db.session();
    for pid in [0, -1, 1, i32::MAX, i32::MIN, session.pid()] {
        assert_eq!(
            session.error(&format!("select * from pg_background_result({pid}) as (r text)")).brief(),
            not_attached(pid)
        );
        assert_eq!(session.error(&format!("select pg_background_detach({pid})")).brief(), not_attached(pid));
    }
}

#[case]
fn a_pid_of_another_session_is_refused(db: &Db) {
    let (mut owner, mut other) = (db.session(), db.session());
    let pid = owner.launch("select 1");
    assert_eq!(other.result_error(pid).brief(), not_attached(pid));
    assert_eq!(other.error(&format!("select pg_background_detach({pid})")).brief(), not_attached(pid));
    assert_eq!(owner.result(pid, "n int"), ["1"]);
}

#[case]
fn a_null_pid_is_refused(db: &Db) {
    let mut session = db.session();
    let expected = ("22004".to_owned(), "process ID must not be null".to_owned());
    assert_eq!(session.error("select * from pg_background_result(null) as (r text)").brief(), expected);
    assert_eq!(session.error("select pg_background_result(null)").brief(), expected);
    assert_eq!(session.error("select pg_background_detach(null)").brief(), expected);
}

#[case]
fn a_cancelled_read_is_read_again(db: &Db) {
    let (mut holder, mut session) = (db.session(), db.session());
    holder.run("select pg_advisory_lock(5)");
    let pid = session.launch("select i from generate_series(1, 1000) i; select pg_advisory_xact_lock(5)::text, 9");
    let read = format!("select b from pg_background_result({pid}) as (a text, b int)");
    session.send(&read);
    let waits = format!("select state, wait_event is not null from pg_stat_activity where pid = {}", session.pid());
    wait_until("the reader waits", || holder.rows(&waits) == ["active|t"]);
    session.canceller().cancel();
    assert_eq!(session.finish(&read).error.expect("an error").sqlstate(), "57014");
    holder.run("select pg_advisory_unlock(5)");
    assert_eq!(session.rows(&read), ["9"]);
}

#[case]
fn a_job_that_ended_leaves_no_process(db: &Db) {
    let mut session = db.session();
    let succeeded = session.launch("select i from generate_series(1, 10) i");
    let failed = session.launch("select 1 / 0");
    let tagged = session.launch("create table t (a int)");
    wait_until("the end of the processes", || [succeeded, failed, tagged].iter().all(|pid| !is_alive(*pid)));
    let left = "select count(*) from pg_stat_activity \
                where backend_type = 'pg_background' and datname = current_database()";
    assert_eq!(session.value(left), "0");
    assert_eq!(session.rows(&format!("select sum(n) from pg_background_result({succeeded}) as (n int)")), ["55"]);
    assert_eq!(session.result_error(failed).sqlstate(), "22012");
    assert_eq!(session.result(tagged, "tag text"), ["CREATE TABLE"]);
}

#[case]
fn a_result_is_read_long_after_its_process_ended(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("create table t as select 5 as a; table t");
    wait_until("the end of the process", || !is_alive(pid));
    session.run("drop table t");
    for number in 0..20 {
        assert_eq!(session.job(&format!("select {number}"), "n int"), [number.to_string()]);
    }
    assert_eq!(session.result(pid, "a int"), ["5"]);
}

#[case]
fn a_result_is_read_in_a_later_transaction(db: &Db) {
    let mut session = db.session();
    session.run("begin");
    let pid = session.launch("select 5");
    session.run("commit; begin; select 1; commit");
    assert_eq!(session.result(pid, "a int"), ["5"]);
}

#[case]
fn a_read_undone_by_a_rollback_has_been_read(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("select 5");
    session.run("begin");
    assert_eq!(session.result(pid, "a int"), ["5"]);
    session.run("rollback");
    assert_eq!(session.result_error(pid).brief(), already_read(pid));
}

#[case]
fn an_error_of_a_job_is_caught_and_the_session_goes_on(db: &Db) {
    let mut session = db.session();
    session.run(
        "create table t (a int); \
         do $$ begin insert into t values (1); \
         begin insert into t values (2); \
         perform * from pg_background_result(pg_background_launch('select 1 / 0')) as (n int); \
         exception when division_by_zero then insert into t values (3); end; end $$",
    );
    assert_eq!(session.rows("table t"), ["1", "3"]);
    session.run("begin; savepoint s");
    assert_eq!(session.job_error("select 1 / 0").sqlstate(), "22012");
    session.run("rollback to s");
    assert_eq!(session.job("select 6", "n int"), ["6"]);
    session.run("commit");
}

#[case]
fn many_jobs_one_after_another(db: &Db) {
    let mut session = db.session();
    session.run(
        "do $$ declare n int; begin for i in 1 .. 200 loop \
         select * into n from pg_background_result(pg_background_launch('select ' || i)) as (n int); \
         if n <> i then raise 'got % for %', n, i; end if; end loop; end $$",
    );
}

#[case]
fn many_jobs_given_up_at_once_all_run(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    let query = "select pg_background_detach(pg_background_launch('insert into t values (' || i || ')')) from \
        generate_series(1, 15) i";
    session.run(query);
    wait_until("the rows of all jobs", || session.rows("select count(*), sum(a) from t") == ["15|120"]);
}

#[case]
fn a_result_is_read_through_a_function(db: &Db) {
    let mut session = db.session();
    session.run(
        "create function inlined(pid int) returns table (n int) language sql as \
         'select n from pg_background_result(pid) as (n int)'; \
         create function looped(pid int) returns setof int language plpgsql as \
         $$ begin return query select * from pg_background_result(pid) as (n int); end $$",
    );
    for function in ["inlined", "looped"] {
        let pid = session.launch("select generate_series(1, 3)");
        assert_eq!(session.rows(&format!("select * from {function}({pid})")), ["1", "2", "3"]);
    }
}

#[case]
fn a_result_is_read_through_a_prepared_statement(db: &Db) {
    let mut session = db.session();
    session.run("prepare r (int) as select n from pg_background_result($1) as (n int)");
    for number in 0..8 {
        let pid = session.launch(&format!("select {number}"));
        assert_eq!(session.rows(&format!("execute r ({pid})")), [number.to_string()]);
    }
}

#[case]
fn a_result_read_twice_in_one_statement_is_refused(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("select 1");
    let query =
        format!("select * from pg_background_result({pid}) as a (n int), pg_background_result({pid}) as b (n int)");
    assert_eq!(session.error(&query).sqlstate(), STATE_READ);
}

#[case]
fn a_result_joined_several_times_is_read_once(db: &Db) {
    let mut session = db.session();
    session.run("set enable_material = off; set enable_hashjoin = off; set enable_mergejoin = off");
    let pid = session.launch("select generate_series(1, 4)");
    let query = format!(
        "select count(*), sum(n) from generate_series(1, 5) g left join \
        pg_background_result({pid}) as r (n int) on n <= g"
    );
    assert_eq!(session.rows(&query), ["14|30"]);
}

#[case]
fn a_result_is_copied(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("select generate_series(1, 3)");
    let reply = session.run(&format!("copy (select * from pg_background_result({pid}) as (n int)) to stdout"));
    assert_eq!(reply.statements[0].copied, b"1\n2\n3\n");
}

#[case]
fn a_held_cursor_over_a_result_works(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("select generate_series(1, 100000)");
    session.run(&format!(
        "begin; declare c cursor with hold for select * from pg_background_result({pid}) as (n \
        int); fetch 2 from c; commit"
    ));
    assert_eq!(session.rows("fetch 2 from c"), ["3", "4"]);
    assert_eq!(session.run("move all from c").tags(), ["MOVE 99996"]);
}
