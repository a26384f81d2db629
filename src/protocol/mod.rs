//! Messages between a session and a worker, and how they are written down.
//!
//! Pure Rust: no server, no raw memory. Both processes are children of one postmaster, so numbers are native and texts
//! are bytes in the database's encoding.
//!
//! A worker sends *frames*. The first eight bytes of a frame name its kind ([`Kind`]), so that what follows is
//! aligned as the server aligns tuples. A session sends nothing: the job is in the segment before the worker starts.

mod frame;
mod json;
mod outcome;
mod report;
mod request;
mod rows;

pub use frame::{frame, split, Kind, FRAME_BYTES, HEADER_BYTES};
pub use json::json_string;
pub use outcome::Outcome;
pub use report::{Report, ERRCODE_INTERNAL_ERROR};
pub use request::{sqlstate, sqlstate_text, Request, Setting, MAX_NESTING, MAX_QUEUE_BYTES, MAX_SQL_BYTES};
pub use rows::{aligned, Column, ColumnEncoding, Description, Done, RowsIter, ALIGNMENT};

use serde::{de::DeserializeOwned, Serialize};

/// A frame or a request that cannot be understood. Only a fault of the extension itself can cause it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed message between a session and a background job")]
pub struct Malformed;

/// Writes `value` after the frame header of `kind`.
pub fn encode<T: Serialize>(kind: Kind, value: &T) -> Vec<u8> {
    append(value, frame(kind))
}

/// Writes `value` without a frame.
pub fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    append(value, Vec::new())
}

/// Writes `value` behind `bytes`. What cannot be is a panic, which is an internal error (XX000) in a server: only types
/// that postcard has no form for cannot be written, and none of ours is one.
fn append<T: Serialize>(value: &T, bytes: Vec<u8>) -> Vec<u8> {
    match postcard::to_extend(value, bytes) {
        Ok(bytes) => bytes,
        Err(error) => unreachable!("could not encode {}: {error}", std::any::type_name::<T>()),
    }
}

/// Reads what [`to_bytes`] wrote, or the payload of what [`encode`] wrote.
///
/// # Errors
/// [`Malformed`] if the bytes are not a `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    postcard::from_bytes(bytes).map_err(|_| Malformed)
}
