//! Takes what an attached job returns, and sends it to the session.

use crate::channel::Channel;
use crate::error::Error;
use crate::ffi::interrupt::CancelHeld;
use crate::ffi::remote_dest::Message;
use crate::ffi::report::Log;
use crate::ffi::row_writer::RowWriter;
use crate::ffi::shm_mq::{SendError, Sender};
use crate::ffi::statement::RowSink;
use crate::ffi::tuple::{text_description, TupleDesc};
use crate::ffi::{report, session, tuple};
use crate::protocol::{encode, frame, Done, Kind, Report, FRAME_BYTES};
use crate::worker::result_queue::{Delivery, ResultQueue};
use crate::worker::simple_query::StatementObserver;
use crate::worker::state::state;

/// Starts sending what the next job returns.
pub fn open(sender: Sender, channel: Channel) {
    state().result_queue.replace(Some(ResultQueue::new(sender, channel)));
}

/// Sends nothing any more: nobody wants it.
pub fn forget_reader() {
    state().result_queue.borrow_mut().iter_mut().for_each(ResultQueue::forget_reader);
}

/// Ends sending. Returns the channel's sending end and the bytes that were sent; `None` if there is no reader any more.
pub fn close() -> Option<(Sender, usize)> {
    state().result_queue.take()?.close()
}

/// Works with the queue. While it is in use nothing else is sent: a message about sending a message is dropped.
fn with_queue(work: impl FnOnce(&mut ResultQueue) -> Result<(), Error>) -> Result<(), Error> {
    match state().result_queue.try_borrow_mut() {
        Ok(mut queue) => queue.as_mut().map_or(Ok(()), work),
        Err(_) => Ok(()),
    }
}

/// Raises an error inside a callback of the server, which has no other way back.
fn raise_failed(outcome: Result<(), Error>) {
    if let Err(error) = outcome {
        report::emit(&Report::from(error), Log::Here);
    }
}

/// Sends a notice of the job.
pub fn notice(report: Report) {
    raise_failed(with_queue(|queue| queue.push(encode(Kind::Notice, &report))));
}

/// Takes what the server sends to its client beside rows and notices.
pub fn message(message: Message) {
    raise_failed(match message {
        Message::CopyFrom => Err(Error::CopyIn),
        Message::CopyTo { binary: true } => Err(Error::BinaryCopyOut),
        Message::CopyTo { binary: false } => with_queue(|queue| queue.start(&text_description(b"copy"))),
        Message::Line(line) => copy_line(line),
    });
}

/// Sends a line of COPY as a row; the line's end is not part of it.
fn copy_line(line: &[u8]) -> Result<(), Error> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    if !session::is_valid_text(line) {
        return Err(Error::CopyEncoding);
    }
    with_queue(|queue| queue.copy_line(line))
}

/// The session that reads the result.
pub struct AttachedReader;

impl StatementObserver for AttachedReader {
    /// # Errors
    /// [`Error::Spill`] (58030)
    fn statement(&mut self, is_last: bool, run: &mut dyn FnMut(&mut dyn RowSink) -> Vec<u8>) -> Result<Vec<u8>, Error> {
        with_queue(|queue| {
            queue.begin_statement(is_last);
            Ok(())
        })?;
        let mut rows = Rows { writer: None, batch: frame(Kind::Rows) };
        let tag = run(&mut rows);
        rows.flush()?;
        with_queue(ResultQueue::flush_copied)?;
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
        with_queue(|queue| queue.rows(batch))
    }
}

impl RowSink for Rows {
    fn start(&mut self, columns: TupleDesc) {
        let (writer, description) = RowWriter::new(columns);
        self.writer = Some(writer);
        raise_failed(self.flush().and_then(|()| with_queue(|queue| queue.start(&description))));
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
    if let Some(queue) = state().result_queue.borrow_mut().as_mut() {
        queue.set_done(outcome);
    }
}

/// Puts the failure of the job behind its notices; its rows are of no use to anybody.
pub fn failed(report: &Report) {
    let outcome = encode(Kind::Error, report);
    if let Some(queue) = state().result_queue.borrow_mut().as_mut() {
        queue.set_failed(outcome);
    }
}

/// Puts into the queue what there is room for. The job is over: a cancel has nothing to cancel.
pub fn deliver_at_once() -> Delivery {
    deliver_with(Sender::try_send)
}

/// Waits until everything is in the queue, or the reader has gone.
pub fn deliver() {
    // One that waits for room is never blocked.
    let _complete = deliver_with(|sender, frame, is_last| sender.send(frame, is_last).map_err(|_| SendError::Detached));
}

fn deliver_with(send: impl Fn(&mut Sender, &[u8], bool) -> Result<(), SendError>) -> Delivery {
    let _held = CancelHeld::new();
    state().result_queue.borrow_mut().as_mut().map_or(Delivery::Complete, |queue| queue.deliver(send))
}
