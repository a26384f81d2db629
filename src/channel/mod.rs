//! Channel: the segment that a session and a worker share, for one job after the other.
//!
//! ```text
//! header       [L] layout, sizes, has the result been read    [W] process, slot, lengths    [LW] gate, pin
//! exit error   [W] why the worker exited, if it could not send that
//! payload      [L] the request, and the job's SQL
//! queue        shm_mq: frames from worker to session
//! ```
//! `[L]` is written by the launcher before it names the segment to a worker, `[W]` is written by the worker.
//!
//! The segment is pinned until the worker has attached: the launcher, once it has told the worker, may be gone before
//! that. The pin is removed by the worker when it attaches, or by the launcher if it gives the launch up before.
//!
//! The launch gate makes a launch all or nothing: a new worker runs its job only after the launcher, which may be
//! cancelled while it waits for the worker to start, has opened the gate. A prestarted worker waits for a job; it
//! closes the gate for ever when it has waited for long enough.
//!
//! When the result has been read, launcher and worker may use the segment for the next job: the launcher writes it into
//! the payload, and tells the worker through the registry.

pub mod attached_jobs;
pub mod nesting;
pub mod overflow_queue;

use crate::ffi::bgworker::WorkerHandle;
use crate::ffi::dsm::{Handle, Segment};
use crate::ffi::shm_mq::{Receiver, Sender};
use crate::ffi::spin::Nanos;
use crate::ffi::{process, session, spin};
use crate::protocol::{aligned, to_bytes, Report};
use crate::scheduler::SlotId;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

/// Changes with the layout, so that a library of another version is detected.
const LAYOUT: u64 = u64::from_be_bytes(*b"pgbm\0\0\0\x05");

/// Words at the beginning of the segment.
#[derive(Clone, Copy)]
enum Word {
    Layout,
    Gate,
    Pid,
    /// The worker's process, to set its latch.
    Process,
    /// There is a job for a new process.
    HasJob,
    /// Version of the login that the process must make, as known to the launcher.
    LoginVersion,
    /// Bytes for the request and the SQL.
    PayloadBytes,
    /// Bytes of the queue.
    Queue,
    RequestLength,
    SqlLength,
    ExitErrorLength,
    PinTaken,
    /// Index + 1 of the worker's slot.
    SlotId,
    SlotSerial,
    /// The launcher has read the result, or given it up.
    IsRead,
    /// The launcher is reading the result.
    IsBeingRead,
    /// The worker waits, or will wait, until its reader takes what does not fit in the queue.
    IsWaiting,
    /// Number of jobs that have been written to the segment.
    Number,
    /// Number of the last job whose whole result is in the queue, and the bytes of that result.
    Delivered,
    /// Background worker handle of a worker that was started for the job.
    WorkerSlot,
    WorkerGeneration,
    HasWorker,
    /// Time at which the outcome of the last job was sent ([`spin::clock`]).
    SentAt,
}

const HEADER_BYTES: usize = 192;
/// Bytes for a report with long texts; a longer one is cut.
const EXIT_ERROR_BYTES: usize = 4096;
const PAYLOAD_OFFSET: usize = HEADER_BYTES + EXIT_ERROR_BYTES;
/// Minimum bytes of payload: later jobs may need more than the first.
const MIN_PAYLOAD_BYTES: usize = 8192;
/// Maximum bytes of the queue, and of the payload, with which a segment is kept for further jobs.
const MAX_REUSED_BYTES: u64 = 256 * 1024;

/// Decision whether the worker may run its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Gate {
    /// The launcher has not decided yet. A new segment is all zeros.
    Closed,
    /// The launch is complete.
    Open,
    /// The launch failed; the job must not run.
    Abandoned,
}

/// The shared segment of one job.
#[derive(Clone, Copy)]
pub struct Channel(Segment);

impl Channel {
    /// Returns the bytes of payload that a job takes.
    pub fn payload_bytes(request: &[u8], sql: &[u8]) -> usize {
        aligned(request.len()) + sql.len()
    }

    /// Launcher: creates a segment for a job with this many bytes of payload, and for later jobs. Returns `None` if the
    /// server has no segment left.
    pub fn create(payload: usize, queue_bytes: usize) -> Option<(Self, Receiver)> {
        let payload = payload.max(MIN_PAYLOAD_BYTES);
        let queue = queue_offset(payload);
        // The server rounds the size of the queue down; a multiple of the alignment keeps the requested size.
        let queue_bytes = aligned(queue_bytes);
        let segment = Segment::create(queue + queue_bytes)?;
        let channel = Channel(segment);
        channel.set(Word::PayloadBytes, payload as u64);
        channel.set(Word::Queue, queue_bytes as u64);
        let receiver = Receiver::create(&segment, queue, queue_bytes);
        channel.set(Word::PinTaken, 1);
        channel.set(Word::Layout, LAYOUT);
        Some((channel, receiver))
    }

    /// Launcher: makes the segment ready for another worker, as if it were new.
    /// Caller: the worker that had the segment is gone, and its receiver was closed.
    pub fn renew(&self, queue_bytes: usize) -> Receiver {
        for word in [Word::Gate, Word::Pid, Word::Process, Word::HasJob, Word::SlotId, Word::HasWorker] {
            self.set(word, 0);
        }
        Receiver::create(&self.0, queue_offset(self.get(Word::PayloadBytes) as usize), aligned(queue_bytes))
    }

    /// Returns whether the segment is small enough to be kept for further jobs.
    pub fn is_kept(self) -> bool {
        self.get(Word::PayloadBytes) <= MAX_REUSED_BYTES && self.get(Word::Queue) <= MAX_REUSED_BYTES
    }

    /// Returns whether a job with so many bytes of payload fits into the segment.
    pub fn fits(&self, payload: usize) -> bool {
        payload <= self.get(Word::PayloadBytes) as usize
    }

    /// Launcher: writes a job that [`fits`](Self::fits).
    /// Caller: no process reads the payload meanwhile.
    pub fn write_job(&self, request: &[u8], sql: &[u8]) {
        self.0.write(PAYLOAD_OFFSET, request);
        self.0.write(PAYLOAD_OFFSET + aligned(request.len()), sql);
        self.set(Word::RequestLength, request.len() as u64);
        self.set(Word::SqlLength, sql.len() as u64);
        self.set(Word::ExitErrorLength, 0);
        self.set(Word::IsRead, 0);
        self.set(Word::IsBeingRead, 0);
        self.set(Word::IsWaiting, 0);
        self.set(Word::SentAt, 0);
        self.set(Word::Number, self.get(Word::Number) + 1);
    }

    /// Launcher: lets a new process begin with the job that was written, and log in. A process that has started
    /// already, and has a process id, is woken when the gate opens.
    pub fn offer(&self, login_version: u64) {
        self.set(Word::LoginVersion, login_version);
        self.0.word(Word::HasJob as usize).store(1, SeqCst);
    }

    /// Worker: returns whether there is a job. The worker calls `set_process`, then this; the launcher calls `offer`,
    /// then wakes the worker: at least one of them sees what the other has set.
    pub fn has_job(&self) -> bool {
        self.0.word(Word::HasJob as usize).load(SeqCst) != 0
    }

    /// Worker: returns the version of the login that the launcher knew when it offered the job.
    pub fn login_version(&self) -> u64 {
        self.get(Word::LoginVersion)
    }

    /// Worker: attaches to the segment. Returns `None` if the launcher is gone, or has another version of the library.
    pub fn attach(handle: Handle) -> Option<Self> {
        let channel = Channel(Segment::attach(handle)?);
        if channel.get(Word::Layout) != LAYOUT {
            return None;
        }
        channel.unpin();
        Some(channel)
    }

    /// Launcher: keeps the segment alive without a process that has attached to it, for a worker that will. No
    /// interrupt may be served between this and telling the worker: a session that ended in between would leave the
    /// segment for ever.
    pub fn pin(&self) {
        self.set(Word::PinTaken, 0);
        self.0.pin();
    }

    /// Removes the pin: the segment is freed when the last process detaches. Only the first call has an effect.
    pub fn unpin(&self) {
        if self.0.word(Word::PinTaken as usize).compare_exchange(0, 1, AcqRel, Relaxed).is_ok() {
            self.0.unpin();
        }
    }

    /// Launcher: gives the launch up: the job will not run.
    pub fn give_up(&self) {
        self.decide(Gate::Abandoned);
        self.unpin();
        self.wake();
    }

    /// Launcher: gives the launch up as [`give_up`](Self::give_up) does, and closes the segment.
    /// Caller: the receiver has been closed.
    pub fn abandon(self) {
        self.give_up();
        self.close();
    }

    /// Returns the handle by which the worker attaches to the segment.
    pub fn handle(&self) -> Handle {
        self.0.handle()
    }

    /// Worker: returns the sending end of the queue. A worker whose end the postmaster does not report to the launcher
    /// must attach to it at once.
    pub fn sender(&self) -> Sender {
        Sender::new(&self.0, queue_offset(self.get(Word::PayloadBytes) as usize))
    }

    /// Worker: returns the request as it was written.
    pub fn request(&self) -> Option<Vec<u8>> {
        self.0.read(PAYLOAD_OFFSET, self.get(Word::RequestLength) as usize)
    }

    /// Worker: returns whether the request is equal to this one.
    pub fn has_request(&self, request: &[u8]) -> bool {
        self.get(Word::RequestLength) as usize == request.len() && self.0.holds(PAYLOAD_OFFSET, request)
    }

    /// Worker: returns the SQL of the job.
    pub fn sql(&self) -> Option<Vec<u8>> {
        let request = aligned(self.get(Word::RequestLength) as usize);
        self.0.read(PAYLOAD_OFFSET + request, self.get(Word::SqlLength) as usize)
    }

    /// Records the slot of the worker that has the segment.
    pub fn set_slot_id(&self, (index, serial): SlotId) {
        self.set(Word::SlotSerial, serial);
        self.0.word(Word::SlotId as usize).store(index as u64 + 1, SeqCst);
    }

    /// Returns the slot of the worker that has the segment, or `None` if it has no slot yet.
    pub fn slot_id(&self) -> Option<SlotId> {
        let index = self.0.word(Word::SlotId as usize).load(SeqCst).checked_sub(1)?;
        Some((index as usize, self.get(Word::SlotSerial)))
    }

    /// Launcher: records that the result has been read, or given up.
    pub fn set_read(&self) {
        self.0.word(Word::IsRead as usize).store(1, SeqCst);
    }

    /// Worker: returns whether the result has been read, or given up. The launcher calls `set_read`, then `slot_id`;
    /// the worker calls `set_slot_id`, then this: at least one of them sees what the other has set.
    pub fn is_read(&self) -> bool {
        self.0.word(Word::IsRead as usize).load(SeqCst) != 0
    }

    /// Launcher: records whether it is reading the result.
    pub fn set_being_read(&self, is_being_read: bool) {
        self.set(Word::IsBeingRead, u64::from(is_being_read));
    }

    /// Worker: returns whether the launcher is reading the result.
    pub fn is_being_read(&self) -> bool {
        self.get(Word::IsBeingRead) != 0
    }

    /// Worker: records that it will wait for its reader. The worker calls this, then `is_read`; the launcher calls
    /// `set_read`, then `is_waiting`: at least one of them sees what the other has set.
    pub fn set_waiting(&self) {
        self.0.word(Word::IsWaiting as usize).store(1, SeqCst);
    }

    /// Launcher: returns whether the worker waits for the reader of its job, which has ended.
    pub fn is_waiting(&self) -> bool {
        self.0.word(Word::IsWaiting as usize).load(SeqCst) != 0
    }

    /// Worker: returns the number of the job that it begins.
    pub fn number(&self) -> u64 {
        self.get(Word::Number)
    }

    /// Worker: records that the whole result of a job is in the queue, and how many bytes it has. The launcher may have
    /// read it by now, and may have written the next job.
    pub fn set_delivered(&self, number: u64, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.set(Word::Delivered, number << 32 | u64::from(bytes));
    }

    /// Launcher: returns the bytes of the result, or `None` if the whole of it is not in the queue yet.
    pub fn delivered(&self) -> Option<usize> {
        let delivered = self.get(Word::Delivered);
        (delivered >> 32 == self.get(Word::Number) & u64::from(u32::MAX)).then_some(delivered as u32 as usize)
    }

    /// Worker: records that it sends the outcome of the job now.
    pub fn set_sent(&self) {
        self.set(Word::SentAt, spin::clock());
    }

    /// Launcher: returns when the outcome was sent ([`spin::clock`]), or `None` if it was not.
    pub fn sent_at(&self) -> Option<Nanos> {
        Some(self.get(Word::SentAt)).filter(|at| *at != 0)
    }

    /// Records the process that the server was asked to start for the job.
    pub fn set_worker(&self, worker: WorkerHandle) {
        let [slot, generation] = worker.to_words();
        self.set(Word::WorkerSlot, slot);
        self.set(Word::WorkerGeneration, generation);
        self.set(Word::HasWorker, 1);
    }

    /// Returns the process that the server was asked to start, or `None` if a worker that existed already has the job.
    pub fn worker(&self) -> Option<WorkerHandle> {
        let words = [self.get(Word::WorkerSlot), self.get(Word::WorkerGeneration)];
        (self.get(Word::HasWorker) != 0).then(|| WorkerHandle::from_words(words))
    }

    /// Worker: records its process.
    pub fn set_process(&self, pid: i32) {
        self.set(Word::Process, process::own().to_word());
        self.0.word(Word::Pid as usize).store(pid as u64, SeqCst);
    }

    /// Launcher: wakes the worker, if its process has started.
    fn wake(&self) {
        if self.pid().is_some() {
            process::wake(process::ProcessRef::from_word(self.get(Word::Process)));
        }
    }

    /// Launcher: returns the worker's process id, or `None` if its process has not started.
    pub fn pid(&self) -> Option<i32> {
        Some(self.0.word(Word::Pid as usize).load(SeqCst) as i32).filter(|pid| *pid != 0)
    }

    /// Returns the gate as it is now.
    pub fn gate(&self) -> Gate {
        match self.0.word(Word::Gate as usize).load(SeqCst) {
            1 => Gate::Open,
            2 => Gate::Abandoned,
            _ => Gate::Closed,
        }
    }

    /// Launcher: lets the worker run the job. Returns `false` if the worker has exited before there was one.
    pub fn open(&self) -> bool {
        self.decide(Gate::Open);
        self.wake();
        self.gate() == Gate::Open
    }

    /// Worker: decides to run no job. Returns `false` if the launcher has decided that it must run one.
    pub fn decline(&self) -> bool {
        self.decide(Gate::Abandoned);
        self.gate() == Gate::Abandoned
    }

    /// Decides on the gate. The first decision holds.
    fn decide(&self, gate: Gate) {
        let _ = self.0.word(Word::Gate as usize).compare_exchange(0, gate as u64, SeqCst, SeqCst);
    }

    /// Worker: leaves a report for a launcher that will find the queue closed. Never waits and never raises, as it is
    /// called while the process exits.
    pub fn leave_exit_error(&self, report: &Report) {
        let mut report = report.clone();
        let mut bytes = to_bytes(&report);
        if bytes.len() > EXIT_ERROR_BYTES {
            report = Report { message: cut(&report.message), ..minimal(&report) };
            bytes = to_bytes(&report);
        }
        if bytes.len() <= EXIT_ERROR_BYTES {
            self.0.write(HEADER_BYTES, &bytes);
            self.set(Word::ExitErrorLength, bytes.len() as u64);
        }
    }

    /// Launcher: returns the report that the worker left, or `None` if there is none.
    pub fn exit_error(&self) -> Option<Report> {
        let length = self.get(Word::ExitErrorLength) as usize;
        let bytes = self.0.read(HEADER_BYTES, length.min(EXIT_ERROR_BYTES)).filter(|_| length > 0)?;
        crate::protocol::decode(&bytes).ok()
    }

    /// Launcher: closes the segment of a launched job.
    /// Caller: the receiver has been closed.
    pub fn close(self) {
        self.0.close();
    }

    fn get(&self, word: Word) -> u64 {
        self.0.word(word as usize).load(Acquire)
    }

    fn set(&self, word: Word, value: u64) {
        self.0.word(word as usize).store(value, Release);
    }
}

fn queue_offset(payload: usize) -> usize {
    // MAXALIGN is enough for a queue; 64 keeps its counters out of the text's cache line.
    (PAYLOAD_OFFSET + payload).next_multiple_of(64)
}

/// Returns the fields that matter most, for a report that is too long.
fn minimal(report: &Report) -> Report {
    Report { level: report.level, sqlstate: report.sqlstate, line: report.line, ..Report::default() }
}

fn cut(message: &[u8]) -> Vec<u8> {
    session::clip(message, EXIT_ERROR_BYTES / 2).to_vec()
}
