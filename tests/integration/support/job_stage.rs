//! The stages of a job's life, and how to hold one there.

use crate::support::barrier::{self, Barrier};
use pg_background_mgr_tests::cluster::{signal_process, try_signal};
use pg_background_mgr_tests::server_log::LogMark;
use pg_background_mgr_tests::{literal, wait_for, wait_until, Cluster, Session, Signal};
use std::fs;

/// Point that a job has reached when something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub enum JobStage {
    /// The launcher waits for the postmaster to start the worker.
    Registered,
    /// The worker is there; the launcher has not yet told it to begin.
    Attached,
    /// The job runs; the launcher does something else.
    Running,
    /// The job runs; the launcher waits for it.
    Awaited,
    /// The job has given half of its rows, which the launcher has read.
    Sending,
    /// The job has committed; its rows are unread.
    Ended,
}

pub const STAGES: [JobStage; 6] = [
    JobStage::Registered,
    JobStage::Attached,
    JobStage::Running,
    JobStage::Awaited,
    JobStage::Sending,
    JobStage::Ended,
];

impl JobStage {
    /// The job, and how it is read. Each leaves a row in `ran` if it commits.
    fn text(self) -> (String, &'static str) {
        let rows = "select i, md5(i::text) from generate_series(1, 200000) i";
        let (text, columns) = match self {
            JobStage::Registered | JobStage::Attached => ("select 7".to_owned(), "n int"),
            JobStage::Running | JobStage::Awaited => (format!("{}; select 7", barrier::WAIT), "n int"),
            JobStage::Sending => (format!("{rows} where i <> 100000 or {}", barrier::OPENED), "a int, b text"),
            JobStage::Ended => (rows.to_owned(), "a int, b text"),
        };
        (format!("insert into ran values (1); {text}"), columns)
    }

    /// Rows and their check sum.
    fn whole(self) -> &'static str {
        match self {
            JobStage::Sending | JobStage::Ended => "200000|200000",
            _ => "1|1",
        }
    }
}

/// A process that is stopped until this is dropped.
pub struct Paused(i32);

impl Paused {
    pub fn new(pid: i32) -> Self {
        signal_process(pid, Signal::SIGSTOP);
        Paused(pid)
    }

    /// Stops it while it waits for somebody to wake it: it has no lock of the server's memory then, which all would
    /// wait for.
    #[track_caller]
    pub fn at_rest(pid: i32, watcher: &mut Session) -> Self {
        let rests = format!("select wait_event_type in ('Extension', 'IPC') from pg_stat_activity where pid = {pid}");
        wait_for("the process waits", || {
            let paused = Paused::new(pid);
            (watcher.rows(&rests) == ["t"]).then_some(paused)
        })
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        // It may have been killed in the meantime, and be gone.
        let _ = try_signal(self.0, Signal::SIGCONT);
    }
}

/// Prepares database postgres of a cluster for [`Scene::reach`].
pub fn prepare(cluster: &Cluster) {
    cluster.session("postgres").run("create table ran (a int)");
}

/// Waits until every process of a job that was started has ended, as the postmaster sees it: also those that are not
/// yet in pg_stat_activity, and those that are not there any more but still have their slot.
#[track_caller]
pub fn settle(cluster: &Cluster) {
    let postmaster = cluster.postmaster().to_string();
    let is_of_job = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // State and parent follow the name, which is in parentheses.
        let mut fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
        let (state, parent) = (fields.next(), fields.next());
        let title = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        parent == Some(&postmaster)
            && (state == Some("Z") || !title.starts_with("postgres:") || title.contains("pg_background"))
    };
    wait_until("the end of every process of a job", || {
        let mut processes = fs::read_dir("/proc").expect("/proc").flatten();
        !processes.any(|entry| entry.file_name().to_str().is_some_and(is_of_job))
    });
}

/// Ends a process by `pg_terminate_backend`. It may just have been started: the server does not know it from its first
/// moment.
#[track_caller]
pub fn terminate(session: &mut Session, pid: i32) {
    let terminate = format!("select pg_terminate_backend(pid) from pg_stat_activity where pid = {pid}");
    wait_until("the termination of a process", || session.rows(&terminate) == ["t"]);
}

/// No process has been ended by an error since.
#[track_caller]
pub fn assert_nothing_fatal(cluster: &Cluster, mark: LogMark) {
    let logged = cluster.log_since(mark);
    assert!(logged.iter().all(|line| line.kind != "FATAL"), "{logged:?}");
}

/// Returns how many jobs have committed since the last call, once all have ended.
#[track_caller]
pub fn committed(cluster: &Cluster) -> i64 {
    let mut session = cluster.session("postgres");
    // What was registered before this job has been started when this one has.
    assert_eq!(session.job("select 1", "n int"), ["1"]);
    cluster.wait_no_workers(); // they would stay for ten seconds
    settle(cluster);
    let count = session.number("select count(*) from ran");
    session.run("delete from ran");
    count
}

/// One job, held at a stage.
pub struct Scene {
    pub stage: JobStage,
    pub launcher: Session,
    pub watcher: Session,
    /// None before the worker has started.
    pub worker: Option<i32>,
    columns: &'static str,
    barrier: Option<Barrier>,
    paused: Option<Paused>,
}

impl Scene {
    #[track_caller]
    pub fn reach(cluster: &Cluster, stage: JobStage) -> Self {
        let (text, columns) = stage.text();
        let mut scene = Scene {
            stage,
            launcher: cluster.session("postgres"),
            watcher: cluster.session("postgres"),
            worker: None,
            columns,
            barrier: Some(Barrier::close(cluster.session("postgres"))),
            paused: None,
        };
        match stage {
            JobStage::Registered => scene.register(cluster, &text),
            JobStage::Attached => {
                scene.register(cluster, &text);
                // The postmaster goes on when this is replaced, the launcher does not.
                scene.paused = Some(Paused::new(scene.launcher.pid()));
                scene.wait_attached();
            }
            JobStage::Running => scene.launch(&text, true),
            JobStage::Awaited | JobStage::Sending => {
                scene.launch(&text, true);
                scene.send_read();
                scene.wait_reading();
            }
            JobStage::Ended => {
                scene.launch(&text, false);
                let query = format!("select state from pg_stat_activity where pid = {}", scene.worker());
                wait_until("the job has come to rest", || scene.watcher.rows(&query) == ["idle"]);
            }
        }
        scene
    }

    fn register(&mut self, cluster: &Cluster, text: &str) {
        self.paused = Some(Paused::new(cluster.postmaster()));
        self.launcher.send(&format!("select pg_background_launch({})", literal(text)));
        let query = format!(
            "select wait_event ilike 'bgworkerstartup' from pg_stat_activity where pid = {}",
            self.launcher.pid()
        );
        wait_until("the launcher waits for the worker to start", || self.watcher.rows(&query) == ["t"]);
    }

    fn wait_attached(&mut self) {
        let query =
            "select pid from pg_stat_activity where backend_type = 'pg_background' and wait_event_type = 'Extension'";
        wait_until("the worker waits for its launcher", || match self.watcher.rows(query).as_slice() {
            [pid] => {
                self.worker = pid.parse().ok();
                true
            }
            _ => false,
        });
    }

    fn launch(&mut self, text: &str, stops_at_barrier: bool) {
        let pid = self.launcher.launch(text);
        self.worker = Some(pid);
        if let (true, Some(barrier)) = (stops_at_barrier, &mut self.barrier) {
            // A job whose rows somebody must read first gets there all the same: it never waits for its reader.
            barrier.wait_for(pid);
        }
    }

    fn wait_reading(&mut self) {
        let query = format!(
            "select state = 'active' and wait_event_type in ('Extension', 'IPC') from pg_stat_activity where pid = {}",
            self.launcher.pid()
        );
        wait_until("the launcher waits for the job", || self.watcher.rows(&query) == ["t"]);
    }

    pub fn worker(&self) -> i32 {
        self.worker.expect("a stage with a worker")
    }

    fn read_text(&self) -> String {
        let pid = self.worker();
        let columns = self.columns;
        format!("select count(*), count(distinct r) from pg_background_result({pid}) as r ({columns})")
    }

    fn send_read(&mut self) {
        let text = self.read_text();
        self.launcher.send(&text);
    }

    /// Sends a signal by a function of the server, for example `pg_cancel_backend`.
    #[track_caller]
    pub fn signal(&mut self, function: &str, pid: i32) {
        assert!(self.watcher.holds(&format!("select {function}({pid})")), "{function}");
    }

    /// Lets a process that was stopped go on.
    pub fn resume(&mut self) {
        self.paused = None;
    }

    /// Lets the job go on.
    #[track_caller]
    pub fn open_barrier(&mut self) {
        if let Some(barrier) = self.barrier.take() {
            barrier.open();
        }
    }

    /// The launcher's client goes.
    pub fn without_launcher(self) -> Rest {
        Rest { barrier: self.barrier, paused: self.paused, _watcher: self.watcher }
    }

    /// Returns whether the launcher is in a statement whose answer has not been read.
    pub fn is_launcher_busy(&self) -> bool {
        matches!(self.stage, JobStage::Registered | JobStage::Attached | JobStage::Awaited | JobStage::Sending)
    }

    /// Waits for the end of the launcher's launch, of a job that has been started.
    #[track_caller]
    pub fn finish_launch(&mut self) {
        let reply = self.launcher.finish("the launch");
        assert!(reply.error.is_none(), "{:?}: {:?}", self.stage, reply.error);
        let pid = reply.last_rows().expect("a row").text_rows().concat();
        self.worker = pid.parse().ok();
    }

    /// The result is there, whole.
    #[track_caller]
    pub fn assert_whole(&mut self) {
        let text = self.read_text();
        assert_eq!(self.launcher.rows(&text), [self.stage.whole()], "{:?}", self.stage);
    }

    /// The error that the launcher gets from reading the result.
    #[track_caller]
    pub fn read_error(&mut self) -> (String, String) {
        let text = self.read_text();
        match self.stage {
            JobStage::Awaited | JobStage::Sending => {}
            _ => self.launcher.send(&text),
        }
        let reply = self.launcher.finish(&text);
        reply.error.unwrap_or_else(|| panic!("{:?}: an error was expected", self.stage)).brief()
    }
}

/// Parts of a scene that are left without its launcher.
pub struct Rest {
    barrier: Option<Barrier>,
    paused: Option<Paused>,
    _watcher: Session,
}

impl Rest {
    pub fn resume(&mut self) {
        self.paused = None;
    }

    #[track_caller]
    pub fn open_barrier(&mut self) {
        if let Some(barrier) = self.barrier.take() {
            barrier.open();
        }
    }
}
