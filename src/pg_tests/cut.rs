//! Texts cut with the server's own parser.

#[pgrx::pg_schema]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use crate::error::Error;
    use crate::ffi::parser::Parser;
    use crate::protocol::{sqlstate, Report};
    use crate::spec::sql_text::cut;
    use crate::sql_split::ParseOutcome;
    use pgrx::prelude::*;
    use std::time::{Duration, Instant};

    fn pieces(text: &str, delimiter: &str) -> Vec<String> {
        match cut(text.as_bytes(), delimiter.as_bytes()) {
            Ok(pieces) => pieces.into_iter().map(|piece| text[piece].to_owned()).collect(),
            Err(error) => panic!("{text}: {:?}", Report::from(error)),
        }
    }

    fn refusal(text: &str, delimiter: &str) -> Report {
        match cut(text.as_bytes(), delimiter.as_bytes()) {
            Err(error @ Error::NoCut(_)) => Report::from(error),
            other => panic!("{text}: {other:?}"),
        }
    }

    fn text(bytes: Option<Vec<u8>>) -> String {
        String::from_utf8(bytes.unwrap_or_default()).unwrap()
    }

    #[pg_test]
    fn commas_that_belong_to_a_query_do_not_cut() {
        for query in [
            "select a, b from t",
            "select a, b as c, count(*) from t, u group by a, b order by 1, 2",
            "with x as (select 1, 2), y as (select 3, 4) select * from x, y",
            "with recursive x (n) as (select 1 union all select n + 1 from x where n < 3) select n, n from x",
            "select f(1, 2), coalesce(a, b, 'c, d')",
            "select 'a, select 1', 'it''s, so'",
            "select E'it\\'s, select 1', e'\\\\'",
            "select $$a, select 1$$, $b$ $$, select 2 $b$",
            "select U&'d\\0061t, a', U&\"d\\0061t, a\", U&'d!0061' uescape '!', 1",
            "select B'01', X'1f', N'a, b'",
            "select \"a, select 1\", \"b\"\"c, d\" from \"t, u\"",
            "select 1 -- a, select 2\n, 3",
            "select 1 /* a, /* select 2, */ , */, 3",
            "select array[1, 2], a[1], array[array[1, 2], '{3, 4}'], (array[1,2])[1:2], a[1][2]",
            "select * from t where a in (1, 2) and (b, c) in ((1, 2), (3, 4))",
            "insert into t values (1), (2), (3)",
            "insert into t (a, b) values (1, 2), (3, 4) on conflict (a) do update set a = 1, b = 2 returning a, b",
            "update t set a = 1, b = 2, (c, d) = (3, 4) from u, v",
            "vacuum a, b",
            "vacuum (full, verbose) a, b (c, d)",
            "truncate a, b, c cascade",
            "drop table a, b",
            "lock a, b in share mode",
            "create table t (a int, b numeric(10, 2), primary key (a, b))",
            "create index on t (a, lower(b), (c || ','))",
            "alter table t add column a int, drop column b, alter column c set not null",
            "grant select (a, b), insert on t, u to v, w",
            "grant select, insert on t to u",
            "prepare p (int, text) as select $1, $2",
            "execute p (1, 'a, b')",
            "call p(1, 2)",
            "do $body$ begin perform 1, 2; perform f(1, 'a, b'); end $body$",
            "set search_path = a, b, c",
            "set local search_path to \"$user\", public",
            "begin isolation level serializable, read only, deferrable",
            "copy t (a, b) to stdout (format csv, delimiter ',')",
            "explain (analyze, costs off) select 1, 2",
            "select row_number() over (partition by a, b order by c, d), sum(e) over w from t \
             window w as (order by a, b), v as (w)",
            "select distinct on (a, b) a, b, set, show from t for update of t, u",
            "create function f(a int, b text default 'x, y') returns table (c int, d int) language sql \
             as $$ select 1, 2 $$",
            "select merge_me, select_me, x",
            "fetch forward 2 from c",
            "select 1::numeric(10, 2), timestamp with time zone '2020-01-01 00:00, UTC', interval '1' day, \
             cast(1 as numeric(3, 1))",
            "select extract(epoch from now()), substring('a, b' from 1 for 2), position(',' in 'a,b'), \
             overlay('a,b' placing ',' from 1)",
            "select case when a in (1, 2) then b else c end, d",
            "(select 1, 2) union (select 3, 4) order by 1, 2",
            "values (1, 2), (3, 4)",
            "table t",
            "notify c, 'a, b'",
            "comment on table t is 'a, b'",
        ] {
            assert_eq!(pieces(query, ","), [query]);
            let twice = format!("{query}, {query} ,select 1");
            if !query.starts_with(['(']) {
                assert_eq!(pieces(&twice, ","), [query, query, "select 1"], "{twice}");
            }
        }
    }

    #[pg_test]
    fn as_many_queries_as_possible() {
        for (text, delimiter, expected) in [
            ("select version();,select version()", ",", &["select version();", "select version()"][..]),
            ("select a, b from t, select 2", ",", &["select a, b from t", "select 2"]),
            ("vacuum a, vacuum b, c, vacuum, analyze", ",", &["vacuum a", "vacuum b, c", "vacuum", "analyze"]),
            ("begin, commit, rollback", ",", &["begin", "commit", "rollback"]),
            (
                "insert into t values (1), (2), insert into t values (3)",
                ",",
                &["insert into t values (1), (2)", "insert into t values (3)"],
            ),
            (
                "insert into t select 1, insert into t select 2, 3",
                ",",
                &["insert into t select 1", "insert into t select 2, 3"],
            ),
            ("select 1;select 2; ;; select 3;", ";", &["select 1", "select 2", "select 3"]),
            ("select ';'; select $$;$$; -- ;\nselect 3", ";", &["select ';'", "select $$;$$", "-- ;\nselect 3"]),
            (
                "create rule r as on insert to t do also (select 1; select 2); select 3",
                ";",
                &["create rule r as on insert to t do also (select 1; select 2)", "select 3"],
            ),
            ("select 1|||select a || b|||select '|||'", "|||", &["select 1", "select a || b", "select '|||'"]),
            (
                "select 1\nfrom t\nwhere a\nand b\n\nupdate t\nset a = 1\n\ntable t",
                "\n",
                &["select 1\nfrom t\nwhere a\nand b", "update t\nset a = 1", "table t"],
            ),
            ("select 1;\r\nselect 2;\r\n", "\r\n", &["select 1;", "select 2;"]),
            ("select 'a'\n'b'\nselect E'a'\n'\\'\n'", "\n", &["select 'a'\n'b'", "select E'a'\n'\\'\n'"]),
            (
                "select U&'d!0061'\nuescape '!'\nselect a\nnot in (1)\nselect 2",
                "\n",
                &["select U&'d!0061'\nuescape '!'", "select a\nnot in (1)", "select 2"],
            ),
            ("select * from (select 1)\nas x\nselect 2", "\n", &["select * from (select 1)\nas x", "select 2"]),
            (
                "select 1 union all\nselect 2\nselect 3 union all\nselect 4",
                "\n",
                &["select 1 union all\nselect 2", "select 3 union all\nselect 4"],
            ),
            ("select 1 go select 2 as category go select 3", "go", &["select 1", "select 2 as category", "select 3"]),
            ("select 1 § select 'é§'§select 3", "§", &["select 1", "select 'é§'", "select 3"]),
            ("select 'año, ñ', é from \"ü, x\", select 'ж'", ",", &["select 'año, ñ', é from \"ü, x\"", "select 'ж'"]),
            (", ,select 1, /* nothing */, -- nothing\n,;,", ",", &["select 1"]),
            ("select 1 select 2", " ", &["select 1", "select 2"]),
            (
                "/* first */ select 1, /* second */ select 2 -- end",
                ",",
                &["/* first */ select 1", "/* second */ select 2 -- end"],
            ),
            ("select 1; select 2, select 3", ",", &["select 1; select 2", "select 3"]),
            ("select 1, select 2", "", &["select 1, select 2"]),
            ("selec 1, selec 2", "", &["selec 1, selec 2"]),
        ] {
            assert_eq!(pieces(text, delimiter), expected, "{text}");
        }
    }

    #[pg_test]
    fn nothing_to_run_is_an_error() {
        for (text, delimiter) in
            [("", ","), (" \n ", ","), (" \n ", ""), (",, ,", ","), ("-- nothing", ","), (";;/* */;", ";")]
        {
            assert!(matches!(cut(text.as_bytes(), delimiter.as_bytes()), Err(Error::EmptySql)), "{text}");
        }
    }

    #[pg_test]
    fn strings_are_read_as_the_session_reads_them() {
        let text = r"select 'it\', select 1";
        assert_eq!(pieces(text, ","), [r"select 'it\'", "select 1"]);
        Spi::run("set standard_conforming_strings = off").unwrap();
        refusal(text, ",");
        assert_eq!(pieces(r"select 'it\', select 1', select 2", ","), [r"select 'it\', select 1'", "select 2"]);
    }

    #[pg_test]
    fn a_text_without_a_cut_is_shown() {
        let report = refusal("select 1, select é form t here, select 2", ",");
        assert_eq!(report.sqlstate, sqlstate(b"42601"));
        assert_eq!(text(Some(report.message.clone())), "syntax error at or near \"t\"");
        assert_eq!(text(report.detail), "At character 25 of the text, in query 2: select é form t here");
        assert_eq!(text(report.internal_query), "select 1, select é form t here, select 2");
        assert_eq!((report.position, report.internal_position), (0, 25));
        assert!(text(report.hint).contains("array"));

        for (whole, delimiter, query, character) in [
            ("select 1; selec 2; select 3", ";", "in query 2: selec 2", 11),
            ("(select 1), (select 2), select 3", ",", "in query 1: (select 1), (select 2)", 11),
            ("select 1, select 2 from, select 3", ",", "in query 2: select 2 from", 24),
            ("select 1, select (2, select 3", ",", "in query 2: select (2, select 3", 22),
            ("select 1, select 'a, select 2", ",", "in query 2: select 'a, select 2", 18),
            ("select 1, 2 3, select 4", ",", "in query 1: select 1, 2 3", 13),
        ] {
            let report = refusal(whole, delimiter);
            assert_eq!(report.sqlstate, sqlstate(b"42601"), "{whole}");
            assert_eq!(text(report.detail), format!("At character {character} of the text, {query}"));
        }
    }

    #[pg_test]
    fn a_long_text_is_not_shown_whole() {
        let long = format!("select 1, select 2 3 4, {}", vec!["select 1"; 10_000].join(","));
        let report = refusal(&long, ",");
        assert_eq!(text(report.internal_query), "select 2 3 4");
        assert_eq!(report.internal_position, 10);
        assert_eq!(text(report.detail), "At character 20 of the text, in query 2: select 2 3 4");
        let report = refusal(&format!("select 1 2 3, '{}'", "é".repeat(100_000)), ",");
        assert_eq!((report.internal_query, report.internal_position), (None, 0));
        assert!(text(report.detail).ends_with("é..."));
    }

    #[pg_test]
    fn no_notice_comes_from_the_parser_that_cuts() {
        let long = "a".repeat(100);
        let messages = || {
            let settings = ["client_min_messages", "log_min_messages"];
            settings.map(|name| Spi::get_one::<String>(&format!("show {name}")).unwrap())
        };
        let before = messages();
        assert_eq!(pieces(&format!("select {long}, {long}, select 1"), ",").len(), 2);
        refusal("select 1 2 3, select 1", ",");
        assert_eq!(messages(), before);
    }

    #[pg_test]
    fn errors_of_the_grammar_that_are_no_refusal_are_told_apart() {
        let parser = Parser::new();
        assert!(matches!(parser.parse(b""), ParseOutcome::Complete));
        assert!(matches!(parser.parse(b" ; -- nothing"), ParseOutcome::Complete));
        assert!(matches!(
            parser.parse("select é é é".as_bytes()),
            ParseOutcome::Fails { position: 13, refused: true, .. }
        ));
        assert!(matches!(parser.parse(b"select 1 from"), ParseOutcome::Fails { position: 13, refused: true, .. }));
        assert!(matches!(
            parser.parse(b"select 1 limit 1, 2"),
            ParseOutcome::Fails { position: 9, refused: false, .. }
        ));
    }

    fn seconds(text: &str, delimiter: &str, count: Option<usize>) -> Duration {
        let start = Instant::now();
        let found = cut(text.as_bytes(), delimiter.as_bytes());
        let elapsed = start.elapsed();
        assert_eq!(found.ok().map(|pieces| pieces.len()), count, "{}", &text[..text.len().min(60)]);
        elapsed
    }

    #[pg_test]
    fn ten_thousand_pieces_are_fast() {
        let join = |piece: &str, delimiter: &str| vec![piece; 10_000].join(delimiter);
        let columns: Vec<_> = (1..=10_000).map(|number| format!("a{number}")).collect();
        let numbered: Vec<_> =
            (1..=10_000).map(|number| format!("select f{number}(1, 2), {number} from t{number}")).collect();
        for (what, text, delimiter, count) in [
            ("plain", join("select 1", ","), ",", Some(10_000)),
            ("lists", numbered.join(","), ",", Some(10_000)),
            ("lines", numbered.join("\n"), "\n", Some(10_000)),
            ("semicolons", numbered.join(";"), ";", Some(10_000)),
            ("columns", format!("select {} from t", columns.join(", ")), ",", Some(1)),
            ("values", format!("insert into t values {}", vec!["(1, 2)"; 10_000].join(", ")), ",", Some(1)),
            ("error in the last", format!("{},select 1 2 3", join("select 1", ",")), ",", None),
            ("error in the last", format!("{};selec", join("select 1", ";")), ";", None),
            ("error in the first", format!("select 1 2 3;{}", join("select 1", ";")), ";", None),
            ("union on lines", join("select 1 union all", "\n") + "\nselect 1", "\n", Some(1)),
            ("update on lines", join("update t\nset a = 1\nwhere b", "\n"), "\n", Some(10_000)),
        ] {
            let elapsed = seconds(&text, delimiter, count);
            // Far above what it takes, for a busy machine and a build without optimisation.
            assert!(elapsed < Duration::from_secs(20), "{what}: {elapsed:?}");
        }
    }
}
