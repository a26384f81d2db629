//! Databases and clients of different encodings: texts, rows, errors and notices as a client sees them, byte for byte.

use crate::support::compare_with_client::comparable_notice;
use pg_background_mgr_tests::{case, Db, Reply, Session};

/// A session of a database with this encoding, removed by [`Other::end`].
struct Other<'a> {
    db: &'a Db,
    name: String,
}

impl<'a> Other<'a> {
    fn create(db: &'a Db, encoding: &str) -> Self {
        let name = format!("{}_{}", db.name, encoding.to_lowercase());
        db.session().run(&format!(
            "create database {name} template template0 encoding '{encoding}' lc_collate 'C' lc_ctype 'C'"
        ));
        db.cluster.session(&name).run("create extension pg_background_mgr");
        Other { db, name }
    }

    fn session(&self, client_encoding: &str) -> Session {
        self.db.cluster.client(&self.name).parameter("client_encoding", client_encoding).connect()
    }

    fn end(self) {
        let mut session = self.db.session();
        let drop = format!("drop database {}", self.name);
        pg_background_mgr_tests::wait_until("nobody uses the database", || session.ask(&drop).error.is_none());
    }
}

/// Compares job and client for texts that have `word`, given in the client's encoding.
fn assert_like_client(session: &mut Session, word: &[u8]) {
    let with_word = |template: &str| -> Vec<u8> {
        let mut text = Vec::new();
        for (number, part) in template.split('@').enumerate() {
            if number > 0 {
                text.extend_from_slice(word);
            }
            text.extend_from_slice(part.as_bytes());
        }
        text
    };
    let texts = [
        "select '@', '@' || length('@'), array['@', 'a'], row('@')",
        "select octet_length('@'), '@'::bytea",
        "select \"@\" from (select '@' as \"@\") s",
        "select '@', missing_@",
        "select 'x', '@'::int",
        "do $a$ begin raise notice 'notice @' using detail = 'detail @', hint = 'hint @'; end $a$; select '@'",
        "do $a$ begin raise exception 'error @' using detail = 'detail @', hint = 'hint @', column = '@', table \
         = '@'; end $a$",
        "set my.own = '@'; select current_setting('my.own'), current_query()",
    ];
    for template in texts {
        let text = with_word(template);
        let expected = session.ask_bytes(&text);
        let notices: Vec<_> = session.notices().iter().map(comparable_notice).collect();
        session.run("reset all");

        let launch = [b"select pg_background_launch($job$".as_slice(), &text, b"$job$)"].concat();
        let launched = session.ask_bytes(&launch);
        assert!(launched.error.is_none(), "{launched:?}");
        let pid = launched.last_rows().expect("a process id").text_rows()[0].clone();
        let columns = match &expected.last_rows().and_then(|statement| statement.columns.as_ref()) {
            Some(columns) => (0..columns.len()).map(|number| format!("c{number} text")).collect::<Vec<_>>().join(", "),
            None => "result text".to_owned(),
        };
        let got = session.ask_bytes(format!("select * from pg_background_result({pid}) as ({columns})").as_bytes());
        let shown = String::from_utf8_lossy(&text).into_owned();
        assert_eq!(rows(&got), rows(&expected), "rows of {shown}");
        match (&expected.error, &got.error) {
            (Some(expected), Some(got)) => {
                let mut expected = expected.clone();
                if let Some(position) = expected.fields.remove(&'P') {
                    expected.fields.insert('p', position);
                    expected.fields.insert('q', text.clone());
                }
                let mut got = got.clone();
                for error in [&mut expected, &mut got] {
                    error.fields.retain(|letter, _| !matches!(letter, 'F' | 'L' | 'R'));
                }
                assert_eq!(got.fields, expected.fields, "error of {shown}");
            }
            (None, None) => {}
            (expected, got) => panic!("{shown}\n  client: {expected:?}\n  job: {got:?}"),
        }
        let got: Vec<_> = session.notices().iter().map(comparable_notice).collect();
        assert_eq!(got, notices, "notices of {shown}");
    }
}

fn rows(reply: &Reply) -> Vec<Vec<Option<Vec<u8>>>> {
    reply.last_rows().map(|statement| statement.rows.clone()).unwrap_or_default()
}

const UTF8: &[u8] = "grün_ß".as_bytes();
const LATIN1: &[u8] = b"gr\xfcn_\xdf";

#[case]
fn utf8_database_with_a_utf8_client(db: &Db) {
    assert_like_client(&mut db.session(), "grün_ß_\u{20ac}_\u{4e2d}\u{1f600}".as_bytes());
}

#[case]
fn utf8_database_with_a_latin1_client(db: &Db) {
    assert_like_client(&mut db.client().parameter("client_encoding", "LATIN1").connect(), LATIN1);
}

#[case]
fn utf8_database_with_a_windows_client(db: &Db) {
    assert_like_client(&mut db.client().parameter("client_encoding", "WIN1252").connect(), b"gr\xfcn_\x80");
}

#[case]
fn latin1_database_with_a_latin1_client(db: &Db) {
    let other = Other::create(db, "LATIN1");
    assert_like_client(&mut other.session("LATIN1"), LATIN1);
    other.end();
}

#[case]
fn latin1_database_with_a_utf8_client(db: &Db) {
    let other = Other::create(db, "LATIN1");
    let mut session = other.session("UTF8");
    assert_like_client(&mut session, UTF8);
    // A character that the database has not fails as it arrives, in both.
    assert_eq!(
        session.ask("select pg_background_launch('select ''\u{20ac}''')").error.expect("an error").sqlstate(),
        "22P05"
    );
    drop(session);
    other.end();
}

#[case]
fn sql_ascii_database_with_a_sql_ascii_client(db: &Db) {
    let other = Other::create(db, "SQL_ASCII");
    assert_like_client(&mut other.session("SQL_ASCII"), b"any\xff\xfe\xc3bytes");
    other.end();
}

#[case]
fn sql_ascii_database_with_a_utf8_client(db: &Db) {
    let other = Other::create(db, "SQL_ASCII");
    assert_like_client(&mut other.session("UTF8"), UTF8);
    other.end();
}

#[case]
fn characters_that_the_client_has_not_are_no_concern_of_the_job(db: &Db) {
    let mut session = db.client().parameter("client_encoding", "LATIN1").connect();
    let pid = session.launch("select E'\\u20ac' || i from generate_series(1, 3) i");
    let query = format!("select string_agg(to_hex(ascii(a)), ' ') from pg_background_result({pid}) as (a text)");
    assert_eq!(session.rows(&query), ["20ac 20ac 20ac"]);
    let client = session.error("select E'\\u20ac'");
    let pid = session.launch("select E'\\u20ac'");
    assert_eq!(session.result_error(pid).brief(), client.brief());
    // An error that only the server sees: caught, and its text looked at.
    session.run(
        "do $o$ begin perform * from pg_background_result(pg_background_launch(\
         $i$ do $d$ begin raise exception '%', E'\\u20ac'; end $d$ $i$)) as (r text); \
         exception when others then raise notice '%', to_hex(ascii(sqlerrm)); end $o$",
    );
    assert_eq!(session.notice_texts(), ["NOTICE: 20ac"]);
}

#[case]
fn client_encoding_changed_between_launch_and_result(db: &Db) {
    let mut session = db.session();
    let text = "do $$ begin raise notice 'grün'; end $$; select 'grün'::text";
    let pid = session.launch(text);
    session.run("set client_encoding = 'LATIN1'");
    let read = format!("select * from pg_background_result({pid}) as (a text)");
    assert_eq!(rows(&session.run(&read)), [[Some(b"gr\xfcn".to_vec())]]);
    assert_eq!(session.notices()[0].fields[&'M'], b"gr\xfcn");
}

#[case]
fn copy_lines_are_in_the_databases_encoding(db: &Db) {
    let mut session = db.client().parameter("client_encoding", "LATIN1").connect();
    let pid = session.launch("copy (select E'gr\\u00fcn') to stdout");
    let query = format!("select a = E'gr\\u00fcn' from pg_background_result({pid}) as (a text)");
    assert_eq!(session.rows(&query), ["t"]);
    // In another encoding they would be no text of this database.
    let error = session.job_error("copy (select E'gr\\u00fcn') to stdout (encoding 'LATIN1')");
    assert_eq!(error.sqlstate(), "22021");
}

#[case]
fn the_log_has_the_databases_encoding(db: &Db) {
    let mut session = db.client().parameter("client_encoding", "LATIN1").connect();
    let mark = db.log_mark();
    let launched =
        session.ask_bytes(&[b"select pg_background_launch('select missing_".as_slice(), LATIN1, b"')"].concat());
    let pid: i32 = launched.last_rows().expect("a process id").text_rows()[0].parse().expect("a number");
    assert_eq!(session.result_error(pid).sqlstate(), "42703");
    db.cluster.wait_log(mark, "the error", |line| {
        line.pid == pid && line.text.starts_with("column \"missing_grün_ß\" does not exist")
    });
}

#[case]
fn a_notice_that_the_client_cannot_show_leaves_the_result(db: &Db) {
    let mut session = db.client().parameter("client_encoding", "LATIN1").connect();
    let text = "do $$ begin raise notice '%', E'\\u20ac'; end $$; select 5";
    let client = session.error(text);
    let pid = session.launch(text);
    let read = format!("select * from pg_background_result({pid}) as (n int)");
    assert_eq!(session.error(&read).brief(), client.brief());
    session.run("set client_encoding = 'UTF8'");
    assert_eq!(session.rows(&read), ["5"]);
}

#[case]
fn client_encoding_in_a_job_is_the_clients(db: &Db) {
    let mut session = db.client().parameter("client_encoding", "LATIN1").connect();
    assert_eq!(session.job("show client_encoding", "a text"), ["LATIN1"]);
    // Rows and messages of a job never leave the server: what it sets changes nothing for its reader.
    let text =
        "set client_encoding = 'WIN1252'; do $$ begin raise notice '%', E'gr\\u00fcn'; end $$; select E'gr\\u00fcn'";
    let pid = session.launch(text);
    let reply = session.run(&format!("select * from pg_background_result({pid}) as (a text)"));
    assert_eq!(rows(&reply), [[Some(b"gr\xfcn".to_vec())]]);
    assert_eq!(session.notices()[0].fields[&'M'], b"gr\xfcn");
    assert_eq!(session.value("show client_encoding"), "LATIN1");
}
