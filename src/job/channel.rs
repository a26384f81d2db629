//! The segment that a session and the worker of one job share.
//!
//! ```text
//! words        [L] layout, sizes    [W] pid, last words' length    [LW] gate, pin
//! last words   [W] why the worker died, if it could not send it
//! request      [L]
//! text         [L] the job's SQL
//! queue        shm_mq: frames from worker to session
//! ```
//! `[L]` the launcher writes it before it registers the worker, `[W]` the worker writes it.
//!
//! The segment is pinned until the worker has it: the launcher may be gone before that. Whoever comes first of a worker
//! that attaches and a launcher that gives the launch up takes the pin away.
//!
//! The gate makes a launch all or nothing: a worker runs its job only after the launcher, which may be cancelled while
//! it waits for the worker to start, has opened it.

use crate::ffi::dsm::{Handle, Segment};
use crate::ffi::session;
use crate::ffi::shm_mq::{Receiver, Sender};
use crate::protocol::{aligned, decode, to_bytes, Malformed, Report, Request};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

/// Changes with the layout, so that a library of another version is noticed.
const LAYOUT: u64 = u64::from_be_bytes(*b"pgbm\0\0\0\x01");

/// Words at the beginning of the segment.
#[derive(Clone, Copy)]
enum Word {
    Layout,
    Gate,
    Pid,
    RequestLength,
    SqlLength,
    LastWordsLength,
    PinTaken,
}

const WORDS_BYTES: usize = 64;
/// Room for a report with long texts; a longer one is cut.
const LAST_WORDS_BYTES: usize = 4096;
const REQUEST: usize = WORDS_BYTES + LAST_WORDS_BYTES;

/// May the worker run its job?
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
    /// Launcher: creates the segment and writes the job into it. None = no segment is left.
    pub fn create(request: &Request, sql: &[u8], queue_bytes: usize) -> Option<(Self, Receiver)> {
        let request = to_bytes(request);
        let queue = queue_offset(request.len(), sql.len());
        // The queue's size is rounded down by the server; a whole number of alignments keeps what was asked for.
        let queue_bytes = aligned(queue_bytes);
        let segment = Segment::create(queue + queue_bytes)?;
        let channel = Channel(segment);
        segment.write(REQUEST, &request);
        segment.write(REQUEST + aligned(request.len()), sql);
        channel.set(Word::RequestLength, request.len() as u64);
        channel.set(Word::SqlLength, sql.len() as u64);
        let receiver = Receiver::create(&segment, queue, queue_bytes);
        channel.set(Word::Layout, LAYOUT);
        segment.pin();
        Some((channel, receiver))
    }

    /// Worker: maps the segment. None = the launcher has gone, or has another version of the library.
    pub fn attach(handle: Handle) -> Option<Self> {
        let channel = Channel(Segment::attach(handle)?);
        if channel.get(Word::Layout) != LAYOUT {
            return None;
        }
        channel.unpin();
        Some(channel)
    }

    fn unpin(&self) {
        if self.0.word(Word::PinTaken as usize).compare_exchange(0, 1, AcqRel, Relaxed).is_ok() {
            self.0.unpin();
        }
    }

    /// Launcher: gives the launch up. The job will not run. The receiver must have been closed before.
    pub fn abandon(self) {
        self.decide(Gate::Abandoned);
        self.unpin();
        self.close();
    }

    /// Names the segment to the worker.
    pub fn handle(&self) -> Handle {
        self.0.handle()
    }

    /// Worker: takes the sending end of the queue.
    pub fn sender(&self) -> Sender {
        let queue = queue_offset(self.get(Word::RequestLength) as usize, self.get(Word::SqlLength) as usize);
        Sender::attach(&self.0, queue)
    }

    /// Worker: reads the job.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn job(&self) -> Result<(Request, Vec<u8>), Malformed> {
        let length = self.get(Word::RequestLength) as usize;
        let request = self.0.read(REQUEST, length).ok_or(Malformed)?;
        let sql = self.0.read(REQUEST + aligned(length), self.get(Word::SqlLength) as usize).ok_or(Malformed)?;
        Ok((decode(&request)?, sql))
    }

    /// Worker: says who it is.
    pub fn set_pid(&self, pid: i32) {
        self.set(Word::Pid, pid as u64);
    }

    /// Launcher: the worker's process id, if it has come so far.
    pub fn pid(&self) -> Option<i32> {
        Some(self.get(Word::Pid) as i32).filter(|pid| *pid != 0)
    }

    /// The gate as it is now.
    pub fn gate(&self) -> Gate {
        match self.get(Word::Gate) {
            1 => Gate::Open,
            2 => Gate::Abandoned,
            _ => Gate::Closed,
        }
    }

    /// Launcher: lets the worker run the job.
    pub fn open(&self) {
        self.decide(Gate::Open);
    }

    /// The first decision holds.
    fn decide(&self, gate: Gate) {
        let _ = self.0.word(Word::Gate as usize).compare_exchange(0, gate as u64, AcqRel, Relaxed);
    }

    /// Worker: leaves a report for a launcher that will find the queue closed. Never waits and never raises: it is
    /// called while the process ends.
    pub fn leave_last_words(&self, report: &Report) {
        let mut report = report.clone();
        let mut bytes = to_bytes(&report);
        if bytes.len() > LAST_WORDS_BYTES {
            report = Report { message: cut(&report.message), ..minimal(&report) };
            bytes = to_bytes(&report);
        }
        if bytes.len() <= LAST_WORDS_BYTES {
            self.0.write(WORDS_BYTES, &bytes);
            self.set(Word::LastWordsLength, bytes.len() as u64);
        }
    }

    /// Launcher: what the worker left.
    pub fn last_words(&self) -> Option<Report> {
        let length = self.get(Word::LastWordsLength) as usize;
        let bytes = self.0.read(WORDS_BYTES, length.min(LAST_WORDS_BYTES)).filter(|_| length > 0)?;
        decode(&bytes).ok()
    }

    /// Launcher: gives the segment of a launched job back. The receiver must have been closed before.
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

fn queue_offset(request: usize, sql: usize) -> usize {
    // MAXALIGN is enough for a queue; 64 keeps its counters out of the text's cache line.
    (REQUEST + aligned(request) + sql).next_multiple_of(64)
}

/// The fields that matter most, when there is no room for all.
fn minimal(report: &Report) -> Report {
    Report { level: report.level, sqlstate: report.sqlstate, line: report.line, ..Report::default() }
}

fn cut(message: &[u8]) -> Vec<u8> {
    session::clip(message, LAST_WORDS_BYTES / 2).to_vec()
}
