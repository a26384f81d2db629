//! The server's log, read from a position on.

/// A position in a server's log.
#[derive(Debug, Clone, Copy)]
pub struct LogMark(pub(crate) u64);

/// One message, or one of the lines DETAIL, CONTEXT, STATEMENT, ... that follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub pid: i32,
    pub sqlstate: String,
    /// LOG, ERROR, DETAIL, STATEMENT, ...
    pub kind: String,
    /// Several lines when the message has several.
    pub text: String,
}

/// Prefix of log lines that [`parse`] reads.
pub(crate) const LINE_PREFIX: &str = "<%p %e %m> ";

pub(crate) fn parse(log: &str) -> Vec<LogLine> {
    let mut lines: Vec<LogLine> = Vec::new();
    for line in log.lines() {
        match (parse_first(line), lines.last_mut()) {
            (Some(first), _) => lines.push(first),
            (None, Some(previous)) => {
                previous.text.push('\n');
                previous.text.push_str(line.strip_prefix('\t').unwrap_or(line));
            }
            (None, None) => {}
        }
    }
    lines
}

fn parse_first(line: &str) -> Option<LogLine> {
    let (prefix, message) = line.strip_prefix('<')?.split_once("> ")?;
    let mut words = prefix.split(' ');
    let pid = words.next()?.parse().ok()?;
    let sqlstate = words.next()?.to_owned();
    let (kind, text) = message.split_once(":  ")?;
    Some(LogLine { pid, sqlstate, kind: kind.to_owned(), text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_two_lines_is_one() {
        let log = "<12 42P01 2000-01-01 UTC> ERROR:  no a\n\tand no b\n<12 42P01 2000-01-01 UTC> STATEMENT:  x\n";
        let lines = parse(log);
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].pid, lines[0].sqlstate.as_str(), lines[0].kind.as_str()), (12, "42P01", "ERROR"));
        assert_eq!(lines[0].text, "no a\nand no b");
        assert_eq!((lines[1].kind.as_str(), lines[1].text.as_str()), ("STATEMENT", "x"));
    }
}
