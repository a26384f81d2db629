//! Result of an attached job on its way to the session: frames in order, in the queue, in memory or in a file.
//!
//! A frame goes into the queue if there is room, else behind the others that wait in memory or in a temporary file.
//! Only when the job has ended, with nothing of it open any more, does the worker wait for its reader.
//!
//! The rows of a statement that is not the last are held back: the result is that of the last statement that returns
//! rows, and which one that is shows at the end.

use crate::channel::overflow_queue::OverflowQueue;
use crate::channel::Channel;
use crate::error::Error;
use crate::ffi::session;
use crate::ffi::shm_mq::{SendError, Sender};
use crate::ffi::tuple::text_row;
use crate::protocol::{encode, frame, split, Description, Kind, Report, FRAME_BYTES, HEADER_BYTES};

/// Tells where the rows of the running statement go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RowTarget {
    /// Nowhere: it has no columns yet, or they are another set of a statement whose first set is sent.
    Nowhere,
    /// Kept back until it is known that no later statement returns rows.
    Deferred,
    /// Sent: no later statement can give rows.
    Sent,
}

/// The frames of one job's result that are not all in the channel's queue yet.
pub struct ResultQueue {
    /// `None` if there is no reader any more.
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

/// Tells how far a delivery came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "what is blocked is to be delivered later"]
pub enum Delivery {
    /// Everything is in the queue, or the reader has gone.
    Complete,
    /// There is more, and no room.
    Blocked,
}

/// Returns whether the reader is to be woken for a frame. Rows can wait for the end, or for more of them.
fn is_urgent(frame: &[u8]) -> bool {
    !matches!(split(frame), Ok((Kind::Describe | Kind::Rows, _)))
}

impl ResultQueue {
    pub fn new(sender: Sender, channel: Channel) -> Self {
        ResultQueue {
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
        }
    }

    /// Sends nothing any more: nobody wants it.
    pub fn forget_reader(&mut self) {
        self.sender = None;
    }

    /// Ends sending. Returns the channel's sending end and the bytes that were sent; `None` if there is no reader any
    /// more.
    pub fn close(self) -> Option<(Sender, usize)> {
        Some((self.sender?, self.sent))
    }

    /// Begins a statement of the job.
    pub fn begin_statement(&mut self, is_last: bool) {
        self.row_target = RowTarget::Nowhere;
        self.is_last_statement = is_last;
    }

    /// Takes the columns of a set of rows.
    ///
    /// # Errors
    /// [`Error::Spill`] (58030)
    pub fn start(&mut self, description: &Description) -> Result<(), Error> {
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

    /// Takes a frame of rows.
    ///
    /// # Errors
    /// [`Error::Spill`] (58030)
    pub fn rows(&mut self, frame: Vec<u8>) -> Result<(), Error> {
        match (self.row_target, &mut self.deferred) {
            _ if frame.len() <= HEADER_BYTES => Ok(()),
            (RowTarget::Sent, _) => self.push(frame),
            (RowTarget::Deferred, Some(deferred)) => deferred.push(frame),
            _ => Ok(()),
        }
    }

    /// Takes a line of COPY without its end: a row.
    ///
    /// # Errors
    /// [`Error::Spill`] (58030)
    pub fn copy_line(&mut self, line: &[u8]) -> Result<(), Error> {
        text_row(line, &mut self.copied);
        if self.copied.len() >= FRAME_BYTES {
            self.flush_copied()?;
        }
        Ok(())
    }

    /// Makes a frame of the lines of COPY that are none yet.
    ///
    /// # Errors
    /// [`Error::Spill`] (58030)
    pub fn flush_copied(&mut self) -> Result<(), Error> {
        let copied = std::mem::replace(&mut self.copied, frame(Kind::Rows));
        self.rows(copied)
    }

    /// Puts the frame with the job's success behind what was sent.
    pub fn set_done(&mut self, outcome: Vec<u8>) {
        self.outcome = Some(outcome);
    }

    /// Puts the frame with the job's failure behind its notices; its rows are of no use to anybody.
    pub fn set_failed(&mut self, outcome: Vec<u8>) {
        self.deferred = None;
        self.is_failed = true;
        self.outcome = Some(outcome);
    }

    /// Delivers all that waits, frame by frame. Its third argument tells `send` that a frame is the last.
    pub fn deliver(&mut self, send: impl Fn(&mut Sender, &[u8], bool) -> Result<(), SendError>) -> Delivery {
        loop {
            let frame = match self.take() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Delivery::Complete,
                // A frame that was kept cannot be read back, and so the reader is told.
                Err(error) => {
                    self.overflow = OverflowQueue::new(session::work_mem());
                    self.deferred = None;
                    self.outcome = None;
                    encode(Kind::Error, &Report::from(error))
                }
            };
            let is_last = self.outcome.is_none();
            let Some(sender) = &mut self.sender else { return Delivery::Complete };
            if is_last {
                self.channel.set_sent();
            }
            match send(sender, &frame, is_last) {
                Ok(()) => self.sent += frame.len(),
                Err(SendError::Detached) => {
                    self.sender = None;
                    return Delivery::Complete;
                }
                Err(SendError::WouldBlock) => {
                    self.pending = Some(frame);
                    return Delivery::Blocked;
                }
            }
        }
    }

    /// Sends a frame behind those that wait, without waiting.
    ///
    /// # Errors
    /// [`Error::Spill`] (58030)
    pub fn push(&mut self, frame: Vec<u8>) -> Result<(), Error> {
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

    /// Takes the next frame in order.
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
