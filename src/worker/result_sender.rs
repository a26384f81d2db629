//! Output of the job: kept in order, never waited for while the job runs.
//!
//! A frame goes into the queue if there is room, else behind the others that wait in memory or in a temporary file.
//! Only when the job has ended, with nothing of it open any more, does the worker wait for its reader.
//!
//! The rows of a statement that is not the last are held back: the result is that of the last statement that gives
//! rows, and which one that is shows at the end.

use crate::channel::overflow_queue::OverflowQueue;
use crate::channel::Channel;
use crate::error::Error;
use crate::ffi::interrupt::CancelHeld;
use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use crate::ffi::remote_dest::Message;
use crate::ffi::report::Log;
use crate::ffi::row_writer::RowWriter;
use crate::ffi::shm_mq::{SendError, Sender};
use crate::ffi::statement::RowSink;
use crate::ffi::tuple::{text_description, text_row, TupleDesc};
use crate::ffi::{report, session, tuple};
use crate::protocol::{encode, frame, split, Description, Done, Kind, Report, FRAME_BYTES, HEADER_BYTES};
use crate::worker::simple_query::StatementObserver;

/// Tells where the rows of the running statement go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RowTarget {
    /// Nowhere: it has given no columns yet, or they are another set of a statement whose first set is sent.
    Nowhere,
    /// Kept back until it is known that no later statement gives rows.
    Deferred,
    /// Sent: no later statement can give rows.
    Sent,
}

struct ResultSender {
    /// None = there is no reader any more.
    sender: Option<Sender>,
    channel: Channel,
    /// A frame of which a part may be in the queue.
    pending: Option<Vec<u8>>,
    overflow: OverflowQueue,
    deferred: Option<OverflowQueue>,
    /// Frame with the outcome of the job.
    outcome: Option<Vec<u8>>,
    /// The job has failed: of what waits, only notices are sent.
    is_failed: bool,
    row_target: RowTarget,
    is_last_statement: bool,
    /// Bytes that are, or were, in the queue.
    sent: usize,
    /// Lines of COPY that are not a frame yet.
    copied: Vec<u8>,
}

thread_local! {
    static RESULT_SENDER: ProcessCell<Option<ResultSender>> = const { process_cell(None) };
}

/// Starts sending what the next job gives.
pub fn open(sender: Sender, channel: Channel) {
    RESULT_SENDER.set(Some(ResultSender {
        sender: Some(sender),
        channel,
        pending: None,
        overflow: OverflowQueue::new(session::work_mem()),
        deferred: None,
        outcome: None,
        is_failed: false,
        row_target: RowTarget::Nowhere,
        is_last_statement: false,
        sent: 0,
        copied: frame(Kind::Rows),
    }));
}

/// Sends nothing any more: nobody wants it.
pub fn forget_reader() {
    RESULT_SENDER.with_borrow_mut(|outbox| outbox.iter_mut().for_each(|outbox| outbox.sender = None));
}

/// Ends sending; gives the bytes that were sent. None = there is no reader any more.
pub fn close() -> Option<(Sender, usize)> {
    let outbox = RESULT_SENDER.with_borrow_mut(Option::take)?;
    Some((outbox.sender?, outbox.sent))
}

/// Works with the outbox. While it is in use nothing else is sent: a message about sending a message is dropped.
fn with_sender(work: impl FnOnce(&mut ResultSender) -> Result<(), Error>) -> Result<(), Error> {
    let sent = RESULT_SENDER.try_with_borrow_mut(|outbox| outbox.as_mut().map_or(Ok(()), work));
    sent.unwrap_or(Ok(()))
}

/// Raises an error inside a callback of the server, which has no other way back.
fn raise_failed(outcome: Result<(), Error>) {
    if let Err(error) = outcome {
        report::emit(&Report::from(error), Log::Here);
    }
}

/// Sends a notice of the job.
pub fn notice(report: Report) {
    raise_failed(with_sender(|outbox| outbox.push(encode(Kind::Notice, &report))));
}

/// Takes what the server sends to its client beside rows and notices.
pub fn message(message: Message) {
    raise_failed(match message {
        Message::CopyFrom => Err(Error::CopyIn),
        Message::CopyTo { binary: true } => Err(Error::BinaryCopyOut),
        Message::CopyTo { binary: false } => with_sender(|outbox| outbox.start(&text_description(b"copy"))),
        Message::Line(line) => copy_line(line),
    });
}

/// A line of COPY is a row; the line's end is not part of it.
fn copy_line(line: &[u8]) -> Result<(), Error> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    if !session::is_valid_text(line) {
        return Err(Error::CopyEncoding);
    }
    with_sender(|outbox| {
        text_row(line, &mut outbox.copied);
        if outbox.copied.len() >= FRAME_BYTES {
            outbox.flush_copied()?;
        }
        Ok(())
    })
}

/// The session that reads the result.
pub struct AttachedReader;

impl StatementObserver for AttachedReader {
    /// # Errors
    /// [`Error::Spill`] (58030)
    fn statement(&mut self, is_last: bool, run: &mut dyn FnMut(&mut dyn RowSink) -> Vec<u8>) -> Result<Vec<u8>, Error> {
        with_sender(|outbox| {
            outbox.row_target = RowTarget::Nowhere;
            outbox.is_last_statement = is_last;
            Ok(())
        })?;
        let mut rows = Rows { writer: None, batch: frame(Kind::Rows) };
        let tag = run(&mut rows);
        rows.flush()?;
        with_sender(ResultSender::flush_copied)?;
        Ok(tag)
    }
}

/// The rows of one statement on their way into frames.
struct Rows {
    writer: Option<RowWriter>,
    batch: Vec<u8>,
}

impl Rows {
    fn flush(&mut self) -> Result<(), Error> {
        let batch = std::mem::replace(&mut self.batch, frame(Kind::Rows));
        with_sender(|outbox| outbox.rows(batch))
    }
}

impl RowSink for Rows {
    fn start(&mut self, columns: TupleDesc) {
        let (writer, description) = RowWriter::new(columns);
        self.writer = Some(writer);
        raise_failed(self.flush().and_then(|()| with_sender(|outbox| outbox.start(&description))));
    }

    fn row(&mut self, row: tuple::TupleSlot) {
        let Some(writer) = &mut self.writer else { return };
        writer.append(row, &mut self.batch);
        if self.batch.len() >= FRAME_BYTES {
            raise_failed(self.flush());
        }
    }
}

/// Puts the success of the job behind what was sent.
pub fn done(done: &Done) {
    let outcome = encode(Kind::Done, done);
    RESULT_SENDER.with_borrow_mut(|outbox| {
        if let Some(outbox) = outbox {
            outbox.outcome = Some(outcome);
        }
    });
}

/// Puts the failure of the job behind its notices; its rows are of no use to anybody.
pub fn failed(report: &Report) {
    let outcome = encode(Kind::Error, report);
    RESULT_SENDER.with_borrow_mut(|outbox| {
        if let Some(outbox) = outbox {
            outbox.deferred = None;
            outbox.is_failed = true;
            outbox.outcome = Some(outcome);
        }
    });
}

/// Puts into the queue what there is room for. The job is over: a cancel has nothing to cancel. False = there is more.
pub fn deliver_at_once() -> bool {
    deliver_with(|sender, frame, is_last| match sender.try_send(frame, is_last) {
        Err(SendError::WouldBlock) => None,
        sent => Some(sent.is_ok()),
    })
}

/// Waits until everything is in the queue, or the reader has gone.
pub fn deliver() {
    deliver_with(|sender, frame, is_last| Some(sender.send(frame, is_last).is_ok()));
}

/// `send` says whether the reader is still there; None = a frame is to be sent again. False = not all is sent.
fn deliver_with(send: impl Fn(&mut Sender, &[u8], bool) -> Option<bool>) -> bool {
    let _held = CancelHeld::new();
    RESULT_SENDER.with_borrow_mut(|outbox| {
        let Some(outbox) = outbox else { return true };
        loop {
            let frame = match outbox.take() {
                Ok(Some(frame)) => frame,
                Ok(None) => return true,
                // What was kept cannot be read back, and so the reader is told.
                Err(error) => {
                    outbox.overflow = OverflowQueue::new(session::work_mem());
                    outbox.deferred = None;
                    outbox.outcome = None;
                    encode(Kind::Error, &Report::from(error))
                }
            };
            let is_last = outbox.outcome.is_none();
            let Some(sender) = &mut outbox.sender else { return true };
            match send(sender, &frame, is_last) {
                Some(true) => outbox.sent += frame.len(),
                Some(false) => {
                    outbox.sender = None;
                    return true;
                }
                None => {
                    outbox.pending = Some(frame);
                    return false;
                }
            }
        }
    })
}

/// Returns whether the reader is to be woken for a frame. Rows can wait for the end, or for more of them.
fn is_urgent(frame: &[u8]) -> bool {
    !matches!(split(frame), Ok((Kind::Describe | Kind::Rows, _)))
}

impl ResultSender {
    /// The columns of a set of rows.
    fn start(&mut self, description: &Description) -> Result<(), Error> {
        let columns = encode(Kind::Describe, description);
        match (self.is_last_statement, self.row_target) {
            (true, RowTarget::Sent) => {
                self.row_target = RowTarget::Nowhere;
                Ok(())
            }
            (true, _) => {
                self.deferred = None;
                self.row_target = RowTarget::Sent;
                self.push(columns)
            }
            (false, _) => {
                self.row_target = RowTarget::Deferred;
                self.deferred.insert(OverflowQueue::new(session::work_mem())).push(columns)
            }
        }
    }

    /// A frame of rows.
    fn rows(&mut self, frame: Vec<u8>) -> Result<(), Error> {
        match (self.row_target, &mut self.deferred) {
            _ if frame.len() <= HEADER_BYTES => Ok(()),
            (RowTarget::Sent, _) => self.push(frame),
            (RowTarget::Deferred, Some(deferred)) => deferred.push(frame),
            _ => Ok(()),
        }
    }

    fn flush_copied(&mut self) -> Result<(), Error> {
        let copied = std::mem::replace(&mut self.copied, frame(Kind::Rows));
        self.rows(copied)
    }

    /// Sends a frame behind those that wait, without waiting.
    fn push(&mut self, frame: Vec<u8>) -> Result<(), Error> {
        // To attach wakes the reader: for more than a few rows, of which it needs the end.
        let is_first = self.sender.as_ref().is_some_and(|sender| !sender.is_attached());
        if is_first && !is_urgent(&frame) && frame.len() < FRAME_BYTES {
            return self.overflow.push(frame);
        }
        while let (Some(sender), Some(next)) =
            (&mut self.sender, self.pending.take().map_or_else(|| self.overflow.pop(), |frame| Ok(Some(frame)))?)
        {
            match sender.try_send(&next, is_urgent(&next)) {
                Ok(()) => self.sent += next.len(),
                // Of what has been given up only that is sent for which there is room.
                Err(SendError::WouldBlock) if self.channel.is_read() => self.sender = None,
                Err(SendError::WouldBlock) => {
                    self.pending = Some(next);
                    return self.overflow.push(frame);
                }
                Err(SendError::Detached) => self.sender = None,
            }
        }
        match self.sender.as_mut().map(|sender| sender.try_send(&frame, is_urgent(&frame))) {
            Some(Err(SendError::WouldBlock)) => self.pending = Some(frame),
            Some(Err(SendError::Detached)) => self.sender = None,
            Some(Ok(())) => self.sent += frame.len(),
            None => {}
        }
        Ok(())
    }

    /// The next frame in order.
    fn take(&mut self) -> Result<Option<Vec<u8>>, Error> {
        if let Some(frame) = self.pending.take() {
            return Ok(Some(frame));
        }
        while let Some(frame) = self.overflow.pop()? {
            if !self.is_failed || matches!(split(&frame), Ok((Kind::Notice, _))) {
                return Ok(Some(frame));
            }
        }
        if let Some(deferred) = &mut self.deferred {
            if let Some(frame) = deferred.pop()? {
                return Ok(Some(frame));
            }
        }
        Ok(self.outcome.take())
    }
}
