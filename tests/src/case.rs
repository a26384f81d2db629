//! Cases, and how they are run.

use std::cell::Cell;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
/// Named by what `#[case]` expands to.
pub use linkme;
use linkme::distributed_slice;

use crate::cluster::Cluster;
use crate::env::{close, env, open};
use crate::server_log::{LogLine, LogMark};
use crate::session::{Client, Session};
use crate::wait::{poll, PATIENCE};

/// Most cases wait for servers more than they compute.
const THREADS: usize = 6;

/// The first and the last version of the server that the extension is for (dev/servers.lock).
const OLDEST: u32 = 12;
const NEWEST: u32 = 18;

thread_local! {
    /// The case that this thread runs counts on idle workers to stay.
    static IS_OF_WORKERS: Cell<bool> = const { Cell::new(false) };
}

/// A database of a shared cluster that one case has for itself, with the extension.
#[derive(Debug)]
pub struct Db {
    pub name: String,
    pub cluster: &'static Cluster,
}

impl Db {
    /// Creates another database with the extension, for a case that needs several; it is the case's to close.
    pub fn create() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let cluster = if IS_OF_WORKERS.get() { env().shared_of_workers() } else { env().shared() };
        let db = Db { name: format!("t{}", NUMBER.fetch_add(1, Ordering::Relaxed)), cluster };
        db.cluster.session("postgres").run(&format!("create database {} template prepared", db.name));
        db
    }

    /// A session of the superuser.
    #[track_caller]
    pub fn session(&self) -> Session {
        self.client().connect()
    }

    pub fn client(&self) -> Client {
        self.cluster.client(&self.name)
    }

    /// A new role of this case, with the extension granted; its name.
    pub fn role(&self, name: &str, options: &str) -> String {
        let role = format!("{}_{name}", self.name);
        self.session().run(&format!("create role {role} {options}; select pg_background_grant('{role}')"));
        role
    }

    pub fn log_mark(&self) -> LogMark {
        self.cluster.log_mark()
    }

    /// Returns what the process `pid` logged after `mark`.
    pub fn log_of(&self, mark: LogMark, pid: i32) -> Vec<LogLine> {
        self.cluster.log_since(mark).into_iter().filter(|line| line.pid == pid).collect()
    }

    /// Ends the case's use of the database. When the case is done, no job may have left a process; what is idle must
    /// step aside when the database is dropped.
    pub fn close(self) {
        let mut session = self.cluster.session("postgres");
        let left = format!(
            "select pid, state, wait_event, query from pg_stat_activity \
             where backend_type = 'pg_background' and datname = '{}' and state is distinct from 'idle'",
            self.name
        );
        if poll(PATIENCE, || session.rows(&left).is_empty().then_some(())).is_none() {
            panic!("background processes stay after the case: {:?}", session.rows(&left));
        }
        // The last session may still be on its way out.
        let drop = format!("drop database {}", self.name);
        let dropped = poll(PATIENCE, || session.ask(&drop).error.is_none().then_some(()));
        assert!(dropped.is_some(), "{}", session.error(&drop));
    }
}

#[derive(Debug, Clone, Copy)]
enum Body {
    /// Case in a database of the shared cluster.
    Shared(fn(&Db)),
    /// Case with clusters of its own.
    Private(fn()),
}

/// One test. `#[case]` makes it, and calls a method for each of its options.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    module: &'static str,
    line: u32,
    function: &'static str,
    body: Body,
    since: u32,
    ends_only: bool,
    library: Option<&'static str>,
    slow: bool,
    alone: bool,
}

/// All cases, in no order: the linker gathers what `#[case]` registers.
#[distributed_slice]
pub static CASES: [Case];

impl Case {
    pub const fn shared(module: &'static str, line: u32, function: &'static str, body: fn(&Db)) -> Self {
        Case::new(module, line, function, Body::Shared(body))
    }

    pub const fn private(module: &'static str, line: u32, function: &'static str, body: fn()) -> Self {
        Case::new(module, line, function, Body::Private(body))
    }

    const fn new(module: &'static str, line: u32, function: &'static str, body: Body) -> Self {
        Case { module, line, function, body, since: 0, ends_only: false, library: None, slow: false, alone: false }
    }

    /// Limits the case to this version of the server and newer ones.
    pub const fn since(mut self, version: u32) -> Self {
        self.since = version;
        self
    }

    /// Limits the case to the oldest and the newest version: it takes long, and what it looks at is not the server's.
    pub const fn oldest_and_newest(mut self) -> Self {
        self.ends_only = true;
        self
    }

    /// Limits the case to installations that have this library.
    pub const fn library(mut self, name: &'static str) -> Self {
        self.library = Some(name);
        self
    }

    /// Makes the case begin before the others, so that those run beside it.
    pub const fn slow(mut self) -> Self {
        self.slow = true;
        self
    }

    /// Makes the case run while no other one does.
    pub const fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Returns the name: the path of the function without the crate.
    fn name(&self) -> String {
        let module = self.module.split_once("::").map_or(self.module, |(_, rest)| rest);
        format!("{module}::{}", self.function)
    }

    fn run(&self) {
        static TURN: RwLock<()> = RwLock::new(());
        let _alone = self.alone.then(|| TURN.write().unwrap_or_else(PoisonError::into_inner));
        let _together = (!self.alone).then(|| TURN.read().unwrap_or_else(PoisonError::into_inner));
        let began = Instant::now();
        match self.body {
            Body::Private(body) => body(),
            Body::Shared(body) => {
                IS_OF_WORKERS.set(self.name().starts_with("workers::"));
                let db = Db::create();
                body(&db);
                db.close();
            }
        }
        TIMES.lock().unwrap_or_else(PoisonError::into_inner).push((began.elapsed(), self.name()));
    }

    fn into_trial(self) -> Trial {
        let missing = self.since > env().version
            || self.ends_only && ![OLDEST, NEWEST].contains(&env().version)
            || self.library.is_some_and(|name| !env().has_library(name));
        Trial::test(self.name(), move || {
            self.run();
            Ok(())
        })
        .with_ignored_flag(missing)
    }
}

/// Times of the cases that have passed.
static TIMES: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());

/// Prints the slowest of many cases: the whole run has a limit.
fn print_slowest() {
    const SLOWEST: usize = 20;
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    times.sort();
    if times.len() > SLOWEST * 10 {
        println!("the slowest cases, in seconds:");
        times.iter().rev().take(SLOWEST).for_each(|(time, name)| println!("{:6.1}  {name}", time.as_secs_f64()));
    }
}

/// Runs the cases as the command line asks, and cleans up.
pub fn run() -> ExitCode {
    let mut cases = CASES.to_vec();
    // Those that run alone come last: before each of them all that runs has to end. Those of a file are in its order.
    cases.sort_by_key(|case| (case.alone, !case.slow, case.module, case.line));
    let mut arguments = Arguments::from_args();
    if let Err(reason) = open() {
        eprintln!("{reason}");
        return ExitCode::from(2);
    }
    arguments.test_threads.get_or_insert(THREADS);
    let conclusion = libtest_mimic::run(&arguments, cases.into_iter().map(Case::into_trial).collect());
    close();
    print_slowest();
    conclusion.exit_code()
}
