//! Cuts found with a toy parser.

use super::*;

/// A parser of a few statements, which refuses and asks for more as the server's does.
fn parse(text: &[u8]) -> ParseOutcome<()> {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        Start,
        /// A list wants an item.
        Item,
        /// A list has one; it may have an alias.
        HasItem,
        HasAlias,
        AfterUnion,
        Insert,
        Table,
        Values,
        Row,
        HasRow,
        Update,
        Set,
        Vacuum,
        Ended,
    }
    use State::*;
    let mut scanner = Scanner::new(text, Delimiter::new(b""), true);
    let mut state = Start;
    while let Some(token) = scanner.next() {
        let (at, bytes) = (token.range.start, token.of(text));
        let is_group = bytes == b"(";
        if is_group {
            let mut depth = 1;
            while depth > 0 {
                match scanner.next() {
                    None => return ParseOutcome::Fails { position: text.len(), refused: true, report: () },
                    Some(token) if token.of(text) == b"(" => depth += 1,
                    Some(token) if token.of(text) == b")" => depth -= 1,
                    Some(_) => {}
                }
            }
        }
        let keyword = matches!(
            bytes,
            b"select" | b"from" | b"union" | b"insert" | b"values" | b"update" | b"set" | b"vacuum" | b"end"
        );
        let is_operand = is_group || !keyword && matches!(token.kind, Kind::Word | Kind::Quoted | Kind::Number);
        state = match (state, bytes) {
            (Start | HasItem | HasAlias | HasRow | Ended | Vacuum, b";") => Start,
            (Start | AfterUnion, b"select") => Item,
            (Start, b"insert") => Insert,
            (Start, b"update") => Update,
            (Start, b"set") => Set,
            (Start, b"vacuum") => Vacuum,
            (Start, b"end") => Ended,
            (Start, _) if is_group => Ended,
            (Item | Vacuum, _) if is_operand => HasItem,
            (HasItem, _) if is_operand && !is_group => HasAlias,
            (Item, b"|") => Item,
            (HasItem, b"(") => HasItem,
            (HasItem | HasAlias, b"," | b"from" | b"||" | b"|") => Item,
            (HasItem | HasAlias, b"union") => AfterUnion,
            (Table, b"set") => Set,
            (Insert, _) if is_operand => Values,
            (Values, b"values") => Row,
            (Row, b"(") => HasRow,
            (HasRow, b",") => Row,
            (Update, _) if is_operand => Table,
            (Set, _) if is_operand => Ended,
            _ => return ParseOutcome::Fails { position: at, refused: true, report: () },
        };
    }
    match state {
        Start | HasItem | HasAlias | HasRow | Vacuum | Ended => ParseOutcome::Complete,
        _ => ParseOutcome::Fails { position: text.len(), refused: true, report: () },
    }
}

struct Count {
    calls: usize,
    bytes: usize,
}

fn counted(text: &str, delimiter: &str) -> (Result<Vec<String>, SplitError<()>>, Count) {
    let mut count = Count { calls: 0, bytes: 0 };
    let mut parse = |piece: &[u8]| {
        count.calls += 1;
        count.bytes += piece.len();
        parse(piece)
    };
    let pieces = split(text.as_bytes(), delimiter.as_bytes(), true, &mut parse);
    (pieces.map(|pieces| pieces.into_iter().map(|piece| text[piece].to_owned()).collect()), count)
}

fn pieces(text: &str, delimiter: &str) -> Vec<String> {
    counted(text, delimiter).0.unwrap_or_else(|refused| panic!("{text}: {refused:?}"))
}

#[test]
fn as_many_pieces_as_possible() {
    for (text, delimiter, expected) in [
        ("select 1,select 2", ",", &["select 1", "select 2"][..]),
        (" select a, b from t , select 2 ", ",", &["select a, b from t", "select 2"]),
        ("select f(a, select), select 'b, select c'", ",", &["select f(a, select)", "select 'b, select c'"]),
        ("insert t values (1), (2), select (3)", ",", &["insert t values (1), (2)", "select (3)"]),
        ("vacuum a, b, vacuum c, d", ",", &["vacuum a, b", "vacuum c, d"]),
        ("vacuum, vacuum a, vacuum", ",", &["vacuum", "vacuum a", "vacuum"]),
        (",, select 1 , /* none */, -- none\n, ;,; select 2,", ",", &["select 1", "; select 2"]),
        ("select 1; select 2;; ;select 3;", ";", &["select 1", "select 2", "select 3"]),
        ("select 1; select 2, select 3;", ",", &["select 1; select 2", "select 3;"]),
        ("select 1\nfrom t\nupdate t\nset a\nset b", "\n", &["select 1\nfrom t", "update t\nset a", "set b"]),
        ("select 1;\nselect 2\n;\nselect 3", "\n", &["select 1;", "select 2", "select 3"]),
        ("select 1 union\nselect 2\nselect 3", "\n", &["select 1 union\nselect 2", "select 3"]),
        ("select 1|||select a || b", "|||", &["select 1", "select a || b"]),
        ("select a | b", "|", &["select a | b"]),
        ("select a select b c select d", " ", &["select a", "select b c", "select d"]),
        ("  ", ",", &[]),
        (" -- none\n ; /**/ ;", ",", &[]),
        ("", "", &[]),
    ] {
        assert_eq!(pieces(text, delimiter), expected, "{text}");
    }
}

fn refusal(text: &str, delimiter: &str) -> (String, usize, usize) {
    match counted(text, delimiter).0 {
        Err(SplitError::Piece { piece, number, position, .. }) => (text[piece].to_owned(), number, position),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn the_piece_in_the_way_is_shown() {
    for (text, delimiter, piece, number, position) in [
        ("select 1, select 2 3 4, select 5", ",", "select 2 3 4", 2, 21),
        ("select 1; selec 2", ";", "selec 2", 2, 10),
        ("select 1, select 2 from, select 3", ",", "select 2 from", 2, 23),
        ("select 1, select a, b c d, select 2", ",", "select a, b c d", 2, 24),
        ("select 1, select (2, select 3", ",", "select (2, select 3", 2, 29),
        ("(select 1), (select 2)", ",", "(select 1), (select 2)", 1, 10),
        ("selec 1", ",", "selec 1", 1, 0),
        ("select 1 from", "", "select 1 from", 1, 13),
    ] {
        assert_eq!(refusal(text, delimiter), (piece.to_owned(), number, position), "{text}");
    }
}

/// The number of pieces, found by trying everything.
fn most_pieces(text: &str, delimiter: &str) -> Option<usize> {
    let mut scanner = Scanner::new(text.as_bytes(), Delimiter::new(delimiter.as_bytes()), true);
    let mut cuts = Vec::new();
    while let Some(token) = scanner.next() {
        if token.kind == Kind::Delimiter {
            cuts.push(token.range);
        }
    }
    cuts.push(text.len()..text.len());
    let mut best = vec![Some(0)];
    for from in (0..cuts.len()).rev() {
        let start = if from == 0 { 0 } else { cuts[from - 1].end };
        let mut most = None;
        for to in from..cuts.len() {
            let piece = &text[start..cuts[to].start];
            let Some(rest) = best[best.len() - 1 - (to - from)] else { continue };
            let is_blank = piece.chars().all(|character| character == ' ' || character == '\n' || character == ';');
            let is_first = text[..start].chars().all(|character| " \n;,".contains(character));
            let may_begin = is_first || !piece.trim_start_matches([' ', '\n', ';']).starts_with('(');
            if may_begin && parse(piece.as_bytes()) == ParseOutcome::Complete {
                most = most.max(Some(rest + usize::from(!is_blank)));
            }
        }
        best.push(most);
    }
    best[best.len() - 1]
}

#[test]
fn no_other_cuts_give_more() {
    const WORDS: [&str; 16] = [
        "select",
        "select 1",
        "a",
        "1",
        ",",
        ",",
        "\n",
        "\n",
        ";",
        "from t",
        "union",
        "update t",
        "set a",
        "vacuum",
        "(b)",
        "insert t values (1)",
    ];
    let mut random = 1_u64;
    let (mut cut, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut draw = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as usize
        };
        let words: Vec<_> = (0..1 + draw() % 14).map(|_| WORDS[draw() % WORDS.len()]).collect();
        let text = words.join(" ");
        for delimiter in [",", "\n", ";", " "] {
            let found = counted(&text, delimiter).0;
            assert_eq!(found.as_ref().ok().map(Vec::len), most_pieces(&text, delimiter), "{text:?} at {delimiter:?}");
            match found {
                Ok(_) => cut += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(cut > 1000 && refused > 1000, "{cut} {refused}");
}

#[test]
fn ordinary_texts_take_a_parse_a_piece() {
    let text = vec!["select a, b from t"; 10_000].join(",");
    let (found, count) = counted(&text, ",");
    assert_eq!(found.unwrap().len(), 10_000);
    assert!(count.calls <= 10_010, "{}", count.calls);

    let text = format!("select {} from t", (1..10_000).map(|n| format!("a{n}")).collect::<Vec<_>>().join(","));
    let (found, count) = counted(&text, ",");
    assert_eq!(found.unwrap(), [text.as_str()]);
    assert!(count.bytes <= 3 * text.len(), "{}", count.bytes);
}

#[test]
fn hard_texts_take_few_times_their_length() {
    let many = |piece: &str, delimiter: &str| vec![piece; 10_000].join(delimiter);
    for (text, delimiter, is_fine) in [
        (format!("{};selec 1", many("select 1", ";")), ";", false),
        (format!("{};select 1 2 3", many("select 1", ";")), ";", false),
        (format!("{},select 1 2 3", many("select 1", ",")), ",", false),
        (format!("{}\nselect 1 2 3", many("select 1", "\n")), "\n", false),
        (format!("{}\nselect 1 2 3", many("select 1;", "\n")), "\n", false),
        (format!("selec;{}", many("select 1", ";")), ";", false),
        (format!("{};select 1 2 3;{}", many("select 1", ";"), many("select 1", ";")), ";", false),
        (many("select 1 union", "\n") + "\nselect 2\nselect 3", "\n", true),
        (many("select 1 union", "\n"), "\n", false),
        (many("select 1 union", "\n") + "\nselect 2 2 2", "\n", false),
        (many("update t\nset a", "\n"), "\n", true),
        (many("vacuum", ","), ",", true),
        (many("insert t values (1),(2),(3)", ","), ",", true),
        (many("", ","), ",", true),
    ] {
        let (found, count) = counted(&text, delimiter);
        let head = &text[..text.len().min(40)];
        assert_eq!(found.is_ok(), is_fine, "{head}");
        let allowed = 60 * text.len() + (8 << 20);
        assert!(count.bytes <= allowed, "{head}: {} of {allowed} in {}", count.bytes, count.calls);
    }
    let text = many("select 1 union", "\n") + "\nselect 2\nselect 3";
    assert_eq!(pieces(&text, "\n").len(), 2);
}

#[test]
fn a_complaint_that_is_no_refusal_is_not_the_end() {
    // As the server does with "select * from (select 1)", which wants an alias.
    let parse = |piece: &[u8]| match piece {
        b"select (1)" => ParseOutcome::Fails { position: 7, refused: false, report: () },
        _ => parse(piece),
    };
    let text = b"select (1)\nselect\nselect 2";
    let text = &text[..];
    let mut parse_all = |piece: &[u8]| match piece {
        b"select (1)\nselect" => ParseOutcome::Complete,
        _ => parse(piece),
    };
    assert_eq!(split(text, b"\n", true, &mut parse_all), Ok(vec![0..17, 18..26]));
}
