//! Uses of the classic interface that articles, courses and notes about it show, each as a test.

use crate::support::barrier::{self, Barrier};
use crate::support::job_stage::settle;
use pg_background_mgr_tests::cluster::is_alive;
use pg_background_mgr_tests::{case, literal, wait_until, Cluster, Db, Session, FOREVER};

fn number(text: &str) -> i32 {
    text.parse().unwrap_or_else(|_| panic!("not a process id: {text}"))
}

#[case]
fn vacuum_full_runs_in_the_background(db: &Db) {
    let mut session = db.session();
    session.run("create table my_table as select i from generate_series(1, 20000) i; delete from my_table");
    let file = session.value("select pg_relation_filenode('my_table')");
    let pid = session.value("SELECT pg_background_launch('VACUUM FULL my_table')");
    assert_eq!(session.result(number(&pid), "result text"), ["VACUUM"]);
    assert_ne!(session.value("select pg_relation_filenode('my_table')"), file, "the table was written anew");
}

/// Every message is INFO, whatever the session's `client_min_messages`, and names the table.
#[track_caller]
fn assert_verbose(session: &mut Session, table: &str) {
    let messages = session.notices();
    assert!(!messages.is_empty());
    for message in &messages {
        assert_eq!((message.severity().as_str(), message.sqlstate().as_str()), ("INFO", "00000"));
    }
    let text: Vec<String> = messages.iter().map(|message| message.message()).collect();
    assert!(text[0].starts_with("vacuuming \"") && text[0].ends_with(&format!("public.{table}\"")), "{text:?}");
    let body: Vec<String> =
        messages.iter().flat_map(|message| [Some(message.message()), message.detail()]).flatten().collect();
    // What it says of the index depends on whether others keep the dead rows.
    for word in ["toast", "CPU"] {
        assert!(body.iter().any(|line| line.contains(word)), "{word} is not in: {body:?}");
    }
}

const SALES: &str = "create table sales (id int primary key, note text); \
    insert into sales select i, repeat('x', 100) from generate_series(1, 500) i; delete from sales where id % 2 = 0";

#[case]
fn vacuum_verbose_gives_its_messages(db: &Db) {
    let mut session = db.session();
    session.run(SALES);
    let pid = session.launch("vacuum verbose public.sales");
    session.notices();
    assert_eq!(session.result(pid, "result text"), ["VACUUM"]);
    assert_verbose(&mut session, "sales");
}

#[case]
fn vacuum_verbose_is_launched_and_read_in_one_statement(db: &Db) {
    let mut session = db.session();
    session.run(SALES);
    session.run("set client_min_messages = error");
    let query =
        "SELECT * FROM pg_background_result(pg_background_launch('vacuum verbose public.sales')) as (result TEXT)";
    assert_eq!(session.rows(query), ["VACUUM"]);
    assert_verbose(&mut session, "sales");
}

#[case]
fn indexes_are_made_in_the_background(db: &Db) {
    let mut session = db.session();
    session.run("create table t as select i as a, i % 10 as b from generate_series(1, 1000) i");
    for (text, tag) in [
        ("CREATE INDEX by_a ON t (a)", "CREATE INDEX"),
        ("CREATE INDEX CONCURRENTLY by_b ON t (b)", "CREATE INDEX"),
        ("REINDEX TABLE t", "REINDEX"),
        ("ANALYZE t", "ANALYZE"),
        ("CLUSTER t USING by_a", "CLUSTER"),
    ] {
        let pid = session.launch(text);
        wait_until("the end of the process", || !is_alive(pid));
        assert_eq!(session.result(pid, "result text"), [tag], "{text}");
    }
    assert_eq!(session.rows("select indexname from pg_indexes where tablename = 't' order by 1"), ["by_a", "by_b"]);
    assert_eq!(session.value("select reltuples from pg_class where relname = 't'"), "1000");
}

/// The build waits for every older snapshot, so the procedure must not hold one while it waits for the build.
#[case]
fn an_index_is_made_concurrently_from_a_procedure(db: &Db) {
    let mut session = db.session();
    session.run(
        "create table t as select i as a from generate_series(1, 1000) i; \
         create procedure make_index() language plpgsql as $$ declare job int; begin \
         job := pg_background_launch('create index concurrently by_a on t (a)'); \
         loop commit; exit when exists (select from pg_index where indexrelid = to_regclass('by_a') and indisvalid); \
         end loop; \
         perform * from pg_background_result(job) as (tag text); raise notice 'made'; end $$",
    );
    session.run("call make_index()");
    assert_eq!(session.notice_texts(), ["NOTICE: made"]);
}

#[case]
fn an_expression_is_computed_in_the_background(db: &Db) {
    let mut session = db.session();
    let pid = session.value("SELECT pg_background_launch($$ SELECT 2+2 FROM (SELECT pg_sleep(0.1)) s $$)");
    let query = format!("SELECT * FROM pg_background_result({pid}) AS (result integer)");
    assert_eq!(session.rows(&query), ["4"]);
}

#[case]
fn the_short_name_launches(db: &Db) {
    let mut session = db.session();
    let pid = session.value("SELECT background_launch('SELECT 2+2')");
    let query = format!("SELECT * FROM pg_background_result({pid}) AS (result integer)");
    assert_eq!(session.rows(&query), ["4"]);
    let pid = session.value("SELECT background_launch('SELECT generate_series(1, 1000000)')");
    assert_eq!(session.rows(&format!("SELECT pg_background_detach({pid})")), [""]);
    wait_until("the end of the process", || !is_alive(number(&pid)));
}

#[case]
fn an_insert_is_launched_read_and_seen(db: &Db) {
    let mut session = db.session();
    session.run("CREATE TABLE t(id integer)");
    let query = "SELECT * FROM pg_background_result(pg_background_launch('INSERT INTO t SELECT 1')) AS (result TEXT)";
    assert_eq!(session.rows(query), ["INSERT 0 1"]);
    assert_eq!(session.rows("SELECT * FROM t"), ["1"]);
    session.run("set lock_timeout = '10s'; truncate table t");
    assert_eq!(session.rows("SELECT * FROM t"), [""; 0]);
}

#[case]
fn a_row_is_inserted_after_a_while(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    let pid = session.value(
        "select * from pg_background_launch($$ insert into t select round(random() * 10) \
         where pg_sleep(0.1) is not null $$)",
    );
    assert_eq!(session.result(number(&pid), "result text"), ["INSERT 0 1"]);
    assert!(session.holds("select a between 0 and 10 from t"));
    let query = "select * from pg_background_launch($$ INSERT INTO t VALUES (850); $$) where pg_sleep(0.1) is not null";
    let pid = session.value(query);
    assert_eq!(session.result(number(&pid), "result text"), ["INSERT 0 1"]);
    assert_eq!(session.value("select count(*) from t where a = 850"), "1");
}

#[case]
fn a_table_is_counted_in_a_select_list(db: &Db) {
    let mut session = db.session();
    session.run("create table your_table as select generate_series(1, 37)");
    assert_eq!(
        session.rows("SELECT pg_background_result(pg_background_launch('SELECT count(*) FROM your_table'))"),
        ["(37)"]
    );
}

#[case]
fn a_result_is_read_in_a_select_list_by_its_number(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    for (text, expected) in [
        ("VACUUM t", "(VACUUM)"),
        ("SELECT 1, 'a'::text", "(1,a)"),
        ("SELECT 'two words'::text", "(\"two words\")"),
        ("INSERT INTO t VALUES (1), (2)", "(\"INSERT 0 2\")"),
    ] {
        let pid = session.launch(text);
        assert_eq!(session.rows(&format!("SELECT pg_background_result({pid})")), [expected], "{text}");
    }
}

#[case]
fn the_job_tells_who_it_runs_as(db: &Db) {
    let role = db.role("student", "login");
    let text = "$$ select 5555, (current_user || '-' || session_user || '-' || random()::text)::text as who \
                where pg_sleep(0.1) is not null $$";
    for (mut session, name) in [(db.session(), "postgres"), (db.client().user(&role).connect(), role.as_str())] {
        let pid = session.value(&format!("select pg_background_launch({text})"));
        let rows = session.result(number(&pid), "a int, who text");
        assert_eq!(rows.len(), 1);
        assert!(rows[0].starts_with(&format!("5555|{name}-{name}-0.")), "{rows:?}");
    }
}

#[case]
fn a_launch_is_called_as_a_table(db: &Db) {
    let mut session = db.session();
    let pid = session.value("SELECT * FROM pg_background_launch('SELECT 42')");
    let query = format!("SELECT r.result + 1 FROM pg_background_result({pid}) AS r (result integer)");
    assert_eq!(session.rows(&query), ["43"]);
}

#[case]
fn jobs_are_launched_in_a_loop(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    session.run(
        "do $$ declare jobs int[] := '{}'; job int; tag text; begin \
         for i in 1 .. 8 loop jobs := jobs || pg_background_launch(format('insert into t values (%s)', i)); end loop; \
         foreach job in array jobs loop \
         select r.tag into tag from pg_background_result(job) as r (tag text); raise notice '%', tag; end loop; end $$",
    );
    assert_eq!(session.notice_texts(), ["NOTICE: INSERT 0 1"; 8]);
    assert_eq!(session.value("select string_agg(a::text, ' ' order by a) from t"), "1 2 3 4 5 6 7 8");
}

#[case]
fn jobs_are_launched_for_the_rows_of_a_table(db: &Db) {
    let mut session = db.session();
    // Texts of every length that a table stores in another way: short, long, compressed, outside of the row.
    session.run(
        "create table todo (id int, query text); create table done (id int, length int); \
         insert into todo values (1, 'select 1'), (2, 'table pg_am limit 0'), (3, 'insert into done values (3, 0)'), \
         (4, 'insert into done values (4, length(''' || repeat('y', 300) || '''))'), \
         (5, 'insert into done values (5, length(''' || repeat('y', 100000) || '''))'); \
         alter table todo alter query set storage external; \
         insert into todo values (6, 'insert into done values (6, length(''' || repeat('z', 100000) || '''))')",
    );
    session.run("create table started as select id, pg_background_launch(query) as pid from todo order by id");
    let pids = session.rows("select pid from started where id > 2 order by id");
    for pid in &pids {
        assert_eq!(session.result(number(pid), "result text"), ["INSERT 0 1"]);
    }
    assert_eq!(session.rows("select * from done order by id"), ["3|0", "4|300", "5|100000", "6|100000"]);
    let pids = session.rows("select pid from started where id < 3 order by id");
    assert_eq!(session.result(number(&pids[0]), "n int"), ["1"]);
    session.run(&format!("select pg_background_detach({})", pids[1]));
}

/// The comparison of costs itself is a benchmark; here the loop only has to work and to leave nothing behind.
#[case]
fn a_thousand_jobs_cost_no_thousand_processes(db: &Db) {
    let mut session = db.session();
    session.run(
        "DO $$ DECLARE result integer; total integer := 0; BEGIN FOR i IN 1 .. 1000 LOOP \
         SELECT * INTO result FROM pg_background_result(pg_background_launch('SELECT 1')) AS (result integer); \
         total := total + result; END LOOP; RAISE NOTICE '%', total; END $$",
    );
    assert_eq!(session.notice_texts(), ["NOTICE: 1000"]);
}

#[case]
fn a_sleeping_job_is_found_in_the_activity(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    let text = &format!(" SELECT 2+2 FROM (SELECT {FOREVER}) s ");
    let pid = session.launch(text);
    let query =
        format!("SELECT query, backend_type, wait_event_type, wait_event FROM pg_stat_activity WHERE pid = {pid}");
    let expected = format!("{text}|pg_background|Timeout|PgSleep");
    wait_until("the job sleeps", || watcher.rows(&query) == [expected.clone()]);
    assert_eq!(watcher.value(&format!("select count(*) from pg_stat_activity where PID = {pid}")), "1");
    assert!(watcher.holds(&format!("select pg_terminate_backend({pid})")));
    assert_eq!(session.result_error(pid).sqlstate(), "57P01");
}

#[case]
fn running_jobs_are_found_by_what_they_are_not(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    let mut barrier = Barrier::close(db.session());
    let mut pids: Vec<String> = (0..3).map(|_| session.launch(barrier::WAIT).to_string()).collect();
    pids.iter().for_each(|pid| barrier.wait_for(number(pid)));
    let query = "select pid from pg_stat_activity where backend_type !~* 'launcher' and pid <> pg_backend_pid() \
                 and not backend_type in ('walwriter', 'checkpointer', 'background writer') and state = 'active' \
                 and datname = current_database() order by pid::text";
    pids.sort();
    assert_eq!(watcher.rows(query), pids);
    barrier.open();
    for pid in &pids {
        session.run(&format!("select pg_background_result({pid})"));
    }
}

#[case]
fn a_million_rows_are_detached(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    let pid = session.launch(" SELECT * FROM generate_series(1,1000000) ");
    let query = format!("SELECT state FROM pg_stat_activity WHERE pid = {pid}");
    wait_until("the job has given its rows", || watcher.rows(&query) == ["idle"]);
    assert_eq!(session.rows(&format!("SELECT * FROM pg_background_detach({pid})")), [""]);
    wait_until("nothing of the job is left", || watcher.rows(&query).is_empty());
    let error = session.result_error(pid);
    assert_eq!(error.brief(), ("42704".to_owned(), format!("result of the job with PID {pid} has been given up")));
}

#[case]
fn a_million_rows_of_a_function_are_detached(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("SELECT generate_series(1, 1000000)");
    assert_eq!(session.rows(&format!("SELECT pg_background_detach({pid})")), [""]);
    wait_until("the end of the process", || !is_alive(pid));
}

#[case]
fn a_job_writes_what_its_callers_rollback_does_not_undo(db: &Db) {
    let mut session = db.session();
    session.run(
        "create table orders (id int); create table audit (what text); \
         create function note(what text) returns void language plpgsql as $$ begin \
         perform * from pg_background_result(pg_background_launch(format('insert into audit values (%L)', what))) \
         as (tag text); end $$; \
         create function on_order() returns trigger language plpgsql as $$ begin \
         perform note('order ' || new.id || '''s row'); return new; end $$; \
         create trigger watch after insert on orders for each row execute function on_order()",
    );
    session.run("begin; insert into orders values (7); rollback");
    assert_eq!(session.rows("table orders"), [""; 0]);
    assert_eq!(session.rows("table audit"), ["order 7's row"]);
    session.error("do $$ begin insert into orders values (8); raise 'no'; end $$");
    assert_eq!(session.rows("table audit"), ["order 7's row", "order 8's row"]);
}

/// A procedure that works through a table in batches, commits each, and has the table vacuumed in between.
const RATING: &str = "
create table books (id int primary key, up int, down int, rating numeric, rated_at timestamptz);
insert into books (id, up, down) select i, i % 7, i % 5 from generate_series(1, 46) i;
create function rating(up int, down int) returns numeric immutable language sql as
'select case when up + down > 0 then round(up::numeric / (up + down), 3) else 0 end';
create procedure update_rating(batch int, older interval default '0 sec') language plpgsql as $$
declare changed int; began timestamptz := clock_timestamp();
begin
    loop
        with chosen as (
            select id from books where rating is null or began - rated_at > older \
            order by id limit batch for update skip locked)
        update books b set rating = rating(up, down), rated_at = clock_timestamp() from chosen where chosen.id = b.id;
        get diagnostics changed = row_count;
        raise notice 'updated % rows', changed;
        commit;
        perform * from pg_background_result(pg_background_launch('vacuum books')) as (result text);
        raise notice 'vacuumed';
        exit when not exists (select from books where rating is null or began - rated_at > older);
    end loop;
    raise notice 'all done';
end $$;
";

fn rating_notices() -> Vec<String> {
    let mut lines = Vec::new();
    for changed in [10, 10, 10, 10, 6] {
        lines.push(format!("NOTICE: updated {changed} rows"));
        lines.push("NOTICE: vacuumed".to_owned());
    }
    lines.push("NOTICE: all done".to_owned());
    lines
}

const RATED: &str = "select count(*), count(rating), sum(rating) from books";

#[track_caller]
fn assert_vacuumed(session: &mut Session, times: &str) {
    // Statistics come a moment later.
    let query = "select vacuum_count from pg_stat_user_tables where relname = 'books'";
    wait_until("the statistics of the vacuums", || session.value(query) == times);
}

#[case]
fn a_rating_is_updated_in_batches_with_a_vacuum_between_them(db: &Db) {
    let mut session = db.session();
    session.run(RATING);
    session.run("call update_rating(10, interval '1 day')");
    assert_eq!(session.notice_texts(), rating_notices());
    let expected = session.value("select count(*), count(*), sum(rating(up, down)) from books");
    assert_eq!(session.value(RATED), expected);
    assert_vacuumed(&mut session, "5");
    // Nothing to do: one empty batch.
    session.run("call update_rating(10, interval '1 day')");
    assert_eq!(session.notice_texts(), ["NOTICE: updated 0 rows", "NOTICE: vacuumed", "NOTICE: all done"]);
}

#[case]
fn a_rating_is_updated_in_a_worker_that_has_workers(db: &Db) {
    let mut session = db.session();
    session.run(RATING);
    let query = "SELECT * FROM pg_background_result(pg_background_launch('CALL update_rating(10)')) AS (result text)";
    assert_eq!(session.rows(query), ["CALL"]);
    assert_eq!(session.notice_texts(), rating_notices());
    assert_vacuumed(&mut session, "5");
    // The same one level deeper.
    let inner = format!(
        "do $$ begin perform 1 from pg_background_result(pg_background_launch({})) as (result text); end $$",
        literal("CALL update_rating(10)")
    );
    assert_eq!(session.job(&inner, "result text"), ["DO"]);
    assert_eq!(session.notice_texts(), rating_notices());
    assert_vacuumed(&mut session, "10");
}

const NO_PROCESS: &str = "could not register background process";
const HINT: &str = "You may need to increase max_worker_processes.";

/// One slot is the server's own, for logical replication; one is left.
#[case]
fn a_launch_is_tried_again_until_a_process_is_free() {
    let cluster = Cluster::start_with_extension(&[("max_worker_processes", "2")]);
    let before = cluster.baseline();
    settle(&cluster);
    let mut session = cluster.session("postgres");
    let mut barrier = Barrier::close(cluster.session("postgres"));
    let long = session.launch(barrier::WAIT);
    barrier.wait_for(long);
    session.run(
        "do $$ declare hint text; begin perform pg_background_launch('SELECT 42'); \
         exception when others then get stacked diagnostics hint = pg_exception_hint; \
         raise notice '% | % | %', sqlstate, sqlerrm, hint; end $$",
    );
    assert_eq!(session.notice_texts(), [format!("NOTICE: 53000 | {NO_PROCESS} | {HINT}")]);

    session.run(
        "create function try_background_launch(sql text, retries int) returns int language plpgsql as $$ begin \
         loop begin return pg_background_launch(sql); \
         exception when insufficient_resources then \
         if retries = 0 then raise; end if; \
         retries := retries - 1; raise notice 'waiting, % retries left', retries; perform pg_sleep(0.05); \
         end; end loop; end $$",
    );
    let error = session.error("select try_background_launch('SELECT 42', 2)");
    assert_eq!(error.brief(), ("53000".to_owned(), NO_PROCESS.to_owned()));
    assert_eq!(error.hint().as_deref(), Some(HINT));
    assert_eq!(session.notice_texts(), ["NOTICE: waiting, 1 retries left", "NOTICE: waiting, 0 retries left"]);

    let query = "SELECT * FROM pg_background_result(try_background_launch('SELECT 42', 10000)) AS (result integer)";
    session.send(query);
    assert_eq!(session.next_notice().message(), "waiting, 9999 retries left");
    assert_eq!(session.next_notice().message(), "waiting, 9998 retries left");
    barrier.open();
    let reply = session.finish(query);
    assert!(reply.error.is_none(), "{:?}", reply.error);
    assert_eq!(reply.last_rows().expect("a row").text_rows(), ["42"]);
    session.run(&format!("select pg_background_result({long})"));
    drop(session);
    settle(&cluster);
    cluster.assert_sound(&before);
}

#[case]
fn a_function_that_launches_too_many_fails_with_a_hint() {
    let cluster = Cluster::start_with_extension(&[("max_worker_processes", "6")]);
    let before = cluster.baseline();
    settle(&cluster);
    let mut session = cluster.session("postgres");
    let barrier = Barrier::close(cluster.session("postgres"));
    session.run(&format!(
        "create function launch_many(n int) returns setof int language plpgsql as $$\n\
         declare job int;\n\
         begin for i in 1 .. n loop\n\
         job := pg_background_launch({});\n\
         return next job; end loop; end $$",
        literal(barrier::WAIT)
    ));
    let error = session.error("SELECT * FROM launch_many(15)");
    assert_eq!(error.brief(), ("53000".to_owned(), NO_PROCESS.to_owned()));
    assert_eq!(error.hint().as_deref(), Some(HINT));
    assert_eq!(error.context().as_deref(), Some("PL/pgSQL function launch_many(integer) line 4 at assignment"));
    // The five that were launched before the failure run, whatever became of the statement.
    let mut watcher = cluster.session("postgres");
    let running =
        "select count(*) from pg_stat_activity where backend_type = 'pg_background' and wait_event_type = 'Lock'";
    wait_until("five jobs at the barrier", || watcher.value(running) == "5");
    barrier.open();
    settle(&cluster);
    assert_eq!(session.rows("SELECT count(*) FROM launch_many(5)"), ["5"]);
    drop(session);
    settle(&cluster);
    cluster.assert_sound(&before);
}

#[case]
fn the_number_of_processes_needs_a_restart(db: &Db) {
    let mut session = db.session();
    let error = session.error("set max_worker_processes = 30");
    assert_eq!(
        error.brief(),
        (
            "55P02".to_owned(),
            "parameter \"max_worker_processes\" cannot be changed without restarting the server".to_owned()
        )
    );
    let pid = session.launch("set max_worker_processes = 30");
    assert_eq!(session.result_error(pid).brief(), error.brief());
}

/// Returns the connection string by which dblink reaches the database that it is in.
fn own_connection(session: &mut Session) -> String {
    session.value(
        "select format('host=%s dbname=%s user=postgres', current_setting('unix_socket_directories'), \
         current_database())",
    )
}

#[case(library = "dblink")]
fn dblink_works_beside_it(db: &Db) {
    let mut session = db.session();
    session.run("create extension dblink");
    let connection = literal(&own_connection(&mut session));
    session.run(&format!("select dblink_connect('mine', {connection})"));
    let pid = session.launch("SELECT 2+2");
    assert_eq!(session.rows("SELECT * FROM dblink('mine', 'SELECT 2+2') AS t (result int)"), ["4"]);
    assert_eq!(session.result(pid, "result int"), ["4"]);
    // A session behind dblink launches too, and its jobs are its own.
    let query = "select * from dblink('mine', 'select pg_background_launch(''select 5'')') as t (pid int)";
    let pid = number(&session.value(query));
    // The worker may be the one that this session has had a result of.
    assert_eq!(session.result_error(pid).sqlstate(), "42704");
    let query =
        format!("select * from dblink('mine', 'select * from pg_background_result({pid}) as (n int)') as t (n int)");
    assert_eq!(session.rows(&query), ["5"]);
    // And a job uses dblink.
    let query = format!("select * from dblink({connection}, 'select 6') as t (n int)");
    assert_eq!(session.job(&query, "n int"), ["6"]);
    session.run("select dblink_disconnect('mine')");
}

#[case(library = "dblink")]
fn dblink_reads_what_a_job_did(db: &Db) {
    let mut session = db.session();
    session.run("create extension dblink; create table t (a int)");
    let connection = literal(&own_connection(&mut session));
    // Both are transactions of their own, so each sees what the other has committed, also before the caller commits.
    session.run("begin");
    assert_eq!(session.job("insert into t values (1)", "result text"), ["INSERT 0 1"]);
    assert_eq!(session.rows(&format!("select * from dblink({connection}, 'table t') as t (a int)")), ["1"]);
    session.run(&format!("select dblink_exec({connection}, 'insert into t values (2)')"));
    assert_eq!(session.job("select a from t order by a", "a int"), ["1", "2"]);
    session.run("rollback");
    assert_eq!(session.rows("table t"), ["1", "2"]);
}
