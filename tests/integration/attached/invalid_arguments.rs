//! Arguments that make no sense: a clear error each, and nothing lost.

use pg_background_mgr_tests::cluster::is_alive;
use pg_background_mgr_tests::{case, wait_until, Cluster, Db, ServerError, Session};

#[track_caller]
fn assert_error(error: &ServerError, sqlstate: &str, message: &str, hint: Option<&str>) {
    assert_eq!((error.sqlstate().as_str(), error.message().as_str()), (sqlstate, message));
    assert_eq!(error.hint().as_deref(), hint);
    assert_eq!(error.severity(), "ERROR");
}

#[case]
fn a_null_argument_is_refused(db: &Db) {
    let mut session = db.session();
    let calls = [
        ("select pg_background_launch(null)", "SQL text"),
        ("select background_launch(null)", "SQL text"),
        ("select pg_background_launch('select 1', null)", "queue size"),
        ("select pg_background_launch(null, null)", "SQL text"),
        ("select pg_background_result(null)", "process ID"),
        ("select * from pg_background_result(null) as (a int)", "process ID"),
        ("select pg_background_detach(null)", "process ID"),
    ];
    for (call, name) in calls {
        assert_error(&session.error(call), "22004", &format!("{name} must not be null"), None);
    }
    assert_eq!(session.job("select 1", "n int"), ["1"]);
}

#[case]
fn an_empty_text_is_refused(db: &Db) {
    let mut session = db.session();
    for text in ["''", "' '", "E' \\n\\t\\r\\f '", "repeat(' ', 100000)"] {
        for function in ["pg_background_launch", "background_launch"] {
            let error = session.error(&format!("select {function}({text})"));
            assert_error(&error, "22023", "SQL text must not be empty", None);
        }
    }
    // A comment is a text; so is a semicolon.
    assert_eq!(session.job("-- nothing", "tag text"), [""; 0]);
    assert_eq!(session.job(";", "tag text"), [""; 0]);
}

/// The smallest queue, as the error tells.
fn smallest_queue(session: &mut Session) -> i32 {
    let error = session.error("select pg_background_launch('select 1', 1)");
    let message = error.message();
    let number = message.strip_prefix("queue size must be at least ").and_then(|rest| rest.strip_suffix(" bytes"));
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{error}"))
}

#[case]
fn a_queue_size_out_of_bounds_is_refused(db: &Db) {
    let mut session = db.session();
    let least = smallest_queue(&mut session);
    assert!((1..=1024).contains(&least), "{least}");
    let hint = "With 0, or without it, the queue has its default size.";
    for size in [1, -1, -65536, i32::MIN, least - 1] {
        let error = session.error(&format!("select pg_background_launch('select 1', {size})"));
        assert_error(&error, "22023", &format!("queue size must be at least {least} bytes"), Some(hint));
    }
    let most = 268_435_456;
    let hint = "What does not fit in the queue is kept in memory and in a temporary file.";
    for size in [most + 1, i32::MAX] {
        let error = session.error(&format!("select pg_background_launch('select 1', {size})"));
        assert_error(&error, "22023", &format!("queue size must not exceed {most} bytes"), Some(hint));
    }
    let error = session.error("select pg_background_launch('select 1', 2147483648)");
    assert_eq!(error.sqlstate(), "42883", "beyond an int: {error}");
}

#[case]
fn queue_sizes_within_bounds_work(db: &Db) {
    let mut session = db.session();
    let least = smallest_queue(&mut session);
    for size in [least, least + 1, least + 7, 1000, 1_048_577] {
        let call = format!(
            "select pg_background_launch('select i, repeat(''x'', i % 300) from generate_series(1, 3000) i', {size})"
        );
        let pid = session.number(&call);
        let read =
            format!("select count(*), sum(a), sum(length(b)) from pg_background_result({pid}) as (a int, b text)");
        assert_eq!(session.rows(&read), ["3000|4501500|448500"], "{size}");
    }
}

#[track_caller]
fn assert_not_attached(session: &mut Session, pid: i32) {
    let hint = "A result can be read only in the session that launched the job, and by the role that did. Jobs of \
                pg_background_launch_num have theirs in log_background.";
    for call in [
        format!("select pg_background_result({pid})"),
        format!("select * from pg_background_result({pid}) as (a int)"),
        format!("select pg_background_detach({pid})"),
    ] {
        let error = session.error(&call);
        assert_error(&error, "42704", &format!("PID {pid} is not attached to this session"), Some(hint));
    }
}

#[case]
fn a_pid_that_is_no_job_is_refused(db: &Db) {
    let mut session = db.session();
    let own = session.pid();
    for pid in [0, -1, 1, own, i32::MAX, i32::MIN] {
        assert_not_attached(&mut session, pid);
    }
}

#[case]
fn a_pid_of_another_session_is_refused(db: &Db) {
    let (mut owner, mut other) = (db.session(), db.session());
    let pid = owner.launch("select 7");
    assert_not_attached(&mut other, pid);
    // Not even for a session of the same role that has taken its place.
    assert_eq!(owner.result(pid, "n int"), ["7"]);
    let pid = owner.launch("select 7");
    let process = owner.pid();
    drop(owner);
    wait_until("the end of the owner", || !is_alive(process));
    assert_not_attached(&mut db.session(), pid);
}

const AGAIN: Option<&str> = Some("Launch the job again to have its result again.");

#[track_caller]
fn assert_gone(session: &mut Session, pid: i32, how: &str) {
    let message = format!("result of the job with PID {pid} has {how}");
    for call in [
        format!("select pg_background_result({pid})"),
        format!("select * from pg_background_result({pid}) as (a int)"),
        format!("select pg_background_detach({pid})"),
    ] {
        assert_error(&session.error(&call), "42704", &message, AGAIN);
    }
}

#[case]
fn a_result_that_was_read_is_refused(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("select 1");
    assert_eq!(session.result(pid, "n int"), ["1"]);
    assert_gone(&mut session, pid, "already been read");
    let pid = session.launch("select 1 / 0");
    assert_eq!(session.result_error(pid).sqlstate(), "22012");
    assert_gone(&mut session, pid, "already been read");
}

#[case]
fn a_result_that_was_given_up_is_refused(db: &Db) {
    let mut session = db.session();
    let pid = session.launch("select 1");
    session.run(&format!("select pg_background_detach({pid})"));
    assert_gone(&mut session, pid, "been given up");
    assert_gone(&mut session, pid, "been given up");
}

#[case]
fn jobs_nested_too_deeply_are_refused(db: &Db) {
    let mut session = db.session();
    session.run(
        "create table reached (depth int); \
         create procedure dig(depth int) language plpgsql as $$ declare tag text; begin \
         insert into reached values (depth); commit; \
         select * into tag from pg_background_result(pg_background_launch(format('call dig(%s)', depth + 1))) \
         as (tag text); end $$",
    );
    let error = session.job_error("call dig(1)");
    assert_error(&error, "54000", "background jobs are nested too deeply", None);
    assert_eq!(error.detail().as_deref(), Some("16 jobs that have launched each other still run."));
    assert_eq!(session.value("select max(depth) from reached"), "16");
    assert_eq!(session.job("select 1", "n int"), ["1"]);
}

#[case]
fn nothing_is_launched_by_a_refused_call(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    for size in ["1", "-1", "null", "2147483647"] {
        session.error(&format!("select pg_background_launch('insert into ran values (1)', {size})"));
    }
    // A statement that fails after it has launched has launched.
    session.error("select pg_background_launch('insert into ran values (2)'), 1 / (random() * 0)::int");
    wait_until("the job's row", || session.value("select count(*) from ran") == "1");
    assert_eq!(session.rows("table ran"), ["2"]);
}

#[case]
fn a_text_of_a_hundred_megabytes_is_refused() {
    let cluster = Cluster::start_with_extension(&[]);
    let before = cluster.baseline();
    let mut session = cluster.session("postgres");
    for (length, function) in [
        (104_857_600, "pg_background_launch"),
        (104_857_600, "background_launch"),
        (67_108_865, "pg_background_launch"),
    ] {
        let error = session.error(&format!("select {function}(repeat('x', {length}))"));
        let hint = Some("Put the data into a table and let the job read it.");
        assert_error(&error, "54000", "SQL text is too long", hint);
        let detail = format!("It has {length} bytes; a background job may have 67108864.");
        assert_eq!(error.detail(), Some(detail));
    }
    assert_eq!(session.job("select 1", "n int"), ["1"]);
    drop(session);
    cluster.assert_sound(&before);
}

#[case]
fn the_longest_text_runs() {
    let cluster = Cluster::start_with_extension(&[]);
    let before = cluster.baseline();
    let mut session = cluster.session("postgres");
    let (head, tail) = ("select length('", "')");
    let filling = 67_108_864 - head.len() - tail.len();
    let pid =
        session.number(&format!("select pg_background_launch('select length(''' || repeat('x', {filling}) || ''')')"));
    let pid = i32::try_from(pid).expect("a process id");
    assert_eq!(session.result(pid, "n int"), [filling.to_string()]);
    drop(session);
    cluster.assert_sound(&before);
}
