//! Workers that have nothing to do, and jobs that run in them.

use crate::support::batch::wait_gone;
use pg_background_mgr_tests::cluster::is_alive;
use pg_background_mgr_tests::{literal, wait_until, ServerError, Session};
use std::collections::BTreeMap;

/// Rows, error and notices of a job, as its launcher sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub rows: Vec<String>,
    pub error: Option<BTreeMap<char, String>>,
    pub notices: Vec<BTreeMap<char, String>>,
}

/// Returns all fields but the places in the server's source.
fn fields(error: &ServerError) -> BTreeMap<char, String> {
    let named = error.fields.keys().filter(|letter| !"FLR".contains(**letter));
    named.filter_map(|letter| Some((*letter, error.field(*letter)?))).collect()
}

/// Reads a job whatever its columns.
#[track_caller]
pub fn read(session: &mut Session, pid: i32) -> Outcome {
    session.notices();
    let reply = session.ask(&format!("select public.pg_background_result({pid})"));
    Outcome {
        rows: reply.last_rows().map(|statement| statement.text_rows()).unwrap_or_default(),
        error: reply.error.as_ref().map(fields),
        notices: session.notices().iter().map(fields).collect(),
    }
}

/// Runs a job and reads it: its process, and what came of it.
#[track_caller]
pub fn run(session: &mut Session, sql: &str) -> (i32, Outcome) {
    let pid = session.launch(sql);
    (pid, read(session, pid))
}

/// A worker in `pg_stat_activity` that has nothing to do.
const IS_IDLE: &str = "state = 'idle' and wait_event_type = 'Extension'";

/// Waits until a worker has nothing to do, and whoever comes gets it.
#[track_caller]
pub fn wait_idle(session: &mut Session, pid: i32) {
    assert!(wait_idle_or_gone(session, pid), "the worker has gone");
}

/// Waits until a worker has nothing to do or is gone. Returns whether it is still there.
#[track_caller]
fn wait_idle_or_gone(session: &mut Session, pid: i32) -> bool {
    let query = format!("select count(*) from pg_stat_activity where pid = {pid} and {IS_IDLE}");
    let mut is_idle = false;
    wait_until("the worker has nothing to do", || {
        is_idle = session.value(&query) == "1";
        is_idle || !is_alive(pid)
    });
    is_idle
}

/// The same of all that have logged in as this session's role.
#[track_caller]
pub fn wait_all_idle(session: &mut Session) {
    let busy = format!(
        "select count(*) from pg_stat_activity \
         where backend_type = 'pg_background' and usename = current_user and ({IS_IDLE}) is not true"
    );
    wait_until("the workers have nothing to do", || session.value(&busy) == "0");
}

/// [`wait_idle`] after a job that nobody waits for.
#[track_caller]
pub fn wait_idle_after(session: &mut Session, pid: i32, sql: &str) {
    let shown = format!("select count(*) from pg_stat_activity where pid = {pid} and query = {}", literal(sql));
    wait_until("the worker has begun the job", || session.value(&shown) == "1");
    wait_idle(session, pid);
}

/// Waits until the process has no lock, no transaction and no snapshot: what a worker that has nothing to do looks at,
/// it has for a moment.
#[track_caller]
pub fn wait_free(watcher: &mut Session, pid: i32) {
    let query = format!(
        "select count(*) from pg_stat_activity where pid = {pid} and xact_start is null and backend_xid is null \
         and backend_xmin is null and not exists (select from pg_locks where pg_locks.pid = pg_stat_activity.pid)"
    );
    wait_until("the process holds nothing", || watcher.value(&query) == "1");
}

/// Returns the process of a worker that has nothing to do. It is the first choice of this session. Workers of other
/// cases may leave no room for one to stay: then a job is run again.
#[track_caller]
pub fn get_idle_worker(session: &mut Session) -> i32 {
    let mut pid = 0;
    wait_until("a worker stays", || {
        pid = session.launch("select 1");
        session.result(pid, "n int");
        wait_idle_or_gone(session, pid)
    });
    pid
}

/// Runs a job, which must succeed, and waits until its worker has nothing to do; its process.
#[track_caller]
pub fn run_and_wait_idle(session: &mut Session, sql: &str) -> i32 {
    let (pid, outcome) = run(session, sql);
    assert_eq!(outcome.error, None, "{sql}");
    wait_idle(session, pid);
    pid
}

/// Ends the workers of the session's database, which have nothing to do: the next job has a new process.
#[track_caller]
pub fn terminate_idle_workers(session: &mut Session) {
    let others = "from pg_stat_activity where backend_type = 'pg_background' and datname = current_database()";
    for pid in session.rows(&format!("select pid {others}")) {
        session.run(&format!("select pg_terminate_backend({pid})"));
        wait_gone(pid.parse().expect("a process id"));
    }
    assert_eq!(session.rows(&format!("select pid {others}")), [""; 0]);
}

/// `text` in a process that is used for the first time.
#[track_caller]
pub fn run_in_new_process(session: &mut Session, text: &str) -> Outcome {
    terminate_idle_workers(session);
    let (pid, outcome) = run(session, text);
    session.run(&format!("select pg_terminate_backend({pid})"));
    wait_gone(pid);
    outcome
}

/// Returns how often a process has gone to sleep since it was started; none = it has gone.
pub fn count_sleeps(pid: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    Some(line.and_then(|count| count.trim().parse().ok()).expect("a count"))
}
