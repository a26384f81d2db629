//! Reads the result of a job, or gives it up.
//!
//! Nothing is lost before the caller has the whole result: after an error or a cancel, the received frames are put
//! back, so that the result can be read again.

use crate::channel::attached_jobs;
use crate::channel::attached_jobs::{AttachedJob, ChannelEnd, ResultFate};
use crate::channel::overflow_queue::OverflowQueue;
use crate::error::Error;
use crate::ffi::fmgr::Value;
use crate::ffi::report::Log;
use crate::ffi::row_reader::RowReader;
use crate::ffi::set_returning::Rows;
use crate::ffi::shm_mq::ReceiveError;
use crate::ffi::spin::SpinThenWait;
use crate::ffi::temp_file::TempFileUnlimited;
use crate::ffi::tuple::{text_description, text_row};
use crate::ffi::wait_graph::Wait;
use crate::ffi::{alloc, interrupt, latch, report, role, session};
use crate::protocol::{decode, split, Description, Done, Kind, Malformed, Report};
use crate::session::deadlock;
use crate::session::deadlock::{Awaited, VICTIM_TIMEOUT};
use std::cell::RefCell;
use std::time::Instant;

/// Maximum number of copies in memory of a frame without rows, while it is read and passed on.
const DECODED_COPIES: usize = 4;

thread_local! {
    static SPIN: SpinThenWait = const { SpinThenWait::new() };
}

/// Gives up the result of a job; the job runs on.
///
/// # Errors
/// Those of [`attached_jobs::take`]; [`Error::RestrictedRead`] (42501).
pub fn detach(pid: i32) -> Result<(), Error> {
    attached_jobs::finish(take(pid)?, ResultFate::GivenUp, false);
    Ok(())
}

/// Takes a job of this session, if it belongs to the current role, or to one whose rights that has. Rejects code that
/// runs with the rights of another role in the middle of a command, like the function of an index while its table is
/// analyzed.
fn take(pid: i32) -> Result<AttachedJob, Error> {
    if role::in_restricted_operation() {
        return Err(Error::RestrictedRead);
    }
    attached_jobs::take(pid, role::may_act_as)
}

/// Waits for the result of a job and returns its rows; emits its notices as they arrive.
///
/// # Errors
/// The job's own; [`Error::ColumnCount`], [`Error::ColumnType`] (42804) and [`Error::Deadlock`] (40P01), after which
/// the result can still be read; [`Error::WorkerLost`] (08006); those of [`detach`].
pub fn result(pid: i32, rows: Rows) -> Result<Value, Error> {
    let reading = RefCell::new(Some(Reading::new(take(pid)?, rows)));
    let outcome = report::on_error(
        || reading.borrow_mut().as_mut().map_or(Ok(()), Reading::run),
        || {
            if let Some(reading) = reading.take() {
                reading.put_back();
            }
        },
    );
    let Some(reading) = reading.into_inner() else {
        return Err(Error::BeingRead(pid));
    };
    match outcome {
        Ok(()) => reading.finish(),
        Err(error @ (Error::Job(_) | Error::WorkerLost(_))) => {
            attached_jobs::finish(reading.job, ResultFate::Read, reading.is_whole);
            return Err(error);
        }
        Err(error) => {
            reading.put_back();
            return Err(error);
        }
    }
    Ok(Value::Void)
}

/// Frame that is being processed.
enum Current {
    None,
    /// The frame is still in the queue.
    Received,
    /// The frame was kept by an earlier call.
    Kept(Vec<u8>),
}

/// One call of `result`.
struct Reading {
    job: AttachedJob,
    rows: Rows,
    reader: Option<RowReader>,
    current: Current,
    /// Number of rows of complete frames that are in the caller's store, and their bytes.
    stored: usize,
    bytes: usize,
    /// The last frame has been received.
    is_whole: bool,
    /// Complete frames whose rows are in the caller's store in another form than they were received in.
    converted: OverflowQueue,
}

impl Reading {
    fn new(job: AttachedJob, rows: Rows) -> Self {
        let converted = OverflowQueue::new(session::work_mem());
        Reading { job, rows, reader: None, current: Current::None, stored: 0, bytes: 0, is_whole: false, converted }
    }

    /// Reads the result to its end.
    fn run(&mut self) -> Result<(), Error> {
        if let Some(description) = self.job.description.clone() {
            self.start(&description)?;
        }
        loop {
            self.next()?;
            if self.consume()? {
                return Ok(());
            }
            self.current = Current::None;
        }
    }

    /// Checks the caller's columns against those of the result.
    fn start(&mut self, description: &Description) -> Result<(), Error> {
        let expected = self.rows.expected();
        self.reader = Some(self.rows.for_query(|| RowReader::new(description, expected))?);
        Ok(())
    }

    /// Waits for the next frame.
    fn next(&mut self) -> Result<(), Error> {
        // There may be no frame to wait for: until the caller has the rows, a cancel loses nothing.
        interrupt::check();
        if let Some(kept) = &mut self.job.kept {
            if let Some(frame) = kept.pop()? {
                self.current = Current::Kept(frame);
                return Ok(());
            }
            self.job.kept = None;
        }
        let timeout = session::deadlock_timeout();
        let mut has_spun = false;
        let mut check_at = None;
        let mut visible_wait = None;
        let mut is_victim_fallback = false;
        loop {
            let Some(ChannelEnd { channel, receiver, .. }) = &mut self.job.channel_end else {
                return Err(Malformed.into());
            };
            match receiver.try_receive(|| attached_jobs::is_lost(*channel)) {
                Ok(_) => {
                    SPIN.with(|spin| spin.record_wakeup(channel.sent_at()));
                    self.current = Current::Received;
                    return Ok(());
                }
                Err(ReceiveError::Detached) => return Err(self.lost()),
                Err(ReceiveError::WouldBlock) => {}
            }
            if !has_spun {
                has_spun = true;
                SPIN.with(SpinThenWait::spin);
            }
            let now = Instant::now();
            let due = *check_at.get_or_insert(now + timeout);
            if now >= due {
                visible_wait.get_or_insert_with(|| Wait::publish(self.job.pid));
                is_victim_fallback =
                    deadlock::check(&Awaited { pid: self.job.pid, sql: &self.job.sql }, is_victim_fallback)?;
                check_at = Some(now + if is_victim_fallback { VICTIM_TIMEOUT } else { timeout });
            }
            latch::wait(Some(check_at.unwrap_or(due).saturating_duration_since(now)));
        }
    }

    /// Returns the error for a worker that ended without an outcome.
    fn lost(&self) -> Error {
        match self.job.channel_end.as_ref().and_then(|channel_end| channel_end.channel.exit_error()) {
            Some(report) => job_error(report),
            None => Error::WorkerLost(self.job.pid),
        }
    }

    /// Processes the current frame. Returns `true` if it was the last one.
    fn consume(&mut self) -> Result<bool, Error> {
        let frame = match &self.current {
            Current::None => return Ok(false),
            Current::Received => self.job.channel_end.as_ref().ok_or(Malformed)?.receiver.last(),
            Current::Kept(frame) => frame.as_slice(),
        };
        let (kind, payload) = split(frame)?;
        if kind != Kind::Rows {
            // The texts of the frame grow while they are decoded, and some are copied once more.
            alloc::ensure(DECODED_COPIES * payload.len());
        }
        match kind {
            Kind::Describe => {
                let description: Description = decode(payload)?;
                self.current = Current::None;
                self.job.description = Some(description.clone());
                self.start(&description)?;
            }
            Kind::Rows => {
                let reader = self.reader.as_mut().ok_or(Malformed)?;
                {
                    // A store whose own write fails half way could not be read back.
                    let _unlimited = TempFileUnlimited::new();
                    self.stored += reader.read(payload, self.rows.store())?;
                    if !reader.is_same() {
                        self.converted.push(alloc::copy(frame))?;
                    }
                }
                self.bytes += payload.len();
                self.current = Current::None;
                self.check_temp_file_limit()?;
            }
            Kind::Notice => {
                let report: Report = decode(payload)?;
                self.current = Current::None;
                report::emit(&report, Log::Done);
            }
            Kind::Error => {
                let report = decode(payload)?;
                self.is_whole = true;
                return Err(job_error(report));
            }
            Kind::Done => {
                let done: Done = decode(payload)?;
                self.is_whole = true;
                if self.reader.as_ref().is_some_and(RowReader::is_outdated) {
                    return Err(Error::RowTypeAltered);
                }
                if self.reader.is_none() {
                    self.give_tags(&done)?;
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Checks the rows against `temp_file_limit`: those that do not fit in `work_mem` are in a temporary file.
    fn check_temp_file_limit(&self) -> Result<(), Error> {
        match session::temp_file_limit() {
            Some(limit) if self.bytes > limit.max(session::work_mem()) => Err(Error::TempFileLimit(limit / 1024)),
            _ => Ok(()),
        }
    }

    /// Returns the command tags as the result, when there are no rows.
    fn give_tags(&mut self, done: &Done) -> Result<(), Error> {
        self.start(&text_description(b"result"))?;
        let mut rows = Vec::new();
        done.tags.iter().for_each(|tag| text_row(tag, &mut rows));
        let store = self.rows.store();
        self.reader.as_mut().ok_or(Malformed)?.read(&rows, store)?;
        Ok(())
    }

    /// Passes the rows to the caller.
    fn finish(self) {
        if let Some(reader) = self.reader {
            self.rows.finish(reader.target());
        }
        attached_jobs::finish(self.job, ResultFate::Read, self.is_whole);
    }

    /// Puts everything that was read back, so that it can be read again. If there are many rows, they are already in a
    /// file of the caller, which is removed with the statement: moving them must not fail at `temp_file_limit`.
    fn put_back(mut self) {
        let _unlimited = TempFileUnlimited::new();
        match report::attempt(|| self.collect()) {
            Ok(Ok(kept)) => {
                self.job.kept = Some(kept);
                attached_jobs::put_back(self.job);
            }
            // Only a broken disk does that: then there is nothing to read again.
            Ok(Err(_)) => attached_jobs::finish(self.job, ResultFate::Read, false),
            Err(error) => {
                attached_jobs::finish(self.job, ResultFate::Read, false);
                error.go_on();
            }
        }
    }

    /// Collects the frames that were read and not passed on, in order.
    fn collect(&mut self) -> Result<OverflowQueue, Error> {
        let mut all = OverflowQueue::new(session::work_mem());
        if let Some(reader) = self.reader.as_mut().filter(|reader| reader.is_same()) {
            if self.stored > 0 {
                reader.take_back(self.rows.store(), self.stored, |frame| all.push(frame))?;
            }
        }
        while let Some(frame) = self.converted.pop()? {
            all.push(frame)?;
        }
        match std::mem::replace(&mut self.current, Current::None) {
            Current::None => {}
            Current::Received => {
                all.push(alloc::copy(self.job.channel_end.as_ref().ok_or(Malformed)?.receiver.last()))?
            }
            Current::Kept(frame) => all.push(frame)?,
        }
        if let Some(mut rest) = self.job.kept.take() {
            while let Some(frame) = rest.pop()? {
                all.push(frame)?;
            }
        }
        Ok(all)
    }
}

/// Returns the job's error as the reader raises it: an error that ended the worker does not end the reader.
fn job_error(report: Report) -> Error {
    Error::Job(Box::new(Report { level: report::ERROR, ..report }))
}
