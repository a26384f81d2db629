//! Splits a text into its queries, as psql and the server do.
//!
//! Pure Rust: whether a piece is a whole query is asked of the caller.

mod scanner;
mod splitter;

pub use splitter::{split as split_text, ParseOutcome, SplitError, MAX_PIECES};
