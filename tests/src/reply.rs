//! Answers of a server, whole: every result set, command tag, COPY line and error field.

use std::collections::BTreeMap;
use std::fmt;

/// Text by which [`Statement::text_rows`] shows a null.
pub const NULL: &str = "∅";

/// The answer to one simple query message.
#[derive(Debug, Default, Clone)]
pub struct Reply {
    /// One for each statement that completed, and the one that an error interrupted if it had begun to give rows.
    pub statements: Vec<Statement>,
    pub error: Option<ServerError>,
    /// The server ended the connection.
    pub closed: bool,
}

impl Reply {
    /// The last result set.
    pub fn last_rows(&self) -> Option<&Statement> {
        self.statements.iter().rev().find(|statement| statement.columns.is_some())
    }

    /// The command tags, in order.
    pub fn tags(&self) -> Vec<String> {
        self.statements.iter().filter_map(|statement| statement.tag.clone()).collect()
    }
}

#[derive(Debug, Default, Clone)]
pub struct Statement {
    /// None for a statement without a result set.
    pub columns: Option<Vec<Column>>,
    pub rows: Vec<Vec<Option<Vec<u8>>>>,
    /// None when an error came first, and for an empty query.
    pub tag: Option<String>,
    /// Output of COPY TO STDOUT.
    pub copied: Vec<u8>,
}

impl Statement {
    /// Rows in the form `a|b|∅`.
    ///
    /// # Panics
    /// Panics when a value is not UTF-8: a test of encodings reads `rows`.
    pub fn text_rows(&self) -> Vec<String> {
        let cell = |cell: &Option<Vec<u8>>| match cell {
            Some(bytes) => String::from_utf8(bytes.clone()).expect("a value in UTF-8"),
            None => NULL.to_owned(),
        };
        self.rows.iter().map(|row| row.iter().map(cell).collect::<Vec<_>>().join("|")).collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub type_oid: u32,
    pub type_modifier: i32,
}

/// An error or a notice, by the field letters of the protocol.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ServerError {
    pub fields: BTreeMap<char, Vec<u8>>,
}

impl ServerError {
    pub fn field(&self, letter: char) -> Option<String> {
        self.fields.get(&letter).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    fn text(&self, letter: char) -> String {
        self.field(letter).unwrap_or_default()
    }

    /// Returns the severity, not translated: ERROR, FATAL, NOTICE, ...
    pub fn severity(&self) -> String {
        self.text('V')
    }

    pub fn sqlstate(&self) -> String {
        self.text('C')
    }

    pub fn message(&self) -> String {
        self.text('M')
    }

    pub fn detail(&self) -> Option<String> {
        self.field('D')
    }

    pub fn hint(&self) -> Option<String> {
        self.field('H')
    }

    pub fn context(&self) -> Option<String> {
        self.field('W')
    }

    /// The place in the text that the client sent, in characters from 1.
    pub fn position(&self) -> Option<String> {
        self.field('P')
    }

    /// The text that `internal_position` points into.
    pub fn internal_query(&self) -> Option<String> {
        self.field('q')
    }

    pub fn internal_position(&self) -> Option<String> {
        self.field('p')
    }

    pub fn constraint(&self) -> Option<String> {
        self.field('n')
    }

    /// SQLSTATE and message: what most tests check.
    pub fn brief(&self) -> (String, String) {
        (self.sqlstate(), self.message())
    }
}

impl fmt::Debug for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self)
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity(), self.sqlstate(), self.message())?;
        let named = [
            ('D', "detail"),
            ('H', "hint"),
            ('W', "context"),
            ('P', "position"),
            ('p', "internal position"),
            ('q', "internal query"),
            ('s', "schema"),
            ('t', "table"),
            ('c', "column"),
            ('d', "data type"),
            ('n', "constraint"),
        ];
        for (letter, name) in named {
            if let Some(value) = self.field(letter) {
                write!(f, "\n  {name}: {value}")?;
            }
        }
        Ok(())
    }
}
