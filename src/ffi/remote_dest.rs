//! The client that a worker pretends to have.
//!
//! Notices, notifications and COPY data reach a session's client through libpq's methods (libpq.h,
//! `PQcommMethods`). A worker puts its own in their place, as pqmq.c does for parallel workers. Reports are not read
//! from here: [`report::watch`](crate::ffi::report::watch) has them complete and in the database's encoding.

use crate::compat::wire::{set_comm_methods, CommMethods};
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::{c_char, c_int};

/// A message, beside reports, that the server would send to a client.
pub enum Message<'a> {
    /// COPY TO STDOUT begins; true = in binary format.
    CopyTo { binary: bool },
    /// One row of COPY TO STDOUT.
    Line(&'a [u8]),
    /// COPY FROM STDIN wants data.
    CopyFrom,
}

thread_local! {
    static ON_MESSAGE: Cell<Option<fn(Message)>> = const { Cell::new(None) };
}

/// Sends to `on_message` from now on what a session would send to its client.
pub fn send_messages_to(on_message: fn(Message)) {
    ON_MESSAGE.set(Some(on_message));
}

/// Makes this process send to `on_message` what a session would send to its client. Called once, in a worker.
pub fn install(on_message: fn(Message)) {
    send_messages_to(on_message);
    // SAFETY: a background worker has no client.
    unsafe { set_comm_methods(&METHODS) };
}

/// Lets texts leave in the database's encoding: the session that reads them has the same. What the setting
/// `client_encoding` shows is not changed.
pub fn speak_database_encoding() {
    // SAFETY: from an encoding to itself there is nothing to look up.
    unsafe { pg_sys::SetClientEncoding(pg_sys::GetDatabaseEncoding()) };
}

/// Takes each message that the server sends.
///
/// # Safety
/// `bytes` has `length` bytes.
unsafe fn put(kind: c_char, bytes: *const c_char, length: usize) {
    let Some(on_message) = ON_MESSAGE.get() else { return };
    // An empty message may have a null pointer.
    let start = if length == 0 { std::ptr::dangling() } else { bytes.cast::<u8>() };
    // SAFETY: by contract.
    let bytes = unsafe { std::slice::from_raw_parts(start, length) };
    match kind as u8 {
        b'H' => on_message(Message::CopyTo { binary: bytes.first() == Some(&1) }),
        b'd' => on_message(Message::Line(bytes)),
        b'G' => on_message(Message::CopyFrom),
        _ => {}
    }
}

unsafe extern "C-unwind" fn putmessage(kind: c_char, bytes: *const c_char, length: usize) -> c_int {
    // SAFETY: the server passes a whole message; an error inside goes back to it as an error.
    unsafe { pg_sys::panic::pgrx_extern_c_guard(move || put(kind, bytes, length)) };
    0
}

unsafe extern "C-unwind" fn putmessage_noblock(kind: c_char, bytes: *const c_char, length: usize) {
    // SAFETY: as above.
    unsafe { pg_sys::panic::pgrx_extern_c_guard(move || put(kind, bytes, length)) };
}

static METHODS: CommMethods = CommMethods::new(putmessage, putmessage_noblock);
