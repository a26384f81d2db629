//! The tokens of a SQL text, as far as cutting it needs them (scan.l): what is quoted, what is a comment, and where a
//! delimiter stands between tokens.

use std::ops::Range;

/// Tells what a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A keyword or an identifier without quotes.
    Word,
    /// A string or a quoted identifier.
    Quoted,
    Number,
    Semicolon,
    /// The delimiter, outside of all parentheses and brackets.
    Delimiter,
    Other,
}

/// A token that is neither blank nor a comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    pub range: Range<usize>,
}

impl Token {
    /// Returns its bytes in the text that it is from.
    pub fn of<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        text.get(self.range.clone()).unwrap_or_default()
    }
}

/// Returns whether this byte is blank between tokens.
pub fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn continues_word(byte: u8) -> bool {
    starts_word(byte) || byte.is_ascii_digit() || byte == b'$'
}

/// A string of characters that ends a text's pieces.
#[derive(Clone, Copy)]
pub struct Delimiter<'a> {
    bytes: &'a [u8],
    /// The delimiter begins as a word may go on, so it is not looked for within words.
    starts_in_word: bool,
    ends_in_word: bool,
}

impl<'a> Delimiter<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        // For the server every character beyond ASCII is one of a word; nobody who cuts at a sign such as "§" means
        // that.
        let text = std::str::from_utf8(bytes).ok();
        let character_in_word = |character: Option<char>, byte: Option<&u8>| match character {
            Some(character) if !character.is_ascii() => character.is_alphanumeric(),
            _ => byte.is_some_and(|byte| continues_word(*byte)),
        };
        Delimiter {
            bytes,
            starts_in_word: character_in_word(text.and_then(|text| text.chars().next()), bytes.first()),
            ends_in_word: bytes.last() != Some(&b'$')
                && character_in_word(text.and_then(|text| text.chars().next_back()), bytes.last()),
        }
    }

    /// Returns the number of its bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns whether the delimiter is nothing but blanks.
    pub fn is_blank(&self) -> bool {
        self.bytes.iter().all(|byte| is_blank(*byte))
    }

    /// Returns whether the delimiter ends a statement for the server, too.
    pub fn is_semicolon(&self) -> bool {
        self.bytes.contains(&b';') && self.bytes.iter().all(|byte| is_blank(*byte) || *byte == b';')
    }

    fn is_at(&self, rest: &[u8]) -> bool {
        !self.bytes.is_empty()
            && rest
                .strip_prefix(self.bytes)
                .is_some_and(|after| !(self.ends_in_word && after.first().is_some_and(|byte| continues_word(*byte))))
    }
}

/// Reads a text token by token.
pub struct Scanner<'a> {
    text: &'a [u8],
    delimiter: Delimiter<'a>,
    /// `standard_conforming_strings`
    standard_strings: bool,
    position: usize,
    depth: usize,
    /// The token before was a string, with backslash escapes or without: one that follows on another line continues it.
    string: Option<bool>,
    newline: bool,
    /// Begin of the comment that does not end.
    open_comment: Option<usize>,
}

/// Tells what begins at a place, and how many bytes show what it is.
enum Opener {
    Blank,
    LineComment,
    BlockComment,
    String { escapes: bool, bytes: usize },
    Identifier { bytes: usize },
    Dollar { bytes: usize },
    Word { bytes: usize },
    Number { bytes: usize },
    Sign(u8),
}

impl Opener {
    fn bytes(&self) -> usize {
        match self {
            Opener::Blank | Opener::Sign(_) => 1,
            Opener::LineComment | Opener::BlockComment => 2,
            Opener::String { bytes, .. }
            | Opener::Identifier { bytes }
            | Opener::Dollar { bytes }
            | Opener::Word { bytes }
            | Opener::Number { bytes } => *bytes,
        }
    }
}

impl<'a> Scanner<'a> {
    pub fn new(text: &'a [u8], delimiter: Delimiter<'a>, standard_strings: bool) -> Self {
        Scanner {
            text,
            delimiter,
            standard_strings,
            position: 0,
            depth: 0,
            string: None,
            newline: false,
            open_comment: None,
        }
    }

    /// Returns where a comment begins that does not end, once it has been read.
    pub fn open_comment(&self) -> Option<usize> {
        self.open_comment
    }

    fn rest(&self) -> &'a [u8] {
        self.text.get(self.position..).unwrap_or_default()
    }

    fn opener(&self) -> Option<Opener> {
        let rest = self.rest();
        let run = |belongs: fn(u8) -> bool| rest.iter().take_while(|byte| belongs(**byte)).count();
        Some(match rest {
            [] => return None,
            [b'-', b'-', ..] => Opener::LineComment,
            [b'/', b'*', ..] => Opener::BlockComment,
            [b'\'', ..] => {
                let continued = self.string.filter(|_| self.newline);
                Opener::String { escapes: continued.unwrap_or(!self.standard_strings), bytes: 1 }
            }
            [b'e' | b'E', b'\'', ..] => Opener::String { escapes: true, bytes: 2 },
            [b'b' | b'B' | b'x' | b'X', b'\'', ..] => Opener::String { escapes: false, bytes: 2 },
            [b'u' | b'U', b'&', b'\'', ..] => Opener::String { escapes: false, bytes: 3 },
            [b'u' | b'U', b'&', b'"', ..] => Opener::Identifier { bytes: 3 },
            [b'"', ..] => Opener::Identifier { bytes: 1 },
            [b'$', after @ ..] => dollar(after),
            [byte, ..] if is_blank(*byte) => Opener::Blank,
            [byte, ..] if byte.is_ascii_digit() => Opener::Number { bytes: run(|byte| byte.is_ascii_digit()) },
            [byte, ..] if starts_word(*byte) => Opener::Word { bytes: self.word(rest) },
            [byte, ..] => Opener::Sign(*byte),
        })
    }

    /// Length of the word: up to the delimiter, if that is no part of words.
    fn word(&self, rest: &[u8]) -> usize {
        let whole = rest.iter().take_while(|byte| continues_word(**byte)).count();
        if self.delimiter.starts_in_word || self.depth > 0 {
            return whole;
        }
        (0..whole).find(|at| self.delimiter.is_at(&rest[*at..])).unwrap_or(whole)
    }

    /// The next token. A delimiter counts only where it covers what begins there: `-` is none where `--` begins a
    /// comment.
    pub fn next(&mut self) -> Option<Token> {
        loop {
            let opener = self.opener()?;
            let start = self.position;
            if self.depth == 0 && self.delimiter.bytes.len() >= opener.bytes() && self.delimiter.is_at(self.rest()) {
                self.position += self.delimiter.bytes.len();
                if self.delimiter.is_blank() {
                    self.newline |= has_newline(self.delimiter.bytes);
                } else {
                    self.string = None;
                }
                return Some(Token { kind: Kind::Delimiter, range: start..self.position });
            }
            let kind = match opener {
                Opener::Blank => {
                    self.newline |= has_newline(&self.rest()[..1]);
                    self.position += 1;
                    continue;
                }
                Opener::LineComment => {
                    let end = self.rest().iter().position(|byte| matches!(byte, b'\n' | b'\r'));
                    self.position = end.map_or(self.text.len(), |end| start + end);
                    continue;
                }
                Opener::BlockComment => {
                    let length = block_comment(self.rest());
                    self.open_comment = length.is_none().then_some(start);
                    self.position = length.map_or(self.text.len(), |length| start + length);
                    self.string = None;
                    continue;
                }
                opener => self.token(&opener),
            };
            return Some(Token { kind, range: start..self.position });
        }
    }

    /// Reads the token that begins here.
    fn token(&mut self, opener: &Opener) -> Kind {
        let rest = self.rest();
        let after = rest.get(opener.bytes()..).unwrap_or_default();
        (self.string, self.newline) = (None, false);
        let (kind, bytes) = match *opener {
            Opener::String { escapes, .. } => {
                self.string = Some(escapes);
                (Kind::Quoted, quoted(after, b'\'', escapes))
            }
            Opener::Identifier { .. } => (Kind::Quoted, quoted(after, b'"', false)),
            Opener::Dollar { bytes } => (Kind::Quoted, dollar_quoted(after, &rest[..bytes])),
            Opener::Word { .. } => (Kind::Word, 0),
            Opener::Number { .. } => (Kind::Number, 0),
            Opener::Sign(b';') => (Kind::Semicolon, 0),
            Opener::Sign(sign) => {
                match sign {
                    b'(' | b'[' => self.depth += 1,
                    b')' | b']' => self.depth = self.depth.saturating_sub(1),
                    _ => {}
                }
                (Kind::Other, 0)
            }
            Opener::Blank | Opener::LineComment | Opener::BlockComment => (Kind::Other, 0),
        };
        self.position += opener.bytes() + bytes;
        kind
    }
}

fn has_newline(bytes: &[u8]) -> bool {
    bytes.iter().any(|byte| matches!(byte, b'\n' | b'\r'))
}

/// Returns what a dollar sign begins: a quote, a parameter, nothing.
fn dollar(after: &[u8]) -> Opener {
    let digits = after.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits > 0 {
        return Opener::Number { bytes: 1 + digits };
    }
    let tag = after.iter().take_while(|byte| continues_word(**byte) && **byte != b'$').count();
    match after.get(tag) {
        Some(b'$') => Opener::Dollar { bytes: tag + 2 },
        _ => Opener::Sign(b'$'),
    }
}

/// Length of what follows an opening quote, the closing one included.
fn quoted(after: &[u8], quote: u8, escapes: bool) -> usize {
    let mut at = 0;
    while let Some(byte) = after.get(at) {
        if escapes && *byte == b'\\' {
            at += 2;
        } else if *byte != quote {
            at += 1;
        } else if after.get(at + 1) == Some(&quote) {
            at += 2;
        } else {
            return at + 1;
        }
    }
    after.len()
}

fn dollar_quoted(after: &[u8], tag: &[u8]) -> usize {
    after.windows(tag.len()).position(|window| window == tag).map_or(after.len(), |at| at + tag.len())
}

/// Length of a comment that begins here; comments nest.
/// Returns the length of the comment, or `None` if it does not end.
fn block_comment(rest: &[u8]) -> Option<usize> {
    let (mut at, mut depth) = (0, 0_usize);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (at, depth) = (at + 2, depth + 1),
            [b'*', b'/', ..] if depth == 1 => return Some(at + 2),
            [b'*', b'/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text cut at every delimiter that the scanner sees.
    fn cut(text: &str, delimiter: &str, standard_strings: bool) -> Vec<String> {
        let mut scanner = Scanner::new(text.as_bytes(), Delimiter::new(delimiter.as_bytes()), standard_strings);
        let (mut pieces, mut start) = (Vec::new(), 0);
        while let Some(token) = scanner.next() {
            if token.kind == Kind::Delimiter {
                pieces.push(text[start..token.range.start].to_owned());
                start = token.range.end;
            }
        }
        pieces.push(text[start..].to_owned());
        pieces
    }

    #[test]
    fn what_is_quoted_is_whole() {
        for text in [
            "'a,b'",
            "'it''s, so'",
            "E'it\\'s, so'",
            "e'\\\\\\', '",
            "U&'\\0041,' ",
            "U&\"a,\"\"b\"",
            "B'0,1'",
            "X'0,f'",
            "N'a,b'",
            "\"a,\"\"b\"",
            "$$a,b$$",
            "$tag$a,$$,$tagg$,$tag$",
            "$é$a,$é$",
            "/* a, /* b, */ c, */",
            "-- a, b",
            "(a, (b, c), d)",
            "a[1,2]",
            "array[a, (b, c)]",
            "'open, ",
            "/* open, /* */ ,",
            "$$ open, $",
            "E'a'\n'it\\'s, so'",
            "E'a' -- c, d\n  -- e, f\n '\\', '",
        ] {
            assert_eq!(cut(text, ",", true), [text], "{text}");
        }
    }

    #[test]
    fn what_is_not_quoted_is_cut() {
        for (text, pieces) in [
            ("'a','b'", &["'a'", "'b'"][..]),
            ("'\\','b'", &["'\\'", "'b'"]),
            ("fooe'\\','b'", &["fooe'\\'", "'b'"]),
            ("a$$,b$$", &["a$$", "b$$"]),
            ("a$b$,c$b$", &["a$b$", "c$b$"]),
            ("$1,$2", &["$1", "$2"]),
            ("$1$$,$$,", &["$1$$,$$", ""]),
            ("a -- c\n,b", &["a -- c\n", "b"]),
            ("/**/,/***/,", &["/**/", "/***/", ""]),
            ("a*/*,*/,b", &["a*/*,*/", "b"]),
            ("E'a' 'b\\',c", &["E'a' 'b\\'", "c"]),
            ("E'a' /*\n*/ 'b\\',c", &["E'a' /*\n*/ 'b\\'", "c"]),
            ("B'1' , X'f'", &["B'1' ", " X'f'"]),
            ("),b", &[")", "b"]),
        ] {
            assert_eq!(cut(text, ",", true), pieces, "{text}");
        }
    }

    #[test]
    fn backslashes_escape_where_the_setting_says_so() {
        assert_eq!(cut("'it\\',a'", ",", false), ["'it\\',a'"]);
        assert_eq!(cut("'it\\',a", ",", true), ["'it\\'", "a"]);
        assert_eq!(cut("\"a\\\",a", ",", false), ["\"a\\\"", "a"]);
    }

    #[test]
    fn any_delimiter() {
        for (text, delimiter, pieces) in [
            ("a|||b||c", "|||", &["a", "b||c"][..]),
            ("a\nb -- c\n'd\ne'", "\n", &["a", "b -- c", "'d\ne'"]),
            ("a\r\nb -- c\r\nd", "\r\n", &["a", "b -- c", "d"]),
            ("a go category go", "go", &["a ", " category ", ""]),
            ("a;gone;go", ";go", &["a;gone", ""]),
            ("a-- b\n- c", "-", &["a-- b\n", " c"]),
            ("a--b--c", "--", &["a", "b", "c"]),
            ("a /* b */ / c", "/", &["a /* b */ ", " c"]),
            ("1§select 2 § 'a§b'", "§", &["1", "select 2 ", " 'a§b'"]),
            ("año ñ b", "ñ", &["año ", " b"]),
            ("a🐘b", "🐘", &["a", "b"]),
            ("$$a$$$b", "$", &["$$a$$", "b"]),
            ("a,b", "", &["a,b"]),
        ] {
            assert_eq!(cut(text, delimiter, true), pieces, "{text} at {delimiter}");
        }
    }
}
