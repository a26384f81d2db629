//! Cutting a text at a delimiter into as many complete SQL texts as possible.
//!
//! A cut is a delimiter between tokens, outside of parentheses, after which a statement can begin. From the left, a
//! piece that is complete is kept if what follows it can be cut as well; else the piece is made longer. Three
//! facts about the server's parser keep that short: a text that it refuses at a token before the end cannot
//! be mended by what follows; after a semicolon at its top level it is as it was at the start; and no statement
//! begins with a word that it refuses when it stands alone.

use super::scanner::{is_blank, Delimiter, Kind, Scanner, Token};
use std::collections::HashMap;
use std::ops::Range;

/// The most pieces that a text may have: each takes memory before it is known to be one.
pub const MAX_PIECES: usize = 1_000_000;

/// Tells what the parser says of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParseOutcome<E> {
    /// The text is zero or more statements.
    Complete,
    Fails {
        /// Byte where it fails; after the last one = the text ends too early.
        position: usize,
        /// The parser refused the token there, so no text that begins like this one parses. Otherwise it complained of
        /// something else, which what follows might mend.
        refused: bool,
        report: E,
    },
}

/// Tells why a text cannot be cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SplitError<E> {
    /// The text has more than [`MAX_PIECES`].
    TooMany,
    /// No cut gives complete texts.
    Piece {
        /// The piece that stands in the way.
        piece: Range<usize>,
        /// Number of the piece, from 1.
        number: usize,
        /// Byte of the whole text where the parser failed.
        position: usize,
        report: E,
    },
}

/// Asks the parser about a text.
pub type Parse<'a, E> = dyn FnMut(&[u8]) -> ParseOutcome<E> + 'a;

/// Cuts a text; an empty delimiter = nowhere. Pieces without statements are left out.
///
/// # Errors
/// [`SplitError`].
pub fn split<E>(
    text: &[u8],
    delimiter: &[u8],
    standard_strings: bool,
    parse: &mut Parse<E>,
) -> Result<Vec<Range<usize>>, SplitError<E>> {
    let delimiter = Delimiter::new(delimiter);
    let (segments, open_comment) = segments(text, delimiter, standard_strings, parse)?;
    // What a comment has that does not end tells the parser nothing, and may keep it busy for long.
    let text = text.get(..open_comment.map_or(text.len(), |start| start + COMMENT.len())).unwrap_or(text);
    let budget = text.len().saturating_mul(16).saturating_add(4 << 20);
    let memo = vec![Memo::Unknown; segments.len()];
    let mut search = Search { text, delimiter, standard_strings, segments, memo, parse, budget, furthest: None };
    search.run();
    search.outcome()
}

/// The part of a text between two cuts.
struct Segment {
    range: Range<usize>,
    /// Start of its last token: a failure from here on may be the fault of what is missing.
    tail: usize,
    /// The parser is as at the start if what is before is complete.
    is_fresh: bool,
}

/// The part of a text between two delimiters.
struct Chunk {
    range: Range<usize>,
    /// First token that is no semicolon.
    first: Option<Token>,
    tail: usize,
    has_leading_semicolon: bool,
    has_trailing_semicolon: bool,
}

impl Chunk {
    /// Reads up to the next delimiter; returns where that ends, too, if there is one.
    fn read(scanner: &mut Scanner, text: &[u8], start: usize) -> (Self, Option<usize>) {
        let mut chunk = Chunk {
            range: start..text.len(),
            first: None,
            tail: start,
            has_leading_semicolon: false,
            has_trailing_semicolon: false,
        };
        while let Some(token) = scanner.next() {
            if token.kind == Kind::Delimiter {
                chunk.range.end = token.range.start;
                return (chunk, Some(token.range.end));
            }
            chunk.push(token, text);
        }
        (chunk, None)
    }

    fn push(&mut self, token: Token, text: &[u8]) {
        // The parser looks one token ahead behind a few words, and two behind a string that UESCAPE may follow.
        if !token.of(text).eq_ignore_ascii_case(b"uescape") {
            self.tail = token.range.start;
        }
        let is_semicolon = token.kind == Kind::Semicolon;
        self.has_trailing_semicolon = is_semicolon;
        if self.first.is_none() {
            self.has_leading_semicolon |= is_semicolon;
            self.first = (!is_semicolon).then_some(token);
        }
    }
}

/// Begins a comment.
const COMMENT: &str = "/*";

/// Finds the cuts, and where a comment begins that does not end: the last segment ends behind its first characters.
fn segments<E>(
    text: &[u8],
    delimiter: Delimiter,
    standard_strings: bool,
    parse: &mut Parse<E>,
) -> Result<(Vec<Segment>, Option<usize>), SplitError<E>> {
    let (is_semicolon, is_blank) = (delimiter.is_semicolon(), delimiter.is_blank());
    let mut words = Words::default();
    let mut segments: Vec<Segment> = Vec::new();
    let mut scanner = Scanner::new(text, delimiter, standard_strings);
    let (mut is_fresh, mut next) = (false, Some(0));
    while let Some(start) = next {
        let (chunk, after) = Chunk::read(&mut scanner, text, start);
        next = after;
        is_fresh |= is_blank && chunk.has_leading_semicolon;
        // The parser refuses a comment that does not end, though there is nothing before it.
        if chunk.first.is_none() && scanner.open_comment().is_none() {
            continue;
        }
        if segments.len() == MAX_PIECES {
            return Err(SplitError::TooMany);
        }
        match segments.last_mut() {
            // No statement begins here, so here is no cut.
            Some(last) if chunk.first.as_ref().is_some_and(|first| !words.can_begin(first, text, parse)) => {
                last.range.end = chunk.range.end;
                last.tail = chunk.tail;
            }
            _ => {
                segments.push(Segment { range: chunk.range, tail: chunk.tail, is_fresh });
            }
        }
        is_fresh = is_semicolon || chunk.has_trailing_semicolon;
    }
    if let (Some(last), Some(start)) = (segments.last_mut(), scanner.open_comment()) {
        last.range.end = start + COMMENT.len();
    }
    Ok((segments, scanner.open_comment()))
}

/// The longest word that can be a keyword: longer ones are cut off (NAMEDATALEN).
const MAX_WORD_BYTES: usize = 63;
/// Maximum number of words that are remembered.
const MAX_WORDS: usize = 1000;

/// Words, and whether a statement can begin with them.
#[derive(Default)]
struct Words(HashMap<Vec<u8>, bool>);

impl Words {
    fn can_begin<E>(&mut self, token: &Token, text: &[u8], parse: &mut Parse<E>) -> bool {
        let word = token.of(text).to_ascii_lowercase();
        if token.kind != Kind::Word || word.len() > MAX_WORD_BYTES {
            return false;
        }
        if let Some(known) = self.0.get(&word) {
            return *known;
        }
        let can_begin = match parse(&word) {
            ParseOutcome::Complete => true,
            ParseOutcome::Fails { position, refused, .. } => !refused || position >= word.len(),
        };
        if self.0.len() >= MAX_WORDS {
            self.0.clear();
        }
        self.0.insert(word, can_begin);
        can_begin
    }
}

/// The best that can be made of the text from a segment on.
#[derive(Clone, Copy)]
enum Memo {
    Unknown,
    /// The text from the segment on cannot be cut.
    Dead,
    /// The first piece ends with the segment `end`.
    Best {
        pieces: usize,
        end: usize,
    },
}

/// A segment at which a piece begins, while its ends are tried.
struct Frame {
    start: usize,
    /// The segment with which the piece ends that is tried next.
    end: usize,
    best: Option<(usize, usize)>,
    /// The piece is complete; what follows it is looked at.
    waits: bool,
    /// Numbers of ends in a row: those left out because what follows them is known to be dead, and those that may be.
    skipped: usize,
    may_skip: usize,
    /// Length of the next step when patience is gone, and the end where the last one began.
    leap: usize,
    leapt_from: Option<usize>,
}

impl Frame {
    fn new(start: usize) -> Self {
        Frame { start, end: start, best: None, waits: false, skipped: 0, may_skip: 1, leap: 1, leapt_from: None }
    }

    fn offer(&mut self, pieces: usize) {
        if self.best.is_none_or(|(best, _)| best < pieces) {
            self.best = Some((pieces, self.end));
        }
    }
}

enum Step {
    /// The best from this segment on is wanted first.
    Descend(usize),
    Done,
}

/// The failure that is furthest to the right.
struct Furthest<E> {
    position: usize,
    start: usize,
    end: usize,
    number: usize,
    report: E,
}

/// Tells what the parser says of a piece.
enum Verdict {
    Complete,
    /// A longer one may be complete.
    Open,
    /// No longer one is: refused at this byte of the text.
    SplitError(usize),
}

struct Search<'a, 'p, E> {
    text: &'a [u8],
    delimiter: Delimiter<'a>,
    standard_strings: bool,
    segments: Vec<Segment>,
    /// By the segment with which a piece begins.
    memo: Vec<Memo>,
    parse: &'a mut Parse<'p, E>,
    /// Number of bytes that are still parsed in vain before ends are left out.
    budget: usize,
    furthest: Option<Furthest<E>>,
}

impl<E> Search<'_, '_, E> {
    /// Finds the best for the first segment, and for those that matter to it. The frames are what a recursion would
    /// have.
    fn run(&mut self) {
        let mut frames: Vec<Frame> = Vec::new();
        if !self.segments.is_empty() {
            frames.push(Frame::new(0));
        }
        while let Some(mut frame) = frames.pop() {
            match self.step(&mut frame, frames.len() + 1) {
                Step::Descend(start) => {
                    frames.push(frame);
                    frames.push(Frame::new(start));
                }
                Step::Done => {
                    let memo = frame.best.map_or(Memo::Dead, |(pieces, end)| Memo::Best { pieces, end });
                    self.memo[frame.start] = memo;
                }
            }
        }
    }

    /// Tries the ends of a piece, the nearest first.
    fn step(&mut self, frame: &mut Frame, number: usize) -> Step {
        let count = self.segments.len();
        while frame.end < count {
            let next = frame.end + 1;
            let memo = self.memo.get(next).copied();
            let verdict = if std::mem::take(&mut frame.waits) {
                Verdict::Complete
            } else if frame.best.is_some_and(|(pieces, _)| pieces > count - next) {
                break; // Not even if each segment from the next one on is a piece.
            } else if matches!(memo, Some(Memo::Dead)) && frame.skipped < frame.may_skip {
                (frame.skipped, frame.end) = (frame.skipped + 1, next);
                continue;
            } else {
                if frame.skipped == frame.may_skip {
                    (frame.skipped, frame.may_skip) = (0, frame.may_skip * 2);
                }
                self.look(frame.start, frame.end, number)
            };
            match (verdict, memo) {
                (Verdict::Complete, None) => {
                    frame.offer(1);
                    break;
                }
                (Verdict::Complete, Some(Memo::Unknown)) => {
                    frame.waits = true;
                    return Step::Descend(next);
                }
                (Verdict::Complete, Some(memo)) => {
                    if let Memo::Best { pieces, .. } = memo {
                        frame.offer(pieces + 1);
                    }
                    if self.segments[next].is_fresh {
                        break;
                    }
                    frame.end = next;
                }
                (Verdict::Open, _) => self.go_on(frame),
                (Verdict::SplitError(position), _) => match frame.leapt_from.take() {
                    Some(from) => {
                        // Back to the last end that the refusal leaves.
                        let ends = self.segments.partition_point(|segment| segment.range.end <= position);
                        if ends <= from + 1 || ends > frame.end {
                            break;
                        }
                        frame.end = ends - 1;
                    }
                    None => break,
                },
            }
        }
        Step::Done
    }

    /// Goes to the next end after one where the piece is not complete yet.
    fn go_on(&self, frame: &mut Frame) {
        let last = self.segments.len() - 1;
        if self.budget > 0 || frame.end == last {
            frame.end += 1;
            return;
        }
        frame.leapt_from = Some(frame.end);
        frame.end = (frame.end + frame.leap).min(last);
        frame.leap *= 2;
    }

    /// Asks the parser about the piece from one segment to another, which is the piece with this number.
    fn look(&mut self, start: usize, end: usize, number: usize) -> Verdict {
        let piece = self.piece(start, end);
        let last = &self.segments[end];
        match (self.parse)(&self.text[piece.clone()]) {
            ParseOutcome::Complete => Verdict::Complete,
            ParseOutcome::Fails { position, refused, report } => {
                self.budget = self.budget.saturating_sub(piece.len());
                let is_at_end = position >= piece.len();
                let position = if is_at_end { last.range.end } else { piece.start + position };
                let verdict =
                    if refused && position < last.tail { Verdict::SplitError(position) } else { Verdict::Open };
                let is_further = |furthest: &Furthest<E>| (position, start) > (furthest.position, furthest.start);
                if self.furthest.as_ref().is_none_or(is_further) {
                    self.furthest = Some(Furthest { position, start, end, number, report });
                }
                verdict
            }
        }
    }

    /// The text from one segment to another, without blanks around it.
    fn piece(&self, start: usize, end: usize) -> Range<usize> {
        trim(self.text, self.segments[start].range.start..self.segments[end].range.end)
    }

    fn outcome(mut self) -> Result<Vec<Range<usize>>, SplitError<E>> {
        if let Some(furthest) = self.furthest.take().filter(|_| matches!(self.memo.first(), Some(Memo::Dead))) {
            return Err(self.refused(furthest));
        }
        let (mut pieces, mut start) = (Vec::new(), 0);
        while let Some(Memo::Best { end, .. }) = self.memo.get(start) {
            pieces.push(self.piece(start, *end));
            start = end + 1;
        }
        Ok(pieces)
    }

    /// Shows a failure on what follows the last delimiter before it, if that begins with it and all before is complete;
    /// else on the piece up to the segment that has it.
    fn refused(self, furthest: Furthest<E>) -> SplitError<E> {
        let Furthest { position, start, end, number, report } = furthest;
        let at = self.segments.partition_point(|segment| segment.range.start <= position).saturating_sub(1);
        let piece = self.piece(start, at.clamp(start, end));
        let rest = self.text.get(piece.start..).unwrap_or_default();
        let mut scanner = Scanner::new(rest, self.delimiter, self.standard_strings);
        let mut next = Some(0);
        while let Some(from) = next.filter(|from| piece.start + from <= position) {
            let (chunk, after) = Chunk::read(&mut scanner, rest, from);
            next = after;
            if from == 0 || chunk.first.is_none_or(|first| piece.start + first.range.start != position) {
                continue;
            }
            let before = trim(rest, 0..from - self.delimiter.len());
            if !matches!((self.parse)(&rest[before]), ParseOutcome::Complete) {
                continue;
            }
            let alone = trim(rest, chunk.range);
            if let ParseOutcome::Fails { position, report, .. } = (self.parse)(&rest[alone.clone()]) {
                let piece = piece.start + alone.start..piece.start + alone.end;
                return SplitError::Piece { position: piece.start + position, piece, number: number + 1, report };
            }
        }
        SplitError::Piece { piece, number, position, report }
    }
}

fn trim(text: &[u8], range: Range<usize>) -> Range<usize> {
    let piece = text.get(range.clone()).unwrap_or_default();
    let blanks = piece.iter().take_while(|byte| is_blank(**byte)).count();
    let trailing = piece.iter().skip(blanks).rev().take_while(|byte| is_blank(**byte)).count();
    range.start + blanks..range.end - trailing
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod tests;
