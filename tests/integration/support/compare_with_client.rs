//! Compares a job with a client that sends the same text.

use pg_background_mgr_tests::cluster::is_alive;
use pg_background_mgr_tests::{wait_until, Column, Db, Reply, ServerError, Session};

/// Runs `text` as a client and as a job, each in a fresh session and schema prepared by `setup`, and compares what they
/// answer (rows or tags, errors, notices) and what `probe` finds afterwards.
#[track_caller]
pub fn assert_like_client(db: &Db, setup: &str, text: &str, probe: &str) {
    let mut client = stage(db, setup);
    let reply = client.ask(text);
    let notices: Vec<_> = client.notices().iter().map(comparable_notice).collect();
    // What a client leaves unfinished ends with its session.
    drop(client);
    let found = observe(db, probe);

    let mut launcher = stage(db, setup);
    let pid = launcher.launch(text);
    // Its own wait for the job must not run into what the job is tested with.
    launcher.run("set statement_timeout = 0");
    if text.contains("concurrently") {
        // It would wait for the snapshot of the statement that waits for it.
        wait_until("the end of the job's process", || !is_alive(pid));
    }
    let columns = column_list(&mut launcher, &reply);
    let read = launcher.ask(&format!("select * from public.pg_background_result({pid}) as ({columns})"));
    let job_notices: Vec<_> = launcher.notices().iter().map(comparable_notice).collect();
    drop(launcher);

    match (&reply.error, &read.error) {
        (Some(expected), Some(error)) => assert_same_error(expected, error, text),
        (None, None) => assert_eq!(rows(&read), expected_rows(&reply), "rows of: {text}"),
        (expected, error) => panic!("{text}\n  client: {expected:?}\n  job: {error:?}"),
    }
    assert_eq!(job_notices, notices, "notices of: {text}");
    assert_eq!(observe(db, probe), found, "{probe}, after: {text}");
}

/// The error of a job is the client's in every field, but that its position is in an internal query: the job's text.
#[track_caller]
pub fn assert_same_error(client: &ServerError, job: &ServerError, text: &str) {
    let mut expected = client.clone();
    if let Some(position) = expected.fields.remove(&'P') {
        expected.fields.insert('p', position);
        expected.fields.insert('q', text.as_bytes().to_vec());
    }
    let mut got = job.clone();
    for error in [&mut expected, &mut got] {
        // Places in the server's source.
        error.fields.retain(|letter, _| !matches!(letter, 'F' | 'L' | 'R'));
    }
    assert_eq!(got, expected, "the error of: {text}");
}

fn stage(db: &Db, setup: &str) -> Session {
    let mut session = db.session();
    session.run("set client_min_messages = warning; drop schema if exists stage cascade; create schema stage");
    session.run("reset client_min_messages");
    session.run("set search_path = stage, public");
    if !setup.is_empty() {
        session.run(setup);
    }
    session.notices();
    session
}

fn observe(db: &Db, probe: &str) -> Vec<String> {
    if probe.is_empty() {
        return Vec::new();
    }
    let mut session = db.session();
    session.run("set search_path = stage, public");
    session.rows(probe)
}

pub fn comparable_notice(notice: &ServerError) -> Vec<Option<String>> {
    "VCMDHW".chars().map(|letter| notice.field(letter)).collect()
}

/// The column list that reads what a client got.
fn column_list(session: &mut Session, reply: &Reply) -> String {
    let Some(columns) = reply.last_rows().and_then(|statement| statement.columns.as_ref()) else {
        return "result text".to_owned();
    };
    let definition = |(number, column): (usize, &Column)| {
        let query = format!("select format_type({}, {})", column.type_oid, column.type_modifier);
        let name = match session.value(&query).as_str() {
            // Pseudo-types cannot be in a column list.
            "record" | "record[]" | "void" | "cstring" => "text".to_owned(),
            name => name.to_owned(),
        };
        format!("c{number} {name}")
    };
    columns.iter().enumerate().map(definition).collect::<Vec<_>>().join(", ")
}

fn rows(reply: &Reply) -> Vec<String> {
    reply.last_rows().map(|statement| statement.text_rows()).unwrap_or_default()
}

fn expected_rows(reply: &Reply) -> Vec<String> {
    match reply.last_rows() {
        Some(statement) => statement.text_rows(),
        None => reply.tags(),
    }
}
