//! The result: its columns, its rows, its end.

use super::Malformed;
use serde::{Deserialize, Serialize};

/// `MAXIMUM_ALIGNOF` of every platform that we build for: where a tuple may begin.
pub const ALIGNMENT: usize = 8;

/// Rounds a length up to [`ALIGNMENT`].
pub const fn aligned(length: usize) -> usize {
    length.next_multiple_of(ALIGNMENT)
}

/// Tells how the values of a column travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ColumnEncoding {
    /// The datum that the value is.
    Binary,
    /// Text, because the type has no meaning outside of the worker (anonymous records, `void`, other pseudo-types).
    Text,
    /// The datum, and text in a second tuple of the row: the row type may be gone, or another one, when the value is
    /// read.
    Both,
}

/// A column of the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    pub name: Vec<u8>,
    /// Type: oid.
    pub type_oid: u32,
    pub typmod: i32,
    pub wire: ColumnEncoding,
    /// Fingerprint of what the row types in it are made of; 0 if there are none.
    pub fingerprint: u64,
}

/// The columns of the result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    pub columns: Vec<Column>,
}

impl Description {
    /// Indexes of the columns that travel a second time as text, in the order of the row's second tuple.
    pub fn text_copies(&self) -> impl Iterator<Item = usize> + '_ {
        let column = |(index, column): (usize, &Column)| (column.wire == ColumnEncoding::Both).then_some(index);
        self.columns.iter().enumerate().filter_map(column)
    }
}

/// The end of a job that succeeded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Command tags of its statements, in order.
    pub tags: Vec<Vec<u8>>,
}

/// Walks over the minimal tuples of a [`Kind::Rows`](super::Kind::Rows) payload. Each begins with its length.
pub struct RowsIter<'a> {
    rest: &'a [u8],
}

impl<'a> RowsIter<'a> {
    pub fn new(payload: &'a [u8]) -> Self {
        RowsIter { rest: payload }
    }
}

impl<'a> Iterator for RowsIter<'a> {
    type Item = Result<&'a [u8], Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let row = self.rest.first_chunk().map(|length| u32::from_ne_bytes(*length) as usize).and_then(|length| {
            let row = self.rest.get(..length)?;
            self.rest = self.rest.get(aligned(length)..)?;
            (length > 4).then_some(row)
        });
        if row.is_none() {
            self.rest = &[];
        }
        Some(row.ok_or(Malformed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(lengths: &[u32]) -> Vec<u8> {
        let mut payload = Vec::new();
        for (fill, length) in (1..).zip(lengths) {
            let start = payload.len();
            payload.extend_from_slice(&length.to_ne_bytes());
            payload.resize(start + *length as usize, fill);
            payload.resize(start + aligned(*length as usize), 0);
        }
        payload
    }

    #[test]
    fn rows_come_back_one_by_one() {
        let payload = rows(&[16, 17, 5]);
        let lengths: Vec<_> = RowsIter::new(&payload).map(|row| row.map(<[u8]>::len)).collect();
        assert_eq!(lengths, [Ok(16), Ok(17), Ok(5)]);
    }

    #[test]
    fn a_cut_payload_is_refused_and_ends() {
        let payload = rows(&[16, 17]);
        let cut: Vec<_> = RowsIter::new(&payload[..payload.len() - 8]).collect();
        assert_eq!(cut.len(), 2);
        assert_eq!(cut[1], Err(Malformed));
        let zero = [0_u8; 8];
        assert_eq!(RowsIter::new(&zero).collect::<Vec<_>>(), [Err(Malformed)]);
    }
}
