//! Identifiers of batches and jobs, and of what the server has: roles, databases, and its own epoch. The uuid of a job
//! is that of its batch, with its ordinal in the last four bytes.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use uuid::Uuid;

/// Bytes in which the uuids of a batch and of its jobs are the same.
const PREFIX_BYTES: usize = 12;

/// Identifier of a batch: its ordinal is zero.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, bytemuck::Pod, bytemuck::Zeroable,
)]
#[repr(transparent)]
pub struct BatchId([u8; 16]);

/// Identifier of a job: its ordinal is its number in the batch, from 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, bytemuck::Pod, bytemuck::Zeroable,
)]
#[repr(transparent)]
pub struct JobId([u8; 16]);

/// Identifier that a caller gives: of a batch, or of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AnyId([u8; 16]);

fn with_ordinal(mut uuid: [u8; 16], ordinal: u32) -> [u8; 16] {
    uuid[PREFIX_BYTES..].copy_from_slice(&ordinal.to_be_bytes());
    uuid
}

fn ordinal_of(uuid: &[u8; 16]) -> u32 {
    uuid.last_chunk().copied().map_or(0, u32::from_be_bytes)
}

fn text_of(uuid: [u8; 16], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{}", Uuid::from_bytes(uuid).hyphenated())
}

impl BatchId {
    /// Makes an identifier of version 8 (RFC 9562, section 5.8) of random bytes.
    pub fn of_random(bytes: [u8; 16]) -> Self {
        BatchId(with_ordinal(Uuid::new_v8(bytes).into_bytes(), 0))
    }

    /// Returns the identifier of one of its jobs.
    pub fn job(self, ordinal: u32) -> JobId {
        JobId(with_ordinal(self.0, ordinal))
    }

    pub fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl JobId {
    /// Takes the bytes for those of a job, which a file or a row names.
    pub fn of_bytes(bytes: [u8; 16]) -> Self {
        JobId(bytes)
    }

    pub fn batch(self) -> BatchId {
        BatchId(with_ordinal(self.0, 0))
    }

    pub fn ordinal(self) -> u32 {
        ordinal_of(&self.0)
    }

    pub fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl AnyId {
    pub fn of_bytes(bytes: [u8; 16]) -> Self {
        AnyId(bytes)
    }

    /// Returns the identifier of the batch, or of that which the job is of.
    pub fn batch(self) -> BatchId {
        BatchId(with_ordinal(self.0, 0))
    }

    /// Returns the identifier of the job, or `None` if it is a batch.
    pub fn job(self) -> Option<JobId> {
        (ordinal_of(&self.0) != 0).then_some(JobId(self.0))
    }

    /// Returns the ordinal of the job; 0 means a batch.
    pub fn ordinal(self) -> u32 {
        ordinal_of(&self.0)
    }

    pub fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl From<BatchId> for AnyId {
    fn from(id: BatchId) -> Self {
        AnyId(id.0)
    }
}

impl From<JobId> for AnyId {
    fn from(id: JobId) -> Self {
        AnyId(id.0)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        text_of(self.0, f)
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        text_of(self.0, f)
    }
}

impl fmt::Display for AnyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        text_of(self.0, f)
    }
}

/// Defines the identifier of an object that the server names by an oid. In files and messages it is the number.
macro_rules! oid_of {
    ($(#[$doc:meta])* $name:ident, $(#[$none_doc:meta])*) => {
        $(#[$doc])*
        #[derive(
            Debug,
            Clone,
            Copy,
            Default,
            PartialEq,
            Eq,
            PartialOrd,
            Ord,
            Hash,
            Serialize,
            Deserialize,
            bytemuck::Pod,
            bytemuck::Zeroable,
        )]
        #[serde(transparent)]
        #[repr(transparent)]
        pub struct $name(u32);

        impl $name {
            $(#[$none_doc])*
            pub const NONE: Self = $name(0);

            /// Takes an oid of the server for that of such an object.
            pub const fn of_oid(oid: u32) -> Self {
                $name(oid)
            }

            pub const fn oid(self) -> u32 {
                self.0
            }
        }

        /// Writes the oid.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        /// Reads an oid.
        impl FromStr for $name {
            type Err = ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map($name)
            }
        }
    };
}

oid_of! {
    /// Oid of a role.
    RoleId,
    /// No role: as the login role of a pool, that of workers that write the log and run no jobs.
}

oid_of! {
    /// Oid of a database.
    DatabaseId,
    /// No database: as in a setting of a role, which holds in all of them.
}

/// Epoch of a server: a random number, which is another one after each restart and each crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(i64);

impl Epoch {
    /// Epoch of no server.
    pub const NONE: Self = Epoch(0);

    /// Takes a number of the log for an epoch.
    pub const fn of_number(number: i64) -> Self {
        Epoch(number)
    }

    /// Returns the number that the log has.
    pub const fn number(self) -> i64 {
        self.0
    }

    /// Takes a word for an epoch, as [`Epoch::word`] returns it.
    pub const fn of_word(word: u64) -> Self {
        Epoch(word.cast_signed())
    }

    /// Returns its bits, which are in the names of files, and in the request for a worker.
    pub const fn word(self) -> u64 {
        self.0.cast_unsigned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oids_are_encoded_as_numbers() {
        for number in [0, 5, 16384, u32::MAX] {
            let bytes = postcard::to_allocvec(&number);
            assert_eq!(postcard::to_allocvec(&RoleId::of_oid(number)), bytes);
            let read = bytes.and_then(|bytes| postcard::from_bytes(&bytes));
            assert_eq!(read, Ok(DatabaseId::of_oid(number)));
        }
    }

    #[test]
    fn epochs_are_encoded_as_numbers() {
        for number in [1, -1, i64::MIN, i64::MAX] {
            let epoch = Epoch::of_number(number);
            assert_eq!(postcard::to_allocvec(&epoch), postcard::to_allocvec(&number));
            assert_eq!((Epoch::of_word(epoch.word()), epoch.number()), (epoch, number));
        }
        assert_eq!(Epoch::of_number(-1).word(), u64::MAX);
    }

    #[test]
    fn oids_are_written_and_read_as_numbers() {
        assert_eq!(RoleId::of_oid(16384).to_string(), "16384");
        assert_eq!("16384".parse(), Ok(DatabaseId::of_oid(16384)));
        assert!("-1".parse::<RoleId>().is_err());
    }
}
