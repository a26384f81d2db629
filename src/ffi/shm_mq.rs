//! Message queues in shared memory (shm_mq.c): one sender, one receiver.

use crate::compat::wire;
use crate::ffi::dsm::Segment;
use crate::ffi::memory::MemoryContextGuard;
use pg_sys::shm_mq_result::{SHM_MQ_SUCCESS, SHM_MQ_WOULD_BLOCK};
use pgrx::pg_sys;

/// Tells why a message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendError {
    /// The queue is full; the same message must be sent again.
    WouldBlock,
    /// The receiver is gone.
    Detached,
}

/// Tells why no message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveError {
    /// No message is there yet.
    WouldBlock,
    /// The sender is gone and everything that it sent has been received.
    Detached,
}

/// Smallest queue in bytes.
pub fn minimum_size() -> usize {
    // SAFETY: a constant of the server.
    unsafe { pg_sys::shm_mq_minimum_size }
}

/// The end that sends.
pub struct Sender {
    queue: *mut pg_sys::shm_mq,
    segment: *mut pg_sys::dsm_segment,
    /// Null = not attached yet.
    handle: *mut pg_sys::shm_mq_handle,
}

impl Sender {
    /// Makes the sender of the queue at this offset. It attaches with the first message, so that the receiver is woken
    /// once for both; until then the receiver does not learn from the queue that this process has ended.
    pub fn new(segment: &Segment, offset: usize) -> Self {
        Sender { queue: segment.address(offset).cast(), segment: segment.as_raw(), handle: std::ptr::null_mut() }
    }

    /// Attaches, if that is still to be done.
    pub fn attach(&mut self) -> *mut pg_sys::shm_mq_handle {
        if self.handle.is_null() {
            let _context = MemoryContextGuard::to_process_lifetime();
            // SAFETY: a queue was created there before this process heard of it, which stays mapped as long as this
            // value is used; the handle lives as long as the process.
            unsafe {
                pg_sys::shm_mq_set_sender(self.queue, pg_sys::MyProc);
                self.handle = pg_sys::shm_mq_attach(self.queue, self.segment, std::ptr::null_mut());
            }
        }
        self.handle
    }

    /// Sends without waiting. `flush`: the receiver is to know at once; else when there is a good deal, or with the
    /// next message that is flushed.
    ///
    /// # Errors
    /// [`SendError::WouldBlock`]: part of the message may be on its way, so the next one must be the same.
    pub fn try_send(&mut self, message: &[u8], flush: bool) -> Result<(), SendError> {
        self.send_with(message, true, flush)
    }

    /// Sends, and waits for room as long as there is a receiver. Interrupts are served meanwhile. `flush` as in
    /// [`try_send`](Self::try_send).
    ///
    /// # Errors
    /// [`SendError::Detached`]
    pub fn send(&mut self, message: &[u8], flush: bool) -> Result<(), SendError> {
        self.send_with(message, false, flush)
    }

    /// Returns whether the receiver knows that there is a sender.
    pub fn is_attached(&self) -> bool {
        !self.handle.is_null()
    }

    /// Frees the handle; the receiver learns of it, if it is still there.
    pub fn close(mut self) {
        // SAFETY: attached; the handle is not used again.
        unsafe { pg_sys::shm_mq_detach(self.attach()) };
    }

    fn send_with(&mut self, message: &[u8], nowait: bool, flush: bool) -> Result<(), SendError> {
        // The server grows its buffers in the current context.
        let _context = MemoryContextGuard::to_process_lifetime();
        // SAFETY: attached as sender; `worker::result_queue` repeats a message that did not fit.
        match unsafe { wire::shm_mq_send(self.attach(), message, nowait, flush) } {
            SHM_MQ_SUCCESS => Ok(()),
            SHM_MQ_WOULD_BLOCK => Err(SendError::WouldBlock),
            _ => Err(SendError::Detached),
        }
    }
}

/// The end that receives.
pub struct Receiver {
    handle: *mut pg_sys::shm_mq_handle,
    last: (*const u8, usize),
}

impl Receiver {
    /// Creates a queue of `size` bytes at this offset, with this process as its receiver.
    pub fn create(segment: &Segment, offset: usize, size: usize) -> Self {
        let _context = MemoryContextGuard::to_process_lifetime();
        // SAFETY: the area is inside the segment and aligned, and nobody else knows it yet.
        unsafe {
            let queue = pg_sys::shm_mq_create(segment.address(offset).cast(), size);
            pg_sys::shm_mq_set_receiver(queue, pg_sys::MyProc);
            let handle = pg_sys::shm_mq_attach(queue, segment.as_raw(), std::ptr::null_mut());
            Receiver { handle, last: (std::ptr::dangling(), 0) }
        }
    }

    /// Receives without waiting. The bytes are valid until the next call.
    ///
    /// # Errors
    /// [`ReceiveError::Detached`] also when no sender has attached and `is_lost`: none will.
    pub fn try_receive(&mut self, is_lost: impl Fn() -> bool) -> Result<&[u8], ReceiveError> {
        let _context = MemoryContextGuard::to_process_lifetime();
        self.last = (std::ptr::dangling(), 0);
        let mut length = 0;
        let mut message = std::ptr::null_mut();
        // SAFETY: attached as receiver; the out parameters are ours.
        match unsafe { pg_sys::shm_mq_receive(self.handle, &mut length, &mut message, true) } {
            SHM_MQ_SUCCESS => {
                self.last = (if length == 0 { std::ptr::dangling() } else { message.cast() }, length);
                Ok(self.last())
            }
            SHM_MQ_WOULD_BLOCK if !self.has_sender() && is_lost() && !self.has_sender() => Err(ReceiveError::Detached),
            SHM_MQ_WOULD_BLOCK => Err(ReceiveError::WouldBlock),
            _ => Err(ReceiveError::Detached),
        }
    }

    /// Returns the message that was received last.
    pub fn last(&self) -> &[u8] {
        // SAFETY: the server said where the message lies; it stays there until the next receive, which forgets it.
        unsafe { std::slice::from_raw_parts(self.last.0, self.last.1) }
    }

    fn has_sender(&self) -> bool {
        // SAFETY: attached; the queue is mapped as long as the handle.
        unsafe { !pg_sys::shm_mq_get_sender(pg_sys::shm_mq_get_queue(self.handle)).is_null() }
    }

    /// Tells the sender that there is no receiver any more, and frees the handle. To be followed by closing the
    /// segment.
    pub fn close(self) {
        // SAFETY: attached; the handle is not used again.
        unsafe { pg_sys::shm_mq_detach(self.handle) };
    }
}
