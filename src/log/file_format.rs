//! Format of the extension's files in the data directory: a header, then the content.
//!
//! The header is 16 bytes: the magic `pgbm`, the kind of the file, the version of the format, the length of the content
//! in bytes. Numbers are little-endian; the content is encoded as messages are. Version 0.1.0 wrote the content alone.

use crate::log::file_name::FileName;
use crate::protocol::{decode, to_bytes};
use serde::{de::DeserializeOwned, Serialize};
use std::io;

const MAGIC: &[u8; 4] = b"pgbm";

/// Version of the format that is written. When the content of a kind changes, the next one; the others are still read.
const VERSION: u32 = 1;

const HEADER_BYTES: usize = 16;

/// Content of a kind of file.
pub trait FileContent: DeserializeOwned {
    /// Name of the kind in the header.
    const KIND: &'static [u8; 4];
    /// End of the names of such files.
    const SUFFIX: &'static str;

    /// Returns whether a file of this name has this content. Bytes of any kind may look like a content without header.
    fn is_named(&self, name: &FileName) -> bool;

    /// Returns the content of an empty file, if that is a content.
    fn of_empty(_name: &FileName) -> Option<Self> {
        None
    }
}

/// Reason why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("read {found} of {expected} bytes")]
    Short { found: usize, expected: usize },
    #[error("format version {0} is not known")]
    Version(u32),
    #[error("invalid content")]
    Invalid,
}

/// Returns the bytes of a file with this content.
pub fn encode<T: FileContent + Serialize>(content: &T) -> Vec<u8> {
    let content = to_bytes(content);
    // What a call is given, and so a content, is shorter than 2 GB.
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    [MAGIC.as_slice(), T::KIND, &VERSION.to_le_bytes(), &length.to_le_bytes(), &content].concat()
}

/// Returns the content of a file with these bytes.
///
/// # Errors
/// [`Unreadable`]: the bytes are not those of a file of the kind and the name.
pub fn parse<T: FileContent>(name: &FileName, bytes: &[u8]) -> Result<T, Unreadable> {
    if let (true, Some(content)) = (bytes.is_empty(), T::of_empty(name)) {
        return Ok(content);
    }
    let content = match bytes.split_at_checked(HEADER_BYTES) {
        Some((header, content)) if header.starts_with(MAGIC) => of_header::<T>(header, content)?,
        _ => bytes,
    };
    let content: T = decode(content).map_err(|_| Unreadable::Invalid)?;
    if content.is_named(name) {
        Ok(content)
    } else {
        Err(Unreadable::Invalid)
    }
}

/// Returns the content that the header tells of. An attempt file may have bytes of a longer content behind it.
fn of_header<'a, T: FileContent>(header: &[u8], content: &'a [u8]) -> Result<&'a [u8], Unreadable> {
    let number = |from: usize| {
        header.get(from..).and_then(<[u8]>::first_chunk).copied().map(u32::from_le_bytes).ok_or(Unreadable::Invalid)
    };
    if header.get(4..8) != Some(T::KIND) {
        return Err(Unreadable::Invalid);
    }
    let (version, length) = (number(8)?, number(12)? as usize);
    if version != VERSION {
        return Err(Unreadable::Version(version));
    }
    let short = || Unreadable::Short { found: HEADER_BYTES + content.len(), expected: HEADER_BYTES + length };
    content.get(..length).ok_or_else(short)
}
