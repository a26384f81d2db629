//! State of this worker process, in one place.

use crate::channel::Channel;
use crate::ffi::bgworker::WorkerHandle;
use crate::ffi::shm_mq::Sender;
use crate::protocol::{Report, Request, Setting};
use crate::worker::collected_rows::CollectedRows;
use crate::worker::outcome::PendingOutcome;
use crate::worker::result_queue::ResultQueue;
use std::cell::{Cell, OnceCell, RefCell};
use std::time::Instant;

/// Variables of a worker that more than one function needs, some of them a callback of the server, which comes without
/// context.
///
/// Each is a cell of its own: a callback (a notice, a row, the end of the process) may come while another one is
/// borrowed.
pub struct WorkerState {
    /// Index of this worker's slot in the registry; `None` if it has none yet, or goes.
    pub slot: Cell<Option<usize>>,
    /// The process is logged in, and its worker may run jobs: what ends it now is no refused login.
    pub is_logged_in: Cell<bool>,
    /// This was the only worker of its pool when connections were counted.
    pub was_counted_alone: Cell<bool>,
    /// Error that ends this process, if it is none that the server raises.
    pub exit_report: RefCell<Option<Report>>,
    /// End of the queued job that this worker is still busy with.
    pub pending_outcome: RefCell<Option<PendingOutcome>>,
    /// Time at which the queued job must end.
    pub deadline: Cell<Option<Instant>>,

    /// Channel of the attached job, or of the last one.
    pub channel: Cell<Option<Channel>>,
    /// Sending end of the channel, while no job runs; `None` if the reader has gone.
    pub sender: RefCell<Option<Sender>>,
    /// The last request as it came, and decoded.
    pub request: RefCell<(Vec<u8>, Request)>,
    /// The launcher knows how the job has ended, or need not know.
    pub is_reported: Cell<bool>,
    /// This process counts as one that is not in the registry.
    pub is_unregistered: Cell<bool>,
    /// Version of the login that this process has made, as the launcher knew it; 0 if it logged in for the queue.
    pub login_version: Cell<u64>,
    /// Worker as which the server has started this process for a session; `None` if it did so for the queue.
    pub worker: Cell<Option<WorkerHandle>>,

    /// Text that positions of errors point into.
    pub job_text: RefCell<Vec<u8>>,
    /// A client of a launcher has set something once.
    pub has_been_client: Cell<bool>,
    /// Settings that the client of a launcher had made when it connected, as this process has them now, each with the
    /// value that was there before.
    pub client_settings: RefCell<Vec<(Setting, Vec<u8>)>>,

    /// Result of the attached job that runs, on its way. Borrowed while a frame is sent.
    pub result_queue: RefCell<Option<ResultQueue>>,
    /// Rows of the queued job that runs; what COPY TO STDOUT adds to them comes through a callback.
    pub collected_rows: RefCell<Option<CollectedRows>>,
}

impl WorkerState {
    fn new() -> Self {
        WorkerState {
            slot: Cell::new(None),
            is_logged_in: Cell::new(false),
            was_counted_alone: Cell::new(false),
            exit_report: RefCell::new(None),
            pending_outcome: RefCell::new(None),
            deadline: Cell::new(None),
            channel: Cell::new(None),
            sender: RefCell::new(None),
            request: RefCell::default(),
            is_reported: Cell::new(true),
            is_unregistered: Cell::new(false),
            login_version: Cell::new(0),
            worker: Cell::new(None),
            job_text: RefCell::default(),
            has_been_client: Cell::new(false),
            client_settings: RefCell::default(),
            result_queue: RefCell::new(None),
            collected_rows: RefCell::new(None),
        }
    }
}

thread_local! {
    /// Made once, when the process starts, and never dropped: thread-locals are destroyed in `exit()`, after the server
    /// has taken down what they may hold.
    static STATE: OnceCell<&'static WorkerState> = const { OnceCell::new() };
}

/// Returns the state of this worker process.
pub fn state() -> &'static WorkerState {
    STATE.with(|state| *state.get_or_init(|| Box::leak(Box::new(WorkerState::new()))))
}
