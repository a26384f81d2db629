//! Files that a dead server left and that cannot be read, or are of the versions before.

use crate::crash::outcome_files::{assert_same_as_rows, files};
use crate::support::batch::{Batch, LOCK_LOG, NEVER_STARTED, RUNNING, SLEEPING, UNKNOWN};
use pg_background_mgr_tests::server_log::LogMark;
use pg_background_mgr_tests::{case, wait_until, Cluster, Stop, SLEEP_FOREVER};
use std::fs;
use std::path::PathBuf;

/// Length of the header of a file.
const HEADER: usize = 16;

/// A server that has crashed under a locked log: its one worker ran `ended`, the last job of which has not ended; the
/// other batches waited.
struct Crashed {
    cluster: Cluster,
    ended: Batch,
    waiting: Batch,
    broken: Batch,
}

const STATES: [&str; 4] = ["succeeded", "failed", "succeeded", "lost"];

fn crashed() -> Crashed {
    let settings = [("pg_background_mgr.max_workers", "1"), ("pg_background_mgr.worker_idle_timeout", "0")];
    let cluster = Cluster::start_with_extension(&settings);
    let mut session = cluster.session("postgres");
    session.run("create table ran (a int); create table small as select 1 as a");
    let mut locker = cluster.session("postgres");
    locker.run(LOCK_LOG);
    let texts = ["insert into ran values (1)", "select 1 / 0", "vacuum small", SLEEP_FOREVER];
    let ended = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential"}"#);
    wait_until("the last job's statement", || session.value(SLEEPING) == "1");
    let [waiting, broken] = ["select 2", "select 3"].map(|text| Batch::launch(&mut session, &[text]));
    cluster.stop(Stop::Immediate);
    Crashed { cluster, ended, waiting, broken }
}

impl Crashed {
    fn paths(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.cluster.data().join("pg_background_mgr")).expect("its files");
        entries.map(|entry| entry.expect("a file").path()).collect()
    }

    /// Returns the one file whose name ends so.
    fn path(&self, end: &str) -> PathBuf {
        let mut paths: Vec<_> = self.paths();
        paths.retain(|path| path.to_str().expect("ASCII").ends_with(end));
        assert_eq!(paths.len(), 1, "{end}");
        paths.remove(0)
    }

    fn of_job(&self, batch: &Batch, child: usize, suffix: &str) -> PathBuf {
        self.path(&format!("-{}{suffix}", batch.children[child].replace('-', "")))
    }
}

/// Returns which files the server could not read, as it says: their names, and why.
fn reported(cluster: &Cluster, mark: LogMark) -> Vec<(String, String)> {
    let lines = cluster.log_since(mark);
    let mut reported = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(rest) = line.text.strip_prefix("could not read file \"pg_background_mgr/") else { continue };
        assert_eq!(line.kind, "LOG");
        assert!(lines[at + 1].kind == "HINT" && lines[at + 1].text.starts_with("The file is kept"), "{lines:?}");
        let (name, reason) = rest.split_once("\" of pg_background_mgr: ").expect("a reason");
        reported.push((name.to_owned(), reason.to_owned()));
    }
    reported.sort();
    reported
}

#[case]
fn a_file_that_cannot_be_read_is_kept_and_told_once() {
    let crashed = crashed();
    let Crashed { cluster, ended, waiting, broken } = &crashed;
    let batch = crashed.of_job(broken, 0, "");
    let [failed, vacuum] = [1, 2].map(|child| crashed.of_job(ended, child, ".note2"));
    let attempt = crashed.path(".attempt");
    let intact = [&batch, &failed, &vacuum, &attempt].map(|path| (path, fs::read(path).expect("a file")));
    let length = intact[0].1.len();
    let mut of_future = intact[2].1.clone();
    of_future[8] = 99;
    let damaged = [
        (&batch, intact[0].1[..length / 2].to_vec(), format!("read {} of {length} bytes", length / 2)),
        (&failed, b"not a file of ours, but long enough".to_vec(), "invalid content".to_owned()),
        (&vacuum, of_future, "format version 99 is not known".to_owned()),
        // As after a crash of the operating system.
        (&attempt, vec![0; 64], "invalid content".to_owned()),
    ];
    for (path, bytes, _) in &damaged {
        fs::write(path, bytes).expect("a damaged file");
    }
    // Of a worker that died in the moment in which it made its file.
    let (head, _) = attempt.to_str().and_then(|path| path.rsplit_once('-')).expect("its name");
    let empty = PathBuf::from(format!("{head}-{}.attempt", "0".repeat(32)));
    fs::write(&empty, "").expect("an empty file");
    let mut expected: Vec<_> = damaged
        .iter()
        .map(|(path, _, reason)| {
            (path.file_name().and_then(|name| name.to_str()).expect("ASCII").to_owned(), reason.clone())
        })
        .collect();
    expected.sort();

    for _ in 0..2 {
        let mark = cluster.log_mark();
        cluster.start();
        let mut session = cluster.session("postgres");
        // Each has a worker of its own, which looks for files first.
        for _ in 0..3 {
            Batch::launch(&mut session, &["select 'next'"]).succeed(&mut session);
            cluster.wait_no_workers();
        }
        assert_eq!(reported(cluster, mark), expected);
        for (path, bytes, _) in &damaged {
            assert_eq!(&fs::read(path).expect("the file is kept"), bytes);
        }
        assert!(!empty.exists());
        assert_eq!(crashed.paths().len(), damaged.len());
        assert_eq!(ended.written(&mut session), ["succeeded", "queued", "queued", "queued"]);
        assert_eq!(ended.states(&mut session), ["succeeded", "lost", "lost", "lost"]);
        assert_eq!(ended.column(&mut session, "coalesce(message, '')"), ["", UNKNOWN, UNKNOWN, RUNNING]);
        assert_eq!(waiting.states(&mut session), ["lost"]);
        assert_eq!(broken.states(&mut session), [""; 0]);
        cluster.stop(Stop::Fast);
    }

    for (path, bytes) in &intact {
        fs::write(path, bytes).expect("an intact file");
    }
    cluster.start();
    let mut session = cluster.session("postgres");
    assert_same_as_rows(cluster, &mut session, ended, &STATES);
    assert_eq!(broken.column(&mut session, "message"), [NEVER_STARTED]);
    wait_until("no files", || crashed.paths().is_empty());
}

/// A server goes down with a library that wrote no headers and comes up with a newer one.
#[case]
fn files_without_header_are_read() {
    let crashed = crashed();
    let Crashed { cluster, ended, waiting, broken } = &crashed;
    // That its attempt had begun is in the file of the worker, too.
    fs::remove_file(crashed.of_job(ended, 3, ".note2")).expect("its outcome file");
    for path in crashed.paths() {
        let bytes = fs::read(&path).expect("a file");
        assert!(bytes.starts_with(b"pgbm"), "{path:?}");
        fs::write(&path, &bytes[HEADER..]).expect("a file without header");
    }
    let mark = cluster.log_mark();
    cluster.start();
    let mut session = cluster.session("postgres");
    assert_eq!(ended.column(&mut session, "message"), ["∅", "division by zero", "∅", RUNNING]);
    assert_same_as_rows(cluster, &mut session, ended, &STATES);
    for batch in [waiting, broken] {
        assert_eq!(batch.column(&mut session, "message"), [NEVER_STARTED]);
    }
    assert_eq!(reported(cluster, mark), []);
    assert_eq!(files(cluster), [""; 0]);
}
