//! Splits a text into queries with the server's parser.

use crate::error::Error;
use crate::ffi::parser::Parser;
use crate::ffi::{parser, session};
use crate::protocol::Report;
use crate::sql_split::{split_text, SplitError};
use std::ops::Range;

/// Most of a text that an error carries along, in bytes.
const MAX_SHOWN_BYTES: usize = 32 * 1024;
/// Most of a query that the detail of an error has, in bytes.
const MAX_HEAD_BYTES: usize = 200;

/// Splits a text at a delimiter into as many queries as possible; with an empty one the text is one query.
///
/// # Errors
/// [`Error::EmptySql`] (22023), [`Error::TooManyQueries`] (54000), [`Error::NoCut`] (42601).
pub fn cut(text: &[u8], delimiter: &[u8]) -> Result<Vec<Range<usize>>, Error> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::EmptySql);
    }
    if delimiter.is_empty() {
        return Ok(std::iter::once(0..text.len()).collect());
    }
    let parser = Parser::new();
    match split_text(text, delimiter, parser::standard_strings(), &mut |piece| parser.parse(piece)) {
        Ok(pieces) if pieces.is_empty() => Err(Error::EmptySql),
        Ok(pieces) => Ok(pieces),
        Err(SplitError::TooMany) => Err(Error::TooManyQueries),
        Err(SplitError::Piece { piece, number, position, report }) => {
            Err(Error::NoCut(Box::new(locate(text, piece, number, position, report))))
        }
    }
}

/// Returns the parser's report, with its position in the text.
fn locate(text: &[u8], piece: Range<usize>, number: usize, position: usize, report: Report) -> Report {
    let query = text.get(piece.clone()).unwrap_or_default();
    let character = |from: usize| 1 + session::characters(text.get(from..position).unwrap_or_default());
    let head = session::clip(query, MAX_HEAD_BYTES);
    let dots = if head.len() < query.len() { "..." } else { "" };
    let location = format!("At character {} of the text, in query {number}: ", character(0));
    let shown = match () {
        () if text.len() <= MAX_SHOWN_BYTES => Some((text, 0)),
        () if query.len() <= MAX_SHOWN_BYTES => Some((query, piece.start)),
        () => None,
    };
    Report {
        detail: Some([location.as_bytes(), head, dots.as_bytes()].concat()),
        hint: Some(hint(text).to_vec()),
        position: 0,
        internal_position: shown.map_or(0, |(_, from)| character(from) as i32),
        internal_query: shown.map(|(shown, _)| shown.to_vec()),
        ..report
    }
}

/// Returns what may help: a literal without a cast is taken for a text.
fn hint(text: &[u8]) -> &'static [u8] {
    match text.trim_ascii_start().first() {
        Some(b'[' | b'{') => b"Cast JSON to jsonb, and an array to text[].",
        _ => b"Pass the queries as an array if the delimiter also stands within them.",
    }
}
