//! Frames: the unit that a worker sends.

use super::Malformed;

/// Length of a frame's header in bytes; a multiple of the server's `MAXIMUM_ALIGNOF`, so that the tuples of a
/// [`Kind::Rows`] frame stay aligned.
pub const HEADER_BYTES: usize = 8;

/// Bytes of rows that make a frame: enough that the cost of sending one is small beside that of making it.
pub const FRAME_BYTES: usize = 16 * 1024;

/// Tells what a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The columns of the result: a [`Description`](super::Description). Comes once, before any rows.
    Describe,
    /// Rows as minimal tuples, one after the other, each padded to [`ALIGNMENT`](super::ALIGNMENT).
    Rows,
    /// A notice or warning: a [`Report`](super::Report).
    Notice,
    /// The job failed: a [`Report`](super::Report). The last frame of a job.
    Error,
    /// The job succeeded: a [`Done`](super::Done). The last frame of a job.
    Done,
}

impl Kind {
    const fn byte(self) -> u8 {
        match self {
            Kind::Describe => b'T',
            Kind::Rows => b'D',
            Kind::Notice => b'N',
            Kind::Error => b'E',
            Kind::Done => b'C',
        }
    }
}

/// Starts a frame.
pub fn frame(kind: Kind) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    if let Some(first) = bytes.first_mut() {
        *first = kind.byte();
    }
    bytes
}

/// Takes a frame apart into its kind and its payload.
///
/// # Errors
/// [`Malformed`] if it is shorter than a header or of no known kind.
pub fn split(frame: &[u8]) -> Result<(Kind, &[u8]), Malformed> {
    let (header, payload) = frame.split_at_checked(HEADER_BYTES).ok_or(Malformed)?;
    let kind = [Kind::Describe, Kind::Rows, Kind::Notice, Kind::Error, Kind::Done]
        .into_iter()
        .find(|kind| header.first() == Some(&kind.byte()))
        .ok_or(Malformed)?;
    Ok((kind, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_back() {
        for kind in [Kind::Describe, Kind::Rows, Kind::Notice, Kind::Error, Kind::Done] {
            let mut bytes = frame(kind);
            bytes.extend_from_slice(b"payload");
            assert_eq!(split(&bytes), Ok((kind, &b"payload"[..])));
        }
    }

    #[test]
    fn short_and_unknown_frames_are_refused() {
        assert_eq!(split(b"T"), Err(Malformed));
        assert_eq!(split(b"\0\0\0\0\0\0\0\0"), Err(Malformed));
    }
}
