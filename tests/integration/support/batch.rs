//! Batches of `pg_background_launch_num`, and how to look at them.

use crate::support::barrier;
use crate::support::rng::Rng;
use pg_background_mgr_tests::cluster::is_alive;
use pg_background_mgr_tests::wait::{poll, PATIENCE};
use pg_background_mgr_tests::{literal, wait_for, wait_until, Cluster, Session, Stop, FOREVER};

/// The states of a job that has ended.
pub const ENDED: &str = "('succeeded', 'failed', 'stopped', 'lost')";

/// Text of a job that counts the jobs of this kind that run in its database at the same time, itself included.
pub const COUNTED: &str = "select pg_advisory_xact_lock_shared(815); insert into peak select count(*) from pg_locks \
    where locktype = 'advisory' and objid = 815 and granted \
    and database = (select oid from pg_database where datname = current_database())";

/// SQL text that makes the table to which [`COUNTED`] writes.
pub const PEAK: &str = "create table peak (n int)";

/// Messages of jobs that a server which has gone down did not begin, of those that it had begun, and of those that it
/// may have begun.
pub const NEVER_STARTED: &str = "the server went down before the job started";
pub const RUNNING: &str = "the server went down while the job was running; its outcome is unknown";
pub const UNKNOWN: &str = "the server went down while the job was running or about to start; its outcome is unknown";

/// Keeps everybody from the log until the transaction is rolled back, also from reading it.
pub const LOCK_LOG: &str = "begin; alter materialized view background_mgr.log owner to current_user";

/// Keeps everybody from writing the log until the transaction is rolled back, and lets them read it.
pub const FREEZE_LOG: &str = "begin; create index on background_mgr.log (pid)";

/// Query for the count of workers in the server.
pub const WORKERS: &str = "select count(*) from pg_stat_activity where backend_type = 'pg_background'";

/// Query for the count of workers that run a job that sleeps.
pub const SLEEPING: &str =
    "select count(*) from pg_stat_activity where backend_type = 'pg_background' and wait_event = 'PgSleep'";

/// Query for the count of jobs that the server knows of databases that are gone.
pub const OF_THE_GONE: &str =
    "select count(*) from background_mgr.live() where database not in (select oid from pg_database)";

/// The columns of the log.
const LOG_COLUMNS: &str =
    "id, pid, status, ip_client, user_name, uuid_parent, uuid_child, query, result, start_time_exec, \
    end_time_exec, name, batch_name, options, queued_at, attempts, row_count, result_truncated, command_tag, sqlstate, \
    message, detail, hint, context, epoch, owner, login, database, is_started";

/// Replaces the rows of the log by rows made from them, as only a superuser can: `from` is what follows FROM,
/// `changes` are columns with other values.
pub fn fill_log(session: &mut Session, from: &str, changes: &[(&str, &str)]) {
    let value = |column: &str| {
        let change = changes.iter().find(|(changed, _)| *changed == column);
        change.map_or(column.to_owned(), |(_, value)| format!("{value} as {column}"))
    };
    let columns: Vec<String> = LOG_COLUMNS.split(", ").map(value).collect();
    session.run(&format!(
        "create table public.filled as select {} from {from}; \
         do $do$ declare definition text := pg_get_functiondef('background_mgr.log_rows'::regproc); begin \
         execute split_part(definition, ' LANGUAGE ', 1) || ' LANGUAGE sql AS $$ select * from public.filled $$'; \
         refresh materialized view background_mgr.log; execute definition; end $do$; \
         drop table public.filled",
        columns.join(", ")
    ));
}

/// The uuid of nothing.
pub const NOBODY: &str = "01234567-89ab-cdef-0123-456789abcdef";

/// The jobs of one call, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub parent: String,
    pub children: Vec<String>,
}

/// An array of texts as an SQL expression.
pub fn array(texts: &[&str]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| literal(text)).collect();
    format!("array[{}]::text[]", texts.join(", "))
}

/// `count` texts that are the same.
pub fn times(text: &str, count: usize) -> Vec<&str> {
    vec![text; count]
}

impl Batch {
    /// Runs a call of `pg_background_launch_num`.
    #[track_caller]
    pub fn call(session: &mut Session, call: &str) -> Self {
        let rows = session.rows(&format!("select uuid_parent, uuid_child from public.{call}"));
        let ids: Vec<(&str, &str)> = rows.iter().map(|row| row.split_once('|').expect("two columns")).collect();
        let parent = ids.first().unwrap_or_else(|| panic!("no job from {call}")).0.to_owned();
        assert!(ids.iter().all(|(other, _)| *other == parent), "one parent: {rows:?}");
        let children: Vec<String> = ids.iter().map(|(_, child)| (*child).to_owned()).collect();
        let mut sorted = children.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), children.len(), "each job has a uuid of its own");
        assert!(!children.contains(&parent));
        Batch { parent, children }
    }

    /// Launches texts with default options.
    #[track_caller]
    pub fn launch(session: &mut Session, texts: &[&str]) -> Self {
        Batch::call(session, &format!("pg_background_launch_num({})", array(texts)))
    }

    /// Launches texts with options, a JSON object.
    #[track_caller]
    pub fn launch_with(session: &mut Session, texts: &[&str], options: &str) -> Self {
        let options = literal(options);
        Batch::call(session, &format!("pg_background_launch_num({}, p_options => {options})", array(texts)))
    }

    /// Launches what a JSON array says.
    #[track_caller]
    pub fn launch_json(session: &mut Session, jobs: &str) -> Self {
        Batch::call(session, &format!("pg_background_launch_num({}::jsonb)", literal(jobs)))
    }

    /// Waits until every job has ended.
    #[track_caller]
    pub fn wait(&self, session: &mut Session) {
        let ended = session.rows(&format!("select status from public.pg_background_monitor('{}', false)", self.parent));
        assert!(ended.iter().all(|state| ENDED.contains(&format!("'{state}'"))), "{ended:?}");
    }

    /// Waits until every job has ended; the states in the order of the call.
    #[track_caller]
    pub fn finish(&self, session: &mut Session) -> Vec<String> {
        self.wait(session);
        self.states(session)
    }

    /// Waits until every job has succeeded.
    #[track_caller]
    pub fn succeed(&self, session: &mut Session) {
        let states = self.finish(session);
        if states.iter().any(|state| state != "succeeded") {
            panic!("{:?}", self.column(session, "concat_ws(' ', status, sqlstate, message, query)"));
        }
    }

    /// The states in the order of the call.
    #[track_caller]
    pub fn states(&self, session: &mut Session) -> Vec<String> {
        self.column(session, "status")
    }

    /// An expression over the log, for each job in the order of the call.
    #[track_caller]
    pub fn column(&self, session: &mut Session, expression: &str) -> Vec<String> {
        session.rows(&format!(
            "select {expression} from public.log_background where uuid_parent = '{}' \
             order by array_position('{{{}}}'::uuid[], uuid_child)",
            self.parent,
            self.children.join(",")
        ))
    }

    /// The states that the table has, whatever the view makes of it.
    #[track_caller]
    pub fn written(&self, session: &mut Session) -> Vec<String> {
        session.rows(&format!(
            "select status from background_mgr.log where uuid_parent = '{}' order by uuid_child",
            self.parent
        ))
    }

    /// An expression over the log, for one job.
    #[track_caller]
    pub fn log(&self, session: &mut Session, number: usize, expression: &str) -> String {
        log(session, &self.children[number], expression)
    }

    /// Waits until one job is in `pg_sleep`.
    #[track_caller]
    pub fn wait_asleep(&self, session: &mut Session, number: usize) {
        let child = &self.children[number];
        let query = format!("select pid from pg_background_jobs where uuid_child = '{child}' and status = 'running'");
        let pid = wait_for("the job's process", || session.rows(&query).pop());
        session.wait_asleep(pid.parse().expect("a process"));
    }

    /// Waits until one job is in a state.
    #[track_caller]
    pub fn wait_state(&self, session: &mut Session, number: usize, state: &str) {
        wait_until(&format!("job {number} is {state}"), || self.log(session, number, "status") == state);
    }
}

/// An expression over the log, for one job.
#[track_caller]
pub fn log(session: &mut Session, child: &str, expression: &str) -> String {
    session.value(&format!("select {expression} from public.log_background where uuid_child = '{child}'"))
}

/// A value of the first row of a job's result.
pub fn cell(column: &str) -> String {
    format!("result::jsonb -> 0 ->> '{column}'")
}

/// Returns how the jobs of the log are spread over the states.
#[track_caller]
pub fn counts(session: &mut Session, condition: &str) -> Vec<String> {
    session.rows(&format!(
        "select status || ' ' || count(*) from public.log_background where {condition} group by status order by status"
    ))
}

/// Waits until a database has no job that is queued or running; any progress is new patience.
#[track_caller]
pub fn drain(session: &mut Session) {
    let query = format!("select count(*) from public.log_background where status not in {ENDED}");
    let mut left = session.number(&query);
    while left > 0 {
        let before = left;
        let progress = poll(PATIENCE, || {
            left = session.number(&query);
            (left < before).then_some(())
        });
        assert!(progress.is_some(), "{left} jobs do not end");
    }
}

/// Waits until exactly this many processes wait at the barrier of the session's database.
#[track_caller]
pub fn wait_at_barrier(session: &mut Session, count: usize) {
    let query = "select count(*) from pg_locks where locktype = 'advisory' and objid = 4711 and not granted \
                 and database = (select oid from pg_database where datname = current_database())";
    let count = count.to_string();
    let mut seen = String::new();
    let arrived = poll(PATIENCE, || {
        seen = session.value(query);
        (seen == count).then_some(())
    });
    if arrived.is_none() {
        let jobs = session.rows("select status, pid, sqlstate, message, query from public.log_background limit 50");
        panic!("{seen} jobs wait at the barrier, not {count}: {jobs:#?}");
    }
}

/// Brings a batch half way: one job has ended, one waits at the barrier, two are behind it in the queue.
#[track_caller]
pub fn half_way(session: &mut Session) -> Batch {
    let texts = ["select 1 as a", barrier::WAIT, "select 3 as a", "select 4 as a"];
    let batch = Batch::launch_with(session, &texts, r#"{"mode": "sequential", "name": "half way"}"#);
    wait_at_barrier(session, 1);
    batch
}

/// Changes a setting of the server and waits until it holds in a session, which must have loaded the extension.
#[track_caller]
pub fn set_server(cluster: &Cluster, session: &mut Session, name: &str, value: &str) {
    cluster.configure(&[(name, value)]);
    cluster.reload();
    let query = format!("show {name}");
    wait_until("the server's new setting", || session.value(&query) == value);
}

/// Runs again what did not succeed; returns the jobs.
#[track_caller]
pub fn retry(session: &mut Session, uuid: &str) -> Vec<String> {
    session.rows(&format!("select uuid_child from pg_background_retry('{uuid}') order by 1"))
}

/// Stops a job, or the jobs of a batch, with this grace or that of the extension; their states before and after it.
#[track_caller]
pub fn stop(session: &mut Session, uuid: &str, grace: Option<&str>) -> Vec<String> {
    let grace = grace.map_or(String::new(), |grace| format!(", '{grace}'"));
    session.rows(&format!("select was, now from public.pg_background_stop('{uuid}'{grace})"))
}

/// Returns the states after a [`stop`].
pub fn states_after(stopped: &[String]) -> Vec<&str> {
    stopped.iter().map(|states| states.split_once('|').expect("two states").1).collect()
}

/// Ends all processes as they are, so that none lets go of a lock that another would get before it ends, too, and
/// starts the server again.
#[track_caller]
pub fn crash(cluster: &Cluster) -> Session {
    cluster.stop(Stop::Immediate);
    cluster.start();
    cluster.session("postgres")
}

/// Cancels or ends some worker, if there is one.
#[track_caller]
pub fn signal_a_worker(session: &mut Session, rng: &mut Rng) {
    let signal = rng.pick(&["terminate", "cancel"]);
    session.run(&format!(
        "select pg_{signal}_backend(pid) from pg_stat_activity \
         where backend_type = 'pg_background' order by random() limit 1"
    ));
}

/// Loads the extension's library into a session, and with it its settings.
#[track_caller]
pub fn load(session: &mut Session) {
    session.run("select public.pg_background_report_progress(0)");
}

/// Returns the text of a job that runs for ever and goes on when it is cancelled.
pub fn stubborn() -> String {
    format!("do $$ begin loop begin perform {FOREVER}; exception when query_canceled then null; end; end loop; end $$")
}

/// Waits for the end of a process.
#[track_caller]
pub fn wait_gone(pid: i32) {
    wait_until("the end of the process", || !is_alive(pid));
}
