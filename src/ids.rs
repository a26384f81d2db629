//! Identifiers of batches and jobs. The uuid of a job is that of its batch, with its ordinal in the last four bytes.

use serde::{Deserialize, Serialize};
use std::fmt;
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
