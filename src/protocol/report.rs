//! The contents of the server's `ErrorData` as plain data.

use serde::{Deserialize, Serialize};

/// SQLSTATE XX000, packed as [`sqlstate`](super::sqlstate) packs it.
pub const ERRCODE_INTERNAL_ERROR: i32 = super::sqlstate(b"XX000");

/// An error, warning or notice with every field that a client or a handler can see (elog.h, `ErrorData`).
///
/// Texts are in the database's encoding. `level` is the server's own number, so it has a meaning within one server
/// only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// `elevel`
    pub level: i32,
    /// `sqlerrcode`, packed
    pub sqlstate: i32,
    pub message: Vec<u8>,
    pub detail: Option<Vec<u8>>,
    /// Text that the server log shows in place of `detail`.
    pub detail_log: Option<Vec<u8>>,
    pub hint: Option<Vec<u8>>,
    pub context: Option<Vec<u8>>,
    pub schema: Option<Vec<u8>>,
    pub table: Option<Vec<u8>>,
    pub column: Option<Vec<u8>>,
    pub datatype: Option<Vec<u8>>,
    pub constraint: Option<Vec<u8>>,
    /// Position in the text that the client sent, in characters from 1; 0 if there is none.
    pub position: i32,
    /// Position in `internal_query`, in characters from 1; 0 if there is none.
    pub internal_position: i32,
    pub internal_query: Option<Vec<u8>>,
    pub file: Option<Vec<u8>>,
    pub line: i32,
    pub function: Option<Vec<u8>>,
}

impl Report {
    /// Makes the position point into the text of the job: to the reader, whose own text is another one, the job's
    /// text is an internal query. A position inside a query that the job ran itself is the better one and stays.
    pub fn locate_in(mut self, sql: &[u8]) -> Report {
        if self.position > 0 && self.internal_query.is_none() {
            self.internal_position = self.position;
            self.internal_query = Some(sql.to_vec());
        }
        self.position = 0;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_moves_to_the_jobs_text() {
        let report = Report { position: 8, ..Report::default() }.locate_in(b"select x");
        assert_eq!((report.position, report.internal_position), (0, 8));
        assert_eq!(report.internal_query.as_deref(), Some(&b"select x"[..]));
    }

    #[test]
    fn inner_position_stays() {
        let inner =
            Report { position: 8, internal_position: 3, internal_query: Some(b"inner".to_vec()), ..Report::default() };
        let report = inner.locate_in(b"select x");
        assert_eq!((report.position, report.internal_position), (0, 3));
        assert_eq!(report.internal_query.as_deref(), Some(&b"inner"[..]));
    }
}
