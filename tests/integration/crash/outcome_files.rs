//! Outcomes that the log could not be told before the server went down, and that are known all the same.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{
    crash, drain, load, set_server, wait_at_barrier, Batch, LOCK_LOG, NEVER_STARTED, RUNNING, SLEEPING, UNKNOWN,
};
use pg_background_mgr_tests::{case, wait_until, Cluster, Session, Stop, FOREVER, SLEEP_FOREVER};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

fn begin() -> (Cluster, Session) {
    let cluster = Cluster::start_with_extension(&[]);
    let mut session = cluster.session("postgres");
    session.run(
        "create table ran (a int); create table small as select 1 as a; create role weak login; \
         select pg_background_grant('weak')",
    );
    (cluster, session)
}

/// Files beside the log.
pub fn files(cluster: &Cluster) -> Vec<String> {
    let Ok(entries) = fs::read_dir(cluster.data().join("pg_background_mgr")) else { return Vec::new() };
    let names = entries.map(|entry| entry.expect("a file").file_name().into_string().expect("ASCII"));
    // Each worker that is there has one of this kind.
    names.filter(|name| !name.ends_with(".attempt")).collect()
}

/// The next worker makes rows of what was noted, which say the same, and forgets the notes.
pub fn assert_same_as_rows(cluster: &Cluster, session: &mut Session, batch: &Batch, states: &[&str]) {
    let everything = "concat_ws('|', pid, start_time_exec, end_time_exec, attempts, result, row_count, command_tag, \
                      sqlstate, message)";
    assert_eq!(batch.states(session), states);
    let before = batch.column(session, everything);
    Batch::launch(session, &["select 'next'"]).succeed(session);
    let open = |state: &&str| if *state == "lost" { "queued".to_owned() } else { (*state).to_owned() };
    assert_eq!(batch.written(session), states.iter().map(open).collect::<Vec<_>>());
    assert_eq!(batch.states(session), states);
    assert_eq!(batch.column(session, everything), before);
    wait_until("no files", || files(cluster).is_empty());
}

#[case]
fn work_committed_under_a_locked_log_is_known_after_a_crash() {
    let (cluster, mut session) = begin();
    let (mut locker, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    let text = format!("{}; insert into ran values (1)", barrier::WAIT);
    let batch = Batch::launch(&mut session, &[&text]);
    wait_at_barrier(&mut session, 1);
    locker.run(LOCK_LOG);
    barrier.open();
    wait_until("the job's work", || session.value("select count(*) from ran") == "1");
    let mut session = crash(&cluster);
    assert_eq!(session.value("select count(*) from ran"), "1");
    assert_eq!(batch.written(&mut session), ["queued"]);
    let told =
        "concat_ws('|', status, attempts, row_count, command_tag, start_time_exec < end_time_exec, pid > 0, message)";
    assert_eq!(batch.log(&mut session, 0, told), "succeeded|1|1|INSERT 0 1|t|t");
    let parent = &batch.parent;
    let summary = format!("select succeeded, lost, total from pg_background_batches where uuid_parent = '{parent}'");
    assert_eq!(session.rows(&summary), ["1|0|1"]);
    let followed = format!("select status from pg_background_monitor('{parent}', false)");
    assert_eq!(session.rows(&followed), ["succeeded"]);
    // It is nobody else's, however he asks.
    let state = "select s.status, s.result from background_mgr.state('{child}', {epoch}, null, true, false) as s"
        .replace("{child}", &batch.children[0])
        .replace("{epoch}", &session.value("select max(epoch) from background_mgr.log"));
    session.run("grant usage on schema background_mgr to weak");
    let mut weak = cluster.client("postgres").user("weak").connect();
    assert_eq!(session.rows(&state), ["succeeded|[{\"pg_advisory_xact_lock_shared\":\"\"}]"]);
    assert_eq!(weak.rows(&state), ["lost|∅"]);
    // Nor is it run again.
    let retry = session.error(&format!("select * from pg_background_retry('{parent}'::uuid)"));
    assert_eq!(retry.sqlstate(), "55000", "{retry}");
    assert_same_as_rows(&cluster, &mut session, &batch, &["succeeded"]);
    assert_eq!(session.value("select count(*) from ran"), "1");
}

#[case]
fn a_batch_that_is_in_no_table_is_known_with_its_ends_after_a_crash() {
    let (cluster, mut session) = begin();
    let mut locker = cluster.session("postgres");
    locker.run(LOCK_LOG);
    let texts = ["insert into ran values (1)", "select 1 / 0", "vacuum small", SLEEP_FOREVER, "select 5"];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential"}"#);
    let now = format!("select status from pg_background_monitor('{}', false, '0') order by uuid_child", batch.parent);
    let states = ["succeeded", "failed", "succeeded", "running", "queued"];
    wait_until("the jobs", || session.rows(&now) == states);
    // From then on it is noted that it has begun.
    wait_until("the job's statement", || session.value(SLEEPING) == "1");
    let mut session = crash(&cluster);
    assert_eq!(batch.written(&mut session), [""; 0]);
    let states = ["succeeded", "failed", "succeeded", "lost", "lost"];
    assert_eq!(batch.states(&mut session), states);
    let messages = ["∅", "division by zero", "∅", RUNNING, NEVER_STARTED];
    assert_eq!(batch.column(&mut session, "message"), messages);
    assert_same_as_rows(&cluster, &mut session, &batch, &states);
    // What has not succeeded can be run again, and only that.
    let again =
        session.rows(&format!("select uuid_child from pg_background_retry('{}'::uuid) order by 1", batch.children[1]));
    assert_eq!(again, [batch.children[1].clone()]);
    drain(&mut session);
    assert_eq!(batch.states(&mut session), states);
    assert_eq!(session.value("select count(*) from ran"), "1");
}

#[case]
fn a_job_begun_under_a_locked_log_is_not_said_to_have_never_started() {
    let (cluster, mut session) = begin();
    let (mut locker, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    // What was long is claimed alone.
    let texts = [barrier::WAIT, &format!("insert into ran values (2); select {FOREVER}"), "select 3"];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential"}"#);
    wait_at_barrier(&mut session, 1);
    locker.run(LOCK_LOG);
    barrier.open();
    wait_until("the second job", || session.value(SLEEPING) == "1");
    let mut session = crash(&cluster);
    assert_eq!(batch.column(&mut session, "message"), ["∅", RUNNING, NEVER_STARTED]);
    assert_same_as_rows(&cluster, &mut session, &batch, &["succeeded", "lost", "lost"]);
    assert_eq!(session.value("select count(*) from ran"), "0");
}

#[case]
fn work_that_was_not_committed_is_not_taken_for_done() {
    let (cluster, mut session) = begin();
    session.run(
        "create function hold() returns trigger language plpgsql as \
         $$ begin perform pg_advisory_xact_lock_shared(4711); return null; end $$; \
         create constraint trigger hold after insert on ran deferrable initially deferred \
         for each row execute function hold()",
    );
    let (mut locker, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    locker.run(LOCK_LOG);
    // Also where only a savepoint has written anything.
    let texts = ["insert into ran values (1)", "begin; savepoint a; insert into ran values (2); commit"];
    let batch = Batch::launch(&mut session, &texts);
    wait_until("both jobs at their commit", || {
        let waiting = "select count(*) from pg_locks where locktype = 'advisory' and objid = 4711 and not granted";
        session.value(waiting) == "2"
    });
    let noted = files(&cluster).iter().filter(|file| file.ends_with(".note2")).count();
    assert_eq!(noted, 2);
    let mut session = crash(&cluster);
    drop(barrier);
    session.run("drop trigger hold on ran");
    assert_eq!(batch.states(&mut session), ["lost", "lost"]);
    // Whoever gets the next numbers of transactions, they are not those of these jobs.
    for _ in 0..20 {
        session.run("create table other (a int); drop table other");
    }
    assert_eq!(batch.column(&mut session, "message"), [RUNNING, RUNNING]);
    assert_same_as_rows(&cluster, &mut session, &batch, &["lost", "lost"]);
    assert_eq!(session.value("select count(*) from ran"), "0");
    session.run(&format!("select * from pg_background_retry('{}'::uuid)", batch.parent));
    assert_eq!(batch.finish(&mut session), ["succeeded", "succeeded"]);
    assert_eq!(session.rows("select a from ran order by a"), ["1", "2"]);
    wait_until("no files", || files(&cluster).is_empty());
}

#[case]
fn a_shutdown_under_a_locked_log_forgets_nothing() {
    for how in [Stop::Fast, Stop::Immediate] {
        let (cluster, mut session) = begin();
        let mut locker = cluster.session("postgres");
        locker.run(LOCK_LOG);
        let batch = Batch::launch(&mut session, &["insert into ran values (1)"]);
        wait_until("the job's work", || session.value("select count(*) from ran") == "1");
        cluster.stop(how);
        cluster.start();
        let mut session = cluster.session("postgres");
        assert_same_as_rows(&cluster, &mut session, &batch, &["succeeded"]);
    }
}

/// Numbers and texts as they are in a note.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn number(mut self, mut number: u64) -> Self {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
        self
    }

    fn signed(self, number: i64) -> Self {
        self.number(((number << 1) ^ (number >> 63)) as u64)
    }

    fn text(self, text: &str) -> Self {
        let mut bytes = self.number(text.len() as u64);
        bytes.0.extend_from_slice(text.as_bytes());
        bytes
    }
}

/// A server goes down with the library of version 0.1.0 and comes up with a newer one.
#[case]
fn notes_of_the_first_version_are_read() {
    let (cluster, mut session) = begin();
    let mut locker = cluster.session("postgres");
    locker.run(LOCK_LOG);
    let texts =
        ["insert into ran values (1)", "select 1 / 0", SLEEP_FOREVER, &format!("select {FOREVER}, 2"), "select 5"];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential"}"#);
    wait_until("the job's statement", || session.value(SLEEPING) == "1");
    cluster.stop(Stop::Immediate);
    let directory = cluster.data().join("pg_background_mgr");
    let path = |child: usize, kind: &str| {
        let uuid = batch.children[child].replace('-', "");
        let left = files(&cluster);
        let first = left.iter().find(|name| name.ends_with(".note2")).expect("a note");
        let (place, _) = first.rsplit_once('-').expect("its name");
        directory.join(format!("{place}-{uuid}{kind}"))
    };
    // What each note of then said first.
    let head = |child: usize| {
        let path = path(child, ".note");
        let name = path.file_name().and_then(|name| name.to_str()).expect("ASCII").to_owned();
        let parts: Vec<&str> = name.split('-').collect();
        let epoch = u64::from_str_radix(parts[0], 16).expect("an epoch");
        let mut bytes = Bytes::default().signed(epoch as i64).number(parts[1].parse().expect("a database"));
        let uuid = batch.children[child].replace('-', "");
        bytes.0.extend((0..16).map(|at| u8::from_str_radix(&uuid[2 * at..2 * at + 2], 16).expect("digits")));
        bytes.number(10)
    };
    let started = 700_000_000_000_000;
    // State, process, start, end, attempts.
    let ended = |child: usize, state: u64| {
        let bytes = head(child).number(1).number(state).number(1).signed(4711).number(1).signed(started);
        bytes.number(1).signed(started + 1_000_000).number(1)
    };
    let sqlstate: i64 = b"22012".iter().rev().fold(0, |packed, byte| (packed << 6) + i64::from(byte - b'0'));
    let notes = [
        // Tags, rows, tag, no error; whatever transactions were committed.
        ended(0, 2)
            .number(1)
            .text(r#"["INSERT 0 1"]"#)
            .number(1)
            .signed(1)
            .number(1)
            .text("INSERT 0 1")
            .signed(0)
            .number(0)
            .number(0)
            .number(0)
            .number(0)
            .number(0),
        ended(1, 3)
            .number(0)
            .number(0)
            .number(0)
            .signed(sqlstate)
            .number(1)
            .text("division by zero")
            .number(0)
            .number(0)
            .number(0)
            .number(0),
        // No more than that it was begun.
        head(2).number(0),
        // It ended with a transaction that was not committed.
        ended(3, 2)
            .number(1)
            .text("[]")
            .number(1)
            .signed(0)
            .number(0)
            .signed(0)
            .number(0)
            .number(0)
            .number(0)
            .number(0)
            .number(1)
            .number(4_000_000_000),
    ];
    let written: Vec<_> = notes.into_iter().enumerate().map(|(child, note)| (path(child, ".note"), note.0)).collect();
    for entry in fs::read_dir(&directory).expect("its files") {
        let path = entry.expect("a file").path();
        if path.extension().is_some() {
            fs::remove_file(path).expect("a note or an attempt");
        }
    }
    for (path, note) in written {
        fs::write(&path, note).expect("a note");
        let directory = fs::metadata(&directory).expect("the directory");
        std::os::unix::fs::chown(&path, Some(directory.uid()), Some(directory.gid())).expect("a file of the server's");
    }
    cluster.start();
    let mut session = cluster.session("postgres");
    let states = ["succeeded", "failed", "lost", "lost", "lost"];
    assert_eq!(batch.states(&mut session), states);
    let messages = ["∅", "division by zero", UNKNOWN, RUNNING, NEVER_STARTED];
    assert_eq!(batch.column(&mut session, "message"), messages);
    let told =
        "concat_ws(' ', pid, extract(epoch from end_time_exec - start_time_exec)::int, attempts, row_count, sqlstate)";
    assert_eq!(batch.column(&mut session, told), ["4711 1 1 1", "4711 1 1 22012", "0", "4711 1", "0"]);
    assert_same_as_rows(&cluster, &mut session, &batch, &states);
}

#[case]
fn a_note_goes_when_the_log_says_more() {
    let (cluster, mut session) = begin();
    let (mut locker, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    let text = format!("{}; insert into ran values (1)", barrier::WAIT);
    let jobs = format!(
        r#"["{text}", {{"query": "{}; select 1 / 0", "max_attempts": 2, "retry_delay": "10ms"}}]"#,
        barrier::WAIT
    );
    let first = Batch::launch_json(&mut session, &jobs);
    wait_at_barrier(&mut session, 2);
    locker.run(LOCK_LOG);
    let second = Batch::launch(&mut session, &["insert into ran values (2)", "select 1 / 0", "vacuum small"]);
    barrier.open();
    wait_until("the jobs' work", || session.value("select count(*) from ran") == "2");
    for (batch, states) in [(&first, "failed succeeded"), (&second, "failed succeeded succeeded")] {
        let followed = format!("select status from pg_background_monitor('{}', false) order by 1", batch.parent);
        assert_eq!(session.rows(&followed).join(" "), states);
    }
    assert!(files(&cluster).iter().any(|file| file.ends_with(".note2")));
    locker.run("rollback");
    wait_until("no files", || files(&cluster).is_empty());
    assert_eq!(first.written(&mut session), ["succeeded", "failed"]);
    assert_eq!(second.written(&mut session), ["succeeded", "failed", "succeeded"]);
    assert_eq!(first.column(&mut session, "attempts"), ["1", "2"]);
}

#[case]
fn who_may_read_the_data_directory_may_read_the_files() {
    for (of_directory, of_file) in [(0o700, 0o600), (0o750, 0o640)] {
        let cluster = Cluster::create(&[]);
        let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        fs::set_permissions(cluster.data(), Permissions::from_mode(of_directory)).expect("its own directory");
        cluster.start();
        let mut session = cluster.session("postgres");
        session.run("create extension pg_background_mgr; create table ran (a int)");
        let mut locker = cluster.session("postgres");
        locker.run(LOCK_LOG);
        let batch = Batch::launch(&mut session, &["insert into ran values (1)"]);
        let followed = format!("select status from pg_background_monitor('{}', false)", batch.parent);
        assert_eq!(session.rows(&followed), ["succeeded"]);
        let directory = cluster.data().join("pg_background_mgr");
        assert_eq!(mode(&directory), of_directory);
        let files = files(&cluster);
        assert_eq!(files.len(), 2, "the batch, and a note: {files:?}");
        files.iter().for_each(|file| assert_eq!(mode(&directory.join(file)), of_file, "{file}"));
    }
}

/// A server that goes down with a batch that is in no table.
fn leave_behind(cluster: &Cluster) -> Batch {
    let mut session = cluster.session("postgres");
    load(&mut session);
    // What must be on disk is brought there.
    cluster.configure(&[("fsync", "on")]);
    set_server(cluster, &mut session, "pg_background_mgr.max_workers", "1");
    session.run("create database other");
    let mut other = cluster.session("other");
    other.run("create extension pg_background_mgr");
    let _gate = Barrier::close(cluster.session("other"));
    Batch::launch(&mut other, &[barrier::WAIT]);
    wait_at_barrier(&mut other, 1);
    let batch = Batch::launch(&mut session, &["insert into ran values (1)"]);
    assert_eq!(batch.written(&mut session), [""; 0]);
    cluster.stop(Stop::Immediate);
    batch
}

#[case]
fn a_standby_does_not_show_what_it_was_copied_with() {
    let (primary, session) = begin();
    drop(session);
    let batch = leave_behind(&primary);
    // A copy is made of one that is down in good order.
    primary.configure(&[("pg_background_mgr.max_workers", "0")]);
    primary.start();
    let standby = Cluster::start_standby(&primary);
    assert_eq!(files(&standby).len(), 1);
    let (mut session, mut copy) = (primary.session("postgres"), standby.session("postgres"));
    assert_eq!(batch.states(&mut session), ["lost"]);
    assert_eq!(batch.states(&mut copy), [""; 0]);
    assert_eq!(copy.value("select count(*) from pg_background_jobs"), "0");
    assert_eq!(copy.error(&format!("select * from pg_background_monitor('{}')", batch.parent)).sqlstate(), "42704");
    // What is in the primary's log is in that of the standby.
    set_server(&primary, &mut session, "pg_background_mgr.max_workers", "2");
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    wait_until("no files", || files(&primary).is_empty());
    wait_until("its row", || !batch.written(&mut copy).is_empty());
    copy.run("select pg_promote()");
    wait_until("the end of recovery", || !copy.holds("select pg_is_in_recovery()"));
    assert_eq!(batch.states(&mut copy), ["lost"]);
    set_server(&standby, &mut copy, "pg_background_mgr.max_workers", "2");
    Batch::launch(&mut copy, &["select 1"]).succeed(&mut copy);
    wait_until("no files", || files(&standby).is_empty());
    assert_eq!(batch.column(&mut copy, "status || ' ' || message"), [format!("lost {NEVER_STARTED}")]);
}

#[case]
fn what_the_log_would_not_keep_does_not_come_back() {
    let (cluster, session) = begin();
    drop(session);
    let batch = leave_behind(&cluster);
    cluster.configure(&[("pg_background_mgr.log_retention", "2s")]);
    let launched = std::time::Instant::now();
    wait_until("its time", || launched.elapsed() > std::time::Duration::from_secs(3));
    cluster.start();
    let mut session = cluster.session("postgres");
    assert_eq!(batch.states(&mut session), [""; 0]);
    Batch::launch(&mut session, &["select 1"]).wait(&mut session);
    wait_until("no files", || files(&cluster).is_empty());
    assert_eq!(batch.written(&mut session), [""; 0]);
}

#[case]
fn a_batch_that_cannot_be_written_down_is_refused() {
    let (cluster, mut session) = begin();
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    let directory = cluster.data().join("pg_background_mgr");
    fs::set_permissions(&directory, Permissions::from_mode(0o500)).expect("the directory");
    for option in ["true", "false"] {
        let call =
            format!("select * from pg_background_launch_num('insert into ran values (1)', p_monitor => {option})");
        let error = session.error(&call);
        assert_eq!(error.sqlstate(), "58030", "{error}");
        assert!(error.message().starts_with("could not write file of accepted jobs"), "{error}");
    }
    assert_eq!(session.value("select count(*) from log_background"), "1");
    assert_eq!(session.value("select count(*) from pg_background_jobs"), "1");
    fs::set_permissions(&directory, Permissions::from_mode(0o700)).expect("the directory");
    wait_until("no files", || files(&cluster).is_empty());
    Batch::launch(&mut session, &["insert into ran values (2)"]).succeed(&mut session);
    assert_eq!(session.rows("table ran"), ["2"]);
}
