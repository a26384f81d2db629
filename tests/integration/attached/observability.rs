//! Activity, logs and statistics that administrators see.

use pg_background_mgr_tests::cluster::is_alive;
use pg_background_mgr_tests::server_log::LogLine;
use pg_background_mgr_tests::{case, wait_for, wait_until, Cluster, Db, Session, FOREVER, SLEEP_FOREVER};

/// A job that runs until the holder lets go.
fn launch_waiting(db: &Db, holder: &mut Session, session: &mut Session, text: &str) -> i32 {
    holder.run("select pg_advisory_lock(77)");
    let pid = session.launch(text);
    wait_waiting(holder, pid);
    assert_eq!(holder.value("select current_database()"), db.name);
    pid
}

fn wait_waiting(watcher: &mut Session, pid: i32) {
    wait_until("the job waits for its lock", || {
        watcher.rows(&format!("select wait_event_type from pg_stat_activity where pid = {pid}")) == ["Lock"]
    });
}

const WAIT: &str = "select pg_advisory_xact_lock(77)";

#[case]
fn activity_shows_a_running_job(db: &Db) {
    let (mut holder, mut session) = (db.session(), db.client().application_name("loader").connect());
    let pid = launch_waiting(db, &mut holder, &mut session, WAIT);
    let query = format!(
        "select datname, usename, application_name, backend_type, state, query, wait_event_type, wait_event, \
         client_addr is null, leader_pid_or_null, backend_start < xact_start, xact_start <= query_start, \
         query_start <= state_change from pg_stat_activity where pid = {pid}"
    );
    let leader = if pg_background_mgr_tests::env::env().version >= 13 { "leader_pid" } else { "null" };
    let shown = holder.rows(&query.replace("leader_pid_or_null", leader));
    assert_eq!(shown, [format!("{}|postgres|loader|pg_background|active|{WAIT}|Lock|advisory|t|∅|t|t|t", db.name)]);
    holder.run("select pg_advisory_unlock(77)");
    assert_eq!(session.result(pid, "nothing text"), [""]);
}

#[case]
fn activity_shows_what_a_job_waits_for(db: &Db) {
    let mut session = db.session();
    let pid = session.launch(SLEEP_FOREVER);
    let query = format!("select backend_type, wait_event_type, wait_event from pg_stat_activity where pid = {pid}");
    wait_until("the job sleeps", || session.rows(&query) == ["pg_background|Timeout|PgSleep"]);
    session.run(&format!("select pg_cancel_backend({pid})"));
    assert_eq!(session.result_error(pid).sqlstate(), "57014");
}

#[case]
fn activity_shows_the_jobs_text_cut_as_a_clients(db: &Db) {
    let (mut holder, mut session) = (db.session(), db.session());
    let text = format!("{WAIT} -- {}", "ü".repeat(2000));
    let pid = launch_waiting(db, &mut holder, &mut session, &text);
    let shown = holder.value(&format!("select query from pg_stat_activity where pid = {pid}"));
    assert!(text.starts_with(&shown) && shown.len() > 1000 && shown.len() < 1024, "{}", shown.len());
    holder.run("select pg_advisory_unlock(77)");
    session.result(pid, "nothing text");
}

#[case]
fn activity_of_others_is_hidden_as_for_sessions(db: &Db) {
    let (mut holder, mut session) = (db.session(), db.session());
    let pid = launch_waiting(db, &mut holder, &mut session, WAIT);
    let role = db.role("stranger", "login");
    let mut stranger = db.client().user(&role).connect();
    let query = format!("select query from pg_stat_activity where pid = {pid}");
    assert_eq!(stranger.rows(&query), ["<insufficient privilege>"]);
    assert_eq!(stranger.error(&format!("select pg_cancel_backend({pid})")).sqlstate(), "42501");
    holder.run("select pg_advisory_unlock(77)");
    session.result(pid, "nothing text");
}

#[case(since = 14)]
fn activity_shows_the_query_identifier(db: &Db) {
    let (mut holder, mut session) = (db.session(), db.session());
    holder.run("set compute_query_id = on");
    session.run("set compute_query_id = on");
    let pid = launch_waiting(db, &mut holder, &mut session, WAIT);
    let mut client = db.session();
    client.run("set compute_query_id = on");
    client.send(WAIT);
    wait_waiting(&mut holder, client.pid());
    let query = format!("select distinct query_id from pg_stat_activity where pid in ({pid}, {})", client.pid());
    let identifiers = holder.rows(&query);
    assert_eq!(identifiers.len(), 1, "{identifiers:?}");
    assert_ne!(identifiers, ["∅"]);
    holder.run("select pg_advisory_unlock(77)");
    client.finish(WAIT);
    session.result(pid, "nothing text");
}

#[case]
fn activity_shows_the_launcher_waiting(db: &Db) {
    let (mut holder, mut session) = (db.session(), db.session());
    let pid = launch_waiting(db, &mut holder, &mut session, WAIT);
    let read = format!("select * from pg_background_result({pid}) as (nothing text)");
    session.send(&read);
    let query = format!("select state, wait_event is not null from pg_stat_activity where pid = {}", session.pid());
    wait_until("the launcher waits", || holder.rows(&query) == ["active|t"]);
    holder.run("select pg_advisory_unlock(77)");
    assert!(session.finish(&read).error.is_none());
}

#[case]
fn the_process_title_names_the_job(db: &Db) {
    let (mut holder, mut session) = (db.session(), db.session());
    let pid = launch_waiting(db, &mut holder, &mut session, WAIT);
    let processes = db.cluster.processes();
    let process = processes.iter().find(|process| process.pid == pid).expect("the worker's process");
    assert!(process.title.contains("pg_background"), "{}", process.title);
    holder.run("select pg_advisory_unlock(77)");
    session.result(pid, "nothing text");
}

#[case]
fn a_job_is_cancelled_by_pg_cancel_backend(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    let pid = session.launch(&format!("insert into t values (1); select {FOREVER}"));
    let mut other = db.session();
    other.wait_asleep(pid);
    assert!(other.holds(&format!("select pg_cancel_backend({pid})")));
    let error = session.result_error(pid);
    assert_eq!(error.brief(), ("57014".to_owned(), "canceling statement due to user request".to_owned()));
    assert_eq!(session.value("select count(*) from t"), "0");
}

#[case]
fn a_job_is_ended_by_pg_terminate_backend(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    let pid = session.launch(&format!("insert into t values (1); select {FOREVER}"));
    session.wait_asleep(pid);
    assert!(session.holds(&format!("select pg_terminate_backend({pid})")));
    let error = session.result_error(pid);
    assert_eq!((error.severity(), error.sqlstate()), ("ERROR".to_owned(), "57P01".to_owned()));
    assert_eq!(session.value("select count(*) from t"), "0");
}

/// The lines of `pid` once one of them satisfies `last`.
fn log_until(
    db: &Db,
    mark: pg_background_mgr_tests::server_log::LogMark,
    pid: i32,
    last: impl Fn(&LogLine) -> bool,
) -> Vec<LogLine> {
    wait_for("the worker's line in the server's log", || {
        let lines = db.log_of(mark, pid);
        lines.iter().any(&last).then_some(lines)
    })
}

#[case]
fn log_statement_logs_the_text_once(db: &Db) {
    let mut session = db.session();
    session.run("set log_statement = 'all'");
    let mark = db.log_mark();
    let text = "select 1;\n select 'two'::text";
    let pid = session.launch(text);
    session.result(pid, "word text");
    let lines = log_until(db, mark, pid, |line| line.text.starts_with("statement: "));
    let logged: Vec<_> = lines.iter().map(|line| (line.kind.as_str(), line.text.as_str())).collect();
    assert_eq!(logged, [("LOG", format!("statement: {text}").as_str())]);
}

#[case]
fn log_statement_ddl_logs_ddl_only(db: &Db) {
    let mut session = db.session();
    session.run("set log_statement = 'ddl'");
    let mark = db.log_mark();
    let silent = session.launch("select 1");
    session.result(silent, "n int");
    let text = "create table t (a int)";
    let pid = session.launch(text);
    session.result(pid, "result text");
    log_until(db, mark, pid, |line| line.text == format!("statement: {text}"));
    assert!(!db.log_of(mark, silent).iter().any(|line| line.text.contains("statement: select 1")));
}

#[case]
fn log_min_duration_statement_logs_text_and_duration(db: &Db) {
    let mut session = db.session();
    session.run("set log_min_duration_statement = 0");
    let mark = db.log_mark();
    let text = "select 1; select 'timed'::text";
    let pid = session.launch(text);
    session.result(pid, "word text");
    let lines = log_until(db, mark, pid, |line| line.text.starts_with("duration: "));
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].text.ends_with(&format!(" ms  statement: {text}")), "{lines:?}");
}

#[case]
fn log_duration_logs_the_duration(db: &Db) {
    let mut session = db.session();
    session.run("set log_duration = on");
    let mark = db.log_mark();
    let pid = session.launch("select 1");
    session.result(pid, "n int");
    let lines = log_until(db, mark, pid, |line| line.text.starts_with("duration: "));
    assert!(lines.len() == 1 && lines[0].text.ends_with(" ms"), "{lines:?}");
}

#[case]
fn a_job_that_succeeds_logs_nothing(db: &Db) {
    let mut session = db.session();
    let mark = db.log_mark();
    let pid = session.launch("create table t (a int); select 1");
    session.result(pid, "n int");
    wait_until("the worker has ended", || {
        session.rows(&format!("select 1 from pg_stat_activity where pid = {pid}")).is_empty()
    });
    assert_eq!(db.log_of(mark, pid), []);
    let about = format!("PID {pid}");
    let postmaster: Vec<_> = db.cluster.log_since(mark).into_iter().filter(|line| line.text.contains(&about)).collect();
    assert_eq!(postmaster, [], "an exit in order is not worth a line of the postmaster");
}

#[case(library = "auto_explain")]
fn auto_explain_logs_the_plan(db: &Db) {
    let mut session = db.session();
    session
        .run("create table planned (a int); set auto_explain.log_min_duration = 0; set auto_explain.log_analyze = on");
    let mark = db.log_mark();
    let pid = session.launch("select count(*) from planned");
    session.result(pid, "n bigint");
    let lines = log_until(db, mark, pid, |line| line.text.contains("plan:"));
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].text.contains("Query Text: select count(*) from planned"), "{lines:?}");
    assert!(lines[0].text.contains("Seq Scan on planned"), "{lines:?}");
}

/// A cluster of its own: the view has the texts of all databases, which need not be in one encoding.
fn with_pg_stat_statements() -> (Cluster, Session) {
    let cluster = Cluster::start_with_extension(&[("shared_preload_libraries", "pg_stat_statements")]);
    let mut session = cluster.session("postgres");
    session.run("create extension pg_stat_statements; create table counted (a int)");
    (cluster, session)
}

#[case(library = "pg_stat_statements")]
fn pg_stat_statements_counts_the_statements() {
    let (_cluster, mut session) = with_pg_stat_statements();
    for _ in 0..3 {
        session.job("insert into counted values (1), (2); select count(*) from counted where a = 1", "n bigint");
    }
    session.job("vacuum counted", "result text");
    let query = "select lower(query), calls, rows from pg_stat_statements s join pg_database d on d.oid = s.dbid \
                 where datname = current_database() and query ~* 'counted' \
                 and query !~ 'pg_background|create|lower' order by 1";
    wait_until("the vacuum is counted", || session.rows(query).iter().any(|row| row.starts_with("vacuum")));
    assert_eq!(
        session.rows(query),
        [
            "insert into counted values ($1), ($2)|3|6",
            "select count(*) from counted where a = $1|3|3",
            "vacuum counted|1|0"
        ]
    );
}

#[case(since = 14, library = "pg_stat_statements")]
fn pg_stat_statements_calls_them_top_level() {
    let (_cluster, mut session) = with_pg_stat_statements();
    session.job("insert into counted values (1)", "result text");
    let query = "select toplevel from pg_stat_statements join pg_database d on d.oid = dbid \
                 where datname = current_database() and query ~ 'insert into counted values' and query !~ 'pg_'";
    assert_eq!(session.rows(query), ["t"]);
}

#[case]
fn table_statistics_count_the_jobs_work(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    session.job("insert into t select generate_series(1, 100)", "result text");
    session.job("select count(*) from t", "n bigint");
    let query = "select n_tup_ins, seq_scan > 0 from pg_stat_user_tables where relname = 't'";
    wait_until("the statistics of the job", || {
        session.run("select pg_stat_clear_snapshot()");
        session.rows(query) == ["100|t"]
    });
}

#[case]
fn progress_views_show_a_jobs_command(db: &Db) {
    let mut session = db.session();
    session.run("create table t as select generate_series(1, 10) as a");
    let mut holder = db.session();
    holder.run("begin; insert into t values (11)");
    let pid = session.launch("create index concurrently i on t (a)");
    let query = format!(
        "select datname, relid::regclass, command from pg_stat_progress_create_index where pid = {pid} and \
         phase like 'waiting%'"
    );
    wait_until("the index build waits", || {
        session.rows(&query) == [format!("{}|t|CREATE INDEX CONCURRENTLY", db.name)]
    });
    holder.run("commit");
    // Reading takes a snapshot, which the build would wait for.
    wait_until("the end of the process", || !is_alive(pid));
    assert_eq!(session.result(pid, "result text"), ["CREATE INDEX"]);
}

#[case]
fn pg_locks_shows_a_jobs_locks(db: &Db) {
    let (mut holder, mut session) = (db.session(), db.session());
    session.run("create table t (a int)");
    holder.run("select pg_advisory_lock(77)");
    let pid = session.launch(&format!("lock table t in share mode; {WAIT}"));
    wait_waiting(&mut holder, pid);
    let query = format!("select mode, granted from pg_locks where pid = {pid} and relation = 't'::regclass");
    assert_eq!(holder.rows(&query), ["ShareLock|t"]);
    let query = format!("select pg_blocking_pids({pid})");
    assert_eq!(holder.value(&query), format!("{{{}}}", holder.pid()));
    holder.run("select pg_advisory_unlock(77)");
    session.result(pid, "nothing text");
}

#[case(library = "auto_explain")]
fn a_module_loaded_for_the_session_sees_its_jobs() {
    let cluster = Cluster::start_with_extension(&[]);
    let mut session = cluster.session("postgres");
    session.run("create table planned (a int)");
    session.run("load 'auto_explain'; set auto_explain.log_min_duration = 0");
    let mark = cluster.log_mark();
    let pid = session.launch("select count(*) from planned");
    session.result(pid, "n bigint");
    cluster.wait_log(mark, "the plan", |line| line.pid == pid && line.text.contains("Seq Scan on planned"));
}

#[case(library = "auto_explain")]
fn a_module_loaded_for_every_session_sees_jobs() {
    let cluster = Cluster::start_with_extension(&[
        ("session_preload_libraries", "auto_explain"),
        ("auto_explain.log_min_duration", "0"),
    ]);
    let mut session = cluster.session("postgres");
    session.run("create table planned (a int)");
    let mark = cluster.log_mark();
    let pid = session.launch("select count(*) from planned");
    session.result(pid, "n bigint");
    cluster.wait_log(mark, "the plan", |line| line.pid == pid && line.text.contains("Seq Scan on planned"));
}
