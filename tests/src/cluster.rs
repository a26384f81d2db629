//! A private cluster: its files, its server process, and what can be seen of both from outside.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::env::env;
use crate::installation::Installation;
use crate::server_log::{parse, LogLine, LogMark, LINE_PREFIX};
use crate::session::{Client, Session};
use crate::wait::{poll, wait_for, wait_until, PATIENCE};

/// Settings of every cluster. The data needs no protection from a crash of the machine, autovacuum would take locks and
/// snapshots that tests look at, and deadlocks are looked for early.
const SETTINGS: &str = "
listen_addresses = ''
fsync = off
full_page_writes = off
autovacuum = off
max_connections = 100
max_worker_processes = 40
deadlock_timeout = '200ms'
timezone = 'UTC'
log_timezone = 'UTC'
";

/// Ways to stop a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Waits for the clients to leave.
    Smart,
    Fast,
    /// Without a checkpoint; the next start recovers.
    Immediate,
}

impl Stop {
    fn signal(self) -> Signal {
        match self {
            Stop::Smart => Signal::SIGTERM,
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
        }
    }
}

/// One operating system process of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    /// Title as `ps` shows it.
    pub title: String,
}

/// State that [`Cluster::assert_sound`] compares with.
#[derive(Debug, Clone)]
pub struct Baseline {
    segments: usize,
}

/// A cluster of its own directory. Dropping it ends its processes and removes its files.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    /// The server program; a relative path is one in the installation that is tested.
    program: PathBuf,
    /// Dynamic shared memory that there is for it, in kilobytes.
    shared_memory: Option<u32>,
    server: Mutex<Option<Child>>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.log_path()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the end of the server's log:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
        self.destroy();
    }
}

impl Cluster {
    /// A new cluster with settings of its own, running. Its dynamic shared memory is files that can be counted.
    #[track_caller]
    pub fn start_new(settings: &[(&str, &str)]) -> Self {
        let cluster = Cluster::create(settings);
        cluster.start();
        cluster
    }

    /// The same with the extension in database postgres.
    #[track_caller]
    pub fn start_with_extension(settings: &[(&str, &str)]) -> Self {
        let cluster = Cluster::start_new(settings);
        cluster.session("postgres").run("create extension pg_background_mgr");
        cluster
    }

    /// A new cluster that does not run yet.
    #[track_caller]
    pub fn create(settings: &[(&str, &str)]) -> Self {
        let cluster = Cluster {
            directory: env().new_cluster_directory(),
            program: PathBuf::from("postgres"),
            shared_memory: None,
            server: Mutex::new(None),
        };
        env().populate(&cluster.data());
        let directory = cluster.directory.display();
        let configuration = format!(
            "{SETTINGS}unix_socket_directories = '{directory}'\nlog_line_prefix = '{LINE_PREFIX}'\n\
             dynamic_shared_memory_type = mmap\n"
        );
        env().append(&cluster.configuration(), &configuration);
        cluster.configure(settings);
        cluster
    }

    /// Starts a cluster that cases share, with these settings: the server's own choice of shared memory, and the
    /// modules that tests look at.
    pub(crate) fn start_shared(settings: &[(&str, &str)]) -> Self {
        let cluster = Cluster::create(&[("dynamic_shared_memory_type", "posix"), ("max_prepared_transactions", "10")]);
        cluster.configure(settings);
        let modules: Vec<&str> =
            ["pg_stat_statements", "auto_explain"].into_iter().filter(|name| env().has_library(name)).collect();
        cluster.configure(&[("shared_preload_libraries", &modules.join(","))]);
        cluster.start();
        cluster.session("postgres").run("create database prepared");
        cluster.session("prepared").run("create extension pg_background_mgr");
        cluster
    }

    /// A hot standby of `primary`, running. Restarts the primary, which must have no sessions.
    #[track_caller]
    pub fn start_standby(primary: &Cluster) -> Self {
        primary.stop(Stop::Fast);
        let standby = Cluster {
            directory: env().new_cluster_directory(),
            program: PathBuf::from("postgres"),
            shared_memory: None,
            server: Mutex::new(None),
        };
        env().copy(&primary.data(), &standby.data());
        primary.start();
        standby.configure(&[
            ("unix_socket_directories", &standby.directory.display().to_string()),
            ("primary_conninfo", &format!("host={} user=postgres", primary.directory.display())),
            ("hot_standby", "on"),
        ]);
        env().append(&standby.data().join("standby.signal"), "");
        standby.start();
        standby
    }

    /// Gives the server so many kilobytes of dynamic shared memory from its next start on. False = the tests cannot do
    /// that: they do not run as root.
    #[must_use]
    pub fn limit_shared_memory(&mut self, kilobytes: u32) -> bool {
        self.shared_memory = Some(kilobytes);
        nix::unistd::geteuid().is_root()
    }

    /// Adds settings to the configuration file; the server sees them when it starts or reloads.
    pub fn configure(&self, settings: &[(&str, &str)]) {
        let line = |(name, value): &(&str, &str)| format!("{name} = '{}'\n", value.replace('\'', "''"));
        env().append(&self.configuration(), &settings.iter().map(line).collect::<String>());
    }

    fn configuration(&self) -> PathBuf {
        self.data().join("postgresql.conf")
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("log")
    }

    fn socket(&self) -> PathBuf {
        self.directory.join(".s.PGSQL.5432")
    }

    /// Makes the server that of another installation from its next start on.
    pub fn run_from(&mut self, installation: &Installation) {
        self.program = installation.bin().join("postgres");
    }

    /// Starts the server and waits until it takes connections.
    #[track_caller]
    pub fn start(&self) {
        self.launch();
        self.wait_ready();
    }

    /// Starts the server without waiting.
    #[track_caller]
    pub fn launch(&self) {
        let log = fs::OpenOptions::new().append(true).create(true).open(self.log_path()).expect("the server's log");
        let bounded = self.shared_memory.and_then(|kilobytes| {
            env().command_with_file_system(&self.program, &self.data().join("pg_dynshmem"), kilobytes)
        });
        let mut command = bounded.unwrap_or_else(|| env().command(&self.program));
        command.arg("-D").arg(self.data()).stdout(Stdio::null()).stderr(log);
        // An interrupt at the terminal is for the test program, which then ends the servers in order.
        let child =
            command.process_group(0).spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let previous = self.server().replace(child);
        assert!(previous.is_none(), "the server was already running");
    }

    /// Waits until the server takes connections, also after a crash of one of its processes.
    #[track_caller]
    pub fn wait_ready(&self) {
        wait_until("a server that takes connections", || {
            if let Some(status) =
                self.server().as_mut().and_then(|child| child.try_wait().expect("the server's status"))
            {
                let log = fs::read_to_string(self.log_path()).unwrap_or_default();
                panic!("the server ended with {status}:\n{log}");
            }
            self.status_file_says_ready() && self.client("postgres").try_connect().is_ok()
        });
    }

    /// Saves connection attempts, each of which would be an error in the log.
    fn status_file_says_ready(&self) -> bool {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        file.lines().nth(7).is_some_and(|status| status.trim() == "ready")
    }

    /// Stops the server and waits for its end.
    #[track_caller]
    pub fn stop(&self, how: Stop) {
        self.signal_postmaster(how.signal());
        self.wait_stopped();
    }

    #[track_caller]
    pub fn restart(&self) {
        self.stop(Stop::Fast);
        self.start();
    }

    /// Tells the server to read its configuration again.
    pub fn reload(&self) {
        self.signal_postmaster(Signal::SIGHUP);
    }

    /// Sends a signal to the postmaster without waiting for what follows; SIGKILL is one too.
    #[track_caller]
    pub fn signal_postmaster(&self, signal: Signal) {
        signal_process(self.postmaster(), signal);
    }

    /// Keeps the server from forking from now on, by a session that may run programs.
    #[track_caller]
    pub fn refuse_forks(&self, session: &mut Session) {
        self.limit_processes(session, "1");
    }

    /// Lets the server fork again.
    #[track_caller]
    pub fn allow_forks(&self, session: &mut Session) {
        self.limit_processes(session, "$(prlimit --pid $PPID --nproc --noheadings --output HARD | tr -d [:blank:])");
    }

    /// Limits how many processes the server's account may have, as far as the postmaster is concerned.
    #[track_caller]
    fn limit_processes(&self, session: &mut Session, limit: &str) {
        session.run(&format!(
            "copy (select where false) to program 'prlimit --pid {} --nproc={limit}:'",
            self.postmaster()
        ));
    }

    /// Limits the memory of processes that the server starts from now on, to this much beside what the postmaster has;
    /// for a session that may run programs.
    #[track_caller]
    pub fn limit_memory(&self, session: &mut Session, megabytes: usize) {
        self.limit_memory_of(session, self.postmaster(), megabytes * 1024);
    }

    /// Limits the memory of a process to this much beside what it has.
    #[track_caller]
    pub fn limit_memory_of(&self, session: &mut Session, pid: i32, kilobytes: usize) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process");
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("its size");
        let size: usize = size.trim().trim_end_matches(" kB").parse().expect("a number of kilobytes");
        self.set_memory_limit(session, pid, &((size + kilobytes) * 1024).to_string());
    }

    /// Lets a process have as much memory as there is.
    #[track_caller]
    pub fn allow_memory_of(&self, session: &mut Session, pid: i32) {
        self.set_memory_limit(session, pid, "unlimited");
    }

    #[track_caller]
    fn set_memory_limit(&self, session: &mut Session, pid: i32, limit: &str) {
        session.run(&format!("copy (select where false) to program 'prlimit --pid {pid} --as={limit}:'"));
    }

    /// Runs statements, a line each, in single-user mode, while the server is stopped; returns everything that it says.
    ///
    /// # Panics
    /// Panics when it does not end by itself; then it is killed.
    #[track_caller]
    pub fn single_user(&self, database: &str, statements: &str) -> String {
        let mut command = env().command(&self.program);
        command.args(["--single", "-D"]).arg(self.data()).arg(database);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut server = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let mut input = server.stdin.take().expect("its input");
        writeln!(input, "{statements}").expect("a server that reads");
        drop(input);
        // What it says fits into the pipes.
        let ended = poll(PATIENCE, || server.try_wait().expect("its status"));
        if ended.is_none() {
            server.kill().expect("a process that can be killed");
        }
        let output = server.wait_with_output().expect("its end");
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(ended.is_some(), "the server went on in single-user mode for {PATIENCE:?}:\n{said}");
        said
    }

    /// The postmaster's process id.
    #[track_caller]
    pub fn postmaster(&self) -> i32 {
        let server = self.server();
        let child = server.as_ref().expect("a server that was started");
        i32::try_from(child.id()).expect("a process id")
    }

    /// Waits until the postmaster and every process of the cluster have ended.
    #[track_caller]
    pub fn wait_stopped(&self) {
        let ended = |server: &mut Option<Child>| match server {
            Some(child) => child.try_wait().expect("the server's status").is_some(),
            None => true,
        };
        wait_until("the end of the server", || ended(&mut self.server()));
        *self.server() = None;
        wait_until("the end of every process of the cluster", || self.processes().is_empty());
    }

    fn server(&self) -> MutexGuard<'_, Option<Child>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_running(&self) -> bool {
        self.server().as_mut().is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_none()))
    }

    /// The processes of this cluster, found by their working directory: also those that outlived their postmaster.
    pub fn processes(&self) -> Vec<Process> {
        let data = self.data();
        let of_cluster = |entry: fs::DirEntry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            if fs::read_link(entry.path().join("cwd")).ok()? != data {
                return None;
            }
            let title = fs::read(entry.path().join("cmdline")).ok()?;
            let title = String::from_utf8_lossy(&title).replace('\0', " ").trim().to_owned();
            Some(Process { pid, title })
        };
        fs::read_dir("/proc").expect("/proc").flatten().filter_map(of_cluster).collect()
    }

    /// Returns a client for a database; its `connect` connects.
    pub fn client(&self, database: &str) -> Client {
        Client::new(&self.socket(), database)
    }

    /// A session of the superuser.
    #[track_caller]
    pub fn session(&self, database: &str) -> Session {
        self.client(database).connect()
    }

    /// Runs psql with these arguments.
    pub fn psql(&self, database: &str, arguments: &[&str]) -> Output {
        let mut command = env().command("psql");
        command.arg("--host").arg(&self.directory).args(["--username=postgres", "--no-psqlrc", "--dbname", database]);
        command.args(arguments).output().expect("psql")
    }

    /// The end of the log as it is now.
    pub fn log_mark(&self) -> LogMark {
        LogMark(fs::metadata(self.log_path()).map(|file| file.len()).unwrap_or(0))
    }

    /// Returns what was logged after `mark`.
    pub fn log_since(&self, mark: LogMark) -> Vec<LogLine> {
        let log = fs::read(self.log_path()).expect("the server's log");
        let start = usize::try_from(mark.0).expect("a log that fits in memory").min(log.len());
        parse(&String::from_utf8_lossy(&log[start..]))
    }

    /// Waits until a line after `mark` has what `is_wanted` looks for.
    #[track_caller]
    pub fn wait_log(&self, mark: LogMark, what: &str, is_wanted: impl Fn(&LogLine) -> bool) -> LogLine {
        wait_for(&format!("{what} in the server's log"), || self.log_since(mark).into_iter().find(&is_wanted))
    }

    /// The dynamic shared memory segments that exist, for a cluster that keeps them in files.
    pub fn segments(&self) -> Vec<String> {
        let name = |entry: fs::DirEntry| {
            let bytes = entry.metadata().ok()?.len();
            Some(format!("{} ({bytes} bytes)", entry.file_name().into_string().ok()?))
        };
        fs::read_dir(self.data().join("pg_dynshmem")).into_iter().flatten().flatten().filter_map(name).collect()
    }

    /// Returns what is there in quiet times. A first job makes what the extension keeps for good.
    #[track_caller]
    pub fn baseline(&self) -> Baseline {
        let mut session = self.session("postgres");
        let mut last = session.job("select pg_backend_pid()", "n int");
        // What is shared is made when the first worker stays for another job, if workers may stay here.
        for _ in 0..20 {
            let mut reply = session.ask(
                "select * from public.pg_background_result(public.pg_background_launch('select pg_backend_pid()')) \
                 as (n int)",
            );
            let next = match reply.error.take() {
                None => reply.last_rows().map(|rows| rows.text_rows()).unwrap_or_default(),
                Some(error) => {
                    assert_eq!(error.sqlstate(), "53000", "{}", error.message());
                    continue;
                }
            };
            if next == last {
                break;
            }
            last = next;
        }
        drop(session);
        self.wait_no_workers();
        Baseline { segments: self.segments().len() }
    }

    /// Waits until no job has a process; those that have nothing to do are sent away.
    #[track_caller]
    pub fn wait_no_workers(&self) {
        let mut session = self.session("postgres");
        session.run("load 'pg_background_mgr'");
        session.run("alter system set pg_background_mgr.worker_idle_timeout = 0");
        session.run("select pg_reload_conf()");
        self.wait_no_workers_with(&mut session);
        session.run("alter system reset pg_background_mgr.worker_idle_timeout");
        session.run("select pg_reload_conf()");
    }

    #[track_caller]
    fn wait_no_workers_with(&self, session: &mut Session) {
        let query =
            "select pid, datname, state, wait_event, query from pg_stat_activity where backend_type = 'pg_background'";
        if poll(PATIENCE, || session.rows(query).is_empty().then_some(())).is_none() {
            panic!("background processes stay: {:?}", session.rows(query));
        }
        // Those that have not logged in are not shown there.
        wait_until("the end of every worker", || self.workers().is_empty());
    }

    /// The workers of the extension, also those that have not logged in.
    pub fn workers(&self) -> Vec<i32> {
        let is_worker = |process: &Process| {
            process.title.strip_prefix("postgres: ").is_some_and(|title| title.contains("pg_background"))
        };
        self.processes().into_iter().filter(is_worker).map(|process| process.pid).collect()
    }

    /// After a fault: nothing stuck, nothing leaked, and the next job runs.
    #[track_caller]
    pub fn assert_sound(&self, before: &Baseline) {
        self.wait_no_workers();
        let mut session = self.session("postgres");
        // A worker that has gone from pg_stat_activity keeps its slot until the postmaster has noticed.
        let launch = "select public.pg_background_launch('select 40 + 2')";
        let pid = wait_for("a free slot for the next launch", || {
            let mut reply = session.ask(launch);
            match reply.error.take() {
                None => Some(reply.last_rows()?.text_rows().first()?.parse::<i32>().expect("a process id")),
                Some(error) => {
                    assert_eq!(error.sqlstate(), "53000", "the next launch: {}", error.message());
                    None
                }
            }
        });
        assert_eq!(session.result(pid, "n int"), ["42"], "the next launch works");
        drop(session);
        self.wait_no_workers();
        if poll(PATIENCE, || (self.segments().len() <= before.segments).then_some(())).is_none() {
            panic!("{} segments before, now: {:?}", before.segments, self.segments());
        }
    }

    /// Ends the cluster and removes its files; a second call does nothing.
    pub(crate) fn destroy(&self) {
        let postmaster = self.server().as_ref().map(|child| child.id());
        if let Some(pid) = postmaster.and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
            let gone = poll(Duration::from_secs(20), || (!self.is_running()).then_some(()));
            if gone.is_none() {
                eprintln!("a server does not stop; it is killed");
            }
        }
        if let Some(mut child) = self.server().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let survivors_gone = poll(Duration::from_secs(5), || self.processes().is_empty().then_some(()));
        if survivors_gone.is_none() {
            for process in self.processes() {
                eprintln!("killed: {} {}", process.pid, process.title);
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
            let _ = poll(Duration::from_secs(5), || self.processes().is_empty().then_some(()));
        }
        remove_shared_memory(&self.data());
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A postmaster that was killed leaves its segment behind; its number is in the file that it leaves too.
fn remove_shared_memory(data: &Path) {
    let file = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    if let Some(segment) = file.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
        let _ = env().outside("ipcrm").arg("-m").arg(segment).output();
    }
}

/// Sends a signal to a process of a cluster.
#[track_caller]
pub fn signal_process(pid: i32, signal: Signal) {
    try_signal(pid, signal).unwrap_or_else(|error| panic!("cannot send {signal} to {pid}: {error}"));
}

/// Sends a signal to a process of a cluster that may be gone.
///
/// # Errors
/// `ESRCH`: it is.
pub fn try_signal(pid: i32, signal: Signal) -> Result<(), Errno> {
    assert!(pid > 1, "not a process of a cluster: {pid}");
    kill(Pid::from_raw(pid), signal)
}

/// Returns whether a process exists that has not ended.
pub fn is_alive(pid: i32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may have spaces and parentheses itself.
    state.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
