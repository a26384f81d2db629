//! Results whose reading is interrupted: each is left to be read again, whole.

use pg_background_mgr_tests::cluster::is_alive;
use pg_background_mgr_tests::{case, wait_until, Cluster, Session};

/// A job of `rows` rows that stops at `stops` places until the test lets it go on.
struct Halting {
    reader: Session,
    watcher: Session,
    pid: i32,
    places: Vec<usize>,
    rows: usize,
}

impl Halting {
    #[track_caller]
    fn launch(cluster: &Cluster, work_mem: &str, rows: usize, stops: usize) -> Self {
        let mut reader = cluster.session("postgres");
        let mut watcher = cluster.session("postgres");
        let places: Vec<usize> = (1..=stops).map(|stop| rows * stop / (stops + 1)).collect();
        let listed = places.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        watcher.run(&format!("select pg_advisory_lock(place) from unnest(array[{listed}]) place"));
        reader.run(&format!("set work_mem = '{work_mem}'"));
        let pid = reader.launch(&format!(
            "select i, md5(i::text) from generate_series(1, {rows}) i \
             where i not in ({listed}) or pg_advisory_xact_lock_shared(i)::text = ''"
        ));
        Halting { reader, watcher, pid, places, rows }
    }

    /// Reads until the job has stopped at its next place and the reader has taken what came before it; cancels the
    /// read.
    #[track_caller]
    fn cancel_at(&mut self, place: usize, columns: &str) {
        let read = self.read(columns);
        self.reader.send(&read);
        let stopped = format!(
            "select count(*) from pg_locks where pid = {} and locktype = 'advisory' and objid = {place} \
             and not granted",
            self.pid
        );
        wait_until("the job has stopped", || self.watcher.value(&stopped) == "1");
        let waiting = format!(
            "select wait_event_type in ('Extension', 'IPC') from pg_stat_activity where pid = {}",
            self.reader.pid()
        );
        wait_until("the reader waits for more", || self.watcher.rows(&waiting) == ["t"]);
        self.reader.canceller().cancel();
        let error = self.reader.finish(&read).error.expect("an error");
        assert_eq!(error.sqlstate(), "57014", "{error}");
    }

    fn let_go(&mut self, place: usize) {
        assert!(self.watcher.holds(&format!("select pg_advisory_unlock({place})")));
    }

    fn read(&self, columns: &str) -> String {
        format!(
            "select count(*), sum(a::bigint), bool_and(b::text = md5(a::text)) \
             from pg_background_result({}) as ({columns})",
            self.pid
        )
    }

    #[track_caller]
    fn assert_whole(&mut self, columns: &str) {
        let read = self.read(columns);
        let rows = self.rows;
        assert_eq!(self.reader.rows(&read), [format!("{rows}|{}|t", rows * (rows + 1) / 2)]);
        assert_eq!(self.reader.error(&read).sqlstate(), "42704", "it has been read now");
    }
}

const TYPED: &str = "a int, b text";
const AS_TEXT: &str = "a text, b text";

/// The names of the temporary files of a cluster.
fn temporary_files(cluster: &Cluster) -> Vec<String> {
    let entries = std::fs::read_dir(cluster.data().join("base/pgsql_tmp")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[track_caller]
fn assert_no_temporary_files(cluster: &Cluster) {
    let mut left = Vec::new();
    wait_until("no temporary file is left", || {
        left = temporary_files(cluster);
        left.is_empty()
    });
}

/// Three cancels, at a quarter, at half and at three quarters, with a mismatch after each; then the whole.
#[track_caller]
fn assert_survives_cancels(work_mem: &str, columns: &str, is_spilled: bool) {
    let cluster = Cluster::start_with_extension(&[]);
    let before = cluster.baseline();
    let mut job = Halting::launch(&cluster, work_mem, 1_000_000, 3);
    for place in job.places.clone() {
        job.cancel_at(place, columns);
        let names = temporary_files(&cluster);
        let own = format!("pgsql_tmp{}.", job.reader.pid());
        assert_eq!(names.iter().any(|name| name.starts_with(&own)), is_spilled, "{names:?}");
        for mismatch in ["a int", "a uuid, b text", "a int, b text, c int"] {
            let error = job.reader.error(&format!("select * from pg_background_result({}) as ({mismatch})", job.pid));
            assert_eq!(error.sqlstate(), "42804", "{error}");
        }
        job.let_go(place);
    }
    job.assert_whole(columns);
    drop(job);
    cluster.assert_sound(&before);
    assert_no_temporary_files(&cluster);
}

#[case]
fn a_million_rows_in_memory_are_read_again_after_each_cancel() {
    assert_survives_cancels("1GB", TYPED, false);
}

#[case]
fn a_million_rows_in_a_file_are_read_again_after_each_cancel() {
    assert_survives_cancels("64kB", TYPED, true);
}

#[case]
fn a_million_rows_read_as_text_are_read_again_after_each_cancel() {
    assert_survives_cancels("64kB", AS_TEXT, true);
}

#[case]
fn a_column_list_that_changes_between_reads_works() {
    let cluster = Cluster::start_with_extension(&[]);
    let before = cluster.baseline();
    for work_mem in ["64kB", "1GB"] {
        let mut job = Halting::launch(&cluster, work_mem, 200_000, 4);
        let lists = [TYPED, AS_TEXT, "a int, b varchar", TYPED];
        for (place, columns) in job.places.clone().into_iter().zip(lists) {
            job.cancel_at(place, columns);
            job.let_go(place);
        }
        job.assert_whole(AS_TEXT);
    }
    cluster.assert_sound(&before);
    assert_no_temporary_files(&cluster);
}

/// Asserts that each of these reads takes longer than it may.
#[track_caller]
fn assert_no_time_for(reader: &mut Session, reads: &[String]) {
    reader.run("set statement_timeout = '20ms'");
    for read in reads {
        assert_eq!(reader.error(read).sqlstate(), "57014");
    }
    reader.run("reset statement_timeout");
}

/// The second cancel comes while the reader is busy with what the first one left.
#[case]
fn a_cancel_while_kept_rows_are_read_keeps_them() {
    let cluster = Cluster::start_with_extension(&[]);
    let before = cluster.baseline();
    for work_mem in ["64kB", "1GB"] {
        let mut job = Halting::launch(&cluster, work_mem, 300_000, 1);
        let place = job.places[0];
        job.cancel_at(place, TYPED);
        let reads = [TYPED, AS_TEXT, TYPED].map(|columns| job.read(columns));
        assert_no_time_for(&mut job.reader, &reads);
        job.let_go(place);
        job.assert_whole(TYPED);
    }
    cluster.assert_sound(&before);
    assert_no_temporary_files(&cluster);
}

/// All rows are there already: they were put back when the last one did not fit.
#[case]
fn a_cancel_of_a_read_that_waits_for_nothing_keeps_the_rows() {
    let cluster = Cluster::start_with_extension(&[]);
    let before = cluster.baseline();
    for work_mem in ["64kB", "1GB"] {
        let mut reader = cluster.session("postgres");
        reader.run(&format!("set work_mem = '{work_mem}'"));
        let last = "case when i = 1000000 then 'long' else 'x' end";
        let pid = reader.launch(&format!("select {last} from generate_series(1, 1000000) i"));
        let read = |column: &str| format!("select count(*) from pg_background_result({pid}) as (a {column})");
        assert_eq!(reader.error(&read("varchar(3)")).sqlstate(), "22001");
        assert_no_time_for(&mut reader, &[read("text"), read("text"), read("text")]);
        assert_eq!(reader.rows(&read("text")), ["1000000"]);
    }
    cluster.assert_sound(&before);
    assert_no_temporary_files(&cluster);
}

#[case]
fn a_session_ends_with_a_result_put_back() {
    let cluster = Cluster::start_with_extension(&[]);
    let before = cluster.baseline();
    let mark = cluster.log_mark();
    for work_mem in ["64kB", "1GB"] {
        for columns in [TYPED, AS_TEXT] {
            let mut job = Halting::launch(&cluster, work_mem, 200_000, 1);
            let place = job.places[0];
            job.cancel_at(place, columns);
            let Halting { reader, mut watcher, .. } = job;
            let launcher = reader.pid();
            drop(reader);
            wait_until("the end of the session", || !is_alive(launcher));
            watcher.run(&format!("select pg_advisory_unlock({place})"));
            cluster.wait_no_workers();
        }
    }
    cluster.assert_sound(&before);
    assert_no_temporary_files(&cluster);
    assert_no_crash(&cluster, mark);
}

#[track_caller]
fn assert_no_crash(cluster: &Cluster, mark: pg_background_mgr_tests::server_log::LogMark) {
    let crashes: Vec<String> = cluster
        .log_since(mark)
        .into_iter()
        .map(|line| line.text)
        .filter(|text| text.contains("terminated by signal") || text.contains("panicked"))
        .collect();
    assert!(crashes.is_empty(), "{crashes:?}");
}

#[case]
fn a_terminated_session_ends_with_a_result_put_back() {
    let cluster = Cluster::start_with_extension(&[]);
    let before = cluster.baseline();
    let mark = cluster.log_mark();
    let mut job = Halting::launch(&cluster, "64kB", 200_000, 1);
    let place = job.places[0];
    job.cancel_at(place, AS_TEXT);
    job.watcher.run(&format!("select pg_terminate_backend({})", job.reader.pid()));
    wait_until("the end of the session", || job.reader.is_closed());
    job.let_go(place);
    cluster.wait_no_workers();
    cluster.assert_sound(&before);
    assert_no_temporary_files(&cluster);
    assert_no_crash(&cluster, mark);
}

#[case]
fn a_result_put_back_is_given_up() {
    let cluster = Cluster::start_with_extension(&[]);
    let before = cluster.baseline();
    for columns in [TYPED, AS_TEXT] {
        let mut job = Halting::launch(&cluster, "64kB", 200_000, 1);
        let place = job.places[0];
        job.cancel_at(place, columns);
        job.reader.run(&format!("select pg_background_detach({})", job.pid));
        // The session goes on without its files, the job without a reader.
        let own = format!("pgsql_tmp{}.", job.reader.pid());
        wait_until("the session has no temporary file", || {
            !temporary_files(&cluster).iter().any(|name| name.starts_with(&own))
        });
        job.let_go(place);
        cluster.wait_no_workers();
    }
    cluster.assert_sound(&before);
    assert_no_temporary_files(&cluster);
}

/// The result was in the hands of the statement: what becomes of the statement is its own affair.
#[case]
fn an_error_in_the_statement_that_reads_has_read() {
    let cluster = Cluster::start_with_extension(&[]);
    let before = cluster.baseline();
    let mut session = cluster.session("postgres");
    session.run("set work_mem = '64kB'");
    let pid = session.launch("select i from generate_series(1, 100000) i");
    let query = format!("select 1 / (a - 50000) from pg_background_result({pid}) as (a int)");
    assert_eq!(session.error(&query).sqlstate(), "22012");
    assert_eq!(session.error(&query).sqlstate(), "42704");
    drop(session);
    cluster.assert_sound(&before);
    assert_no_temporary_files(&cluster);
}

/// Without the quotes that some versions have.
fn exceeded() -> (String, String) {
    ("53400".to_owned(), "temporary file size exceeds temp_file_limit (1024kB)".to_owned())
}

#[case]
fn temp_file_limit_in_the_job_is_the_jobs_error() {
    let cluster = Cluster::start_with_extension(&[]);
    let before = cluster.baseline();
    let mut session = cluster.session("postgres");
    session.run("create table t (a int); set work_mem = '64kB'; set temp_file_limit = '1MB'");
    let texts = [
        "insert into t values (1); select i, md5(i::text) from generate_series(1, 1000000) i",
        // Rows that are held back, for another statement may give some.
        "insert into t values (1); select i, md5(i::text) from generate_series(1, 1000000) i; select 1, 'x'::text",
        // A file of the statement's own.
        "insert into t values (1); select count(*)::int, max(b) from (select md5(i::text) as b \
         from generate_series(1, 1000000) i order by 1) s",
    ];
    for text in texts {
        let pid = session.launch(text);
        wait_until("the end of the job", || !is_alive(pid));
        let error = session.error(&format!("select * from pg_background_result({pid}) as (a int, b text)"));
        assert_eq!((error.sqlstate(), error.message().replace('"', "")), exceeded(), "{text}");
    }
    assert_eq!(session.value("select count(*) from t"), "0");
    drop(session);
    cluster.assert_sound(&before);
    assert_no_temporary_files(&cluster);
}

#[case]
fn temp_file_limit_in_the_reader_leaves_the_result() {
    let cluster = Cluster::start_with_extension(&[]);
    let before = cluster.baseline();
    for columns in [TYPED, AS_TEXT] {
        let mut job = Halting::launch(&cluster, "64kB", 300_000, 1);
        let place = job.places[0];
        job.let_go(place);
        job.reader.run("set temp_file_limit = '1MB'");
        for _ in 0..2 {
            let read = job.read(columns);
            let error = job.reader.error(&read);
            // Raised by the server for its own file, or by the extension before there is one too many.
            assert_eq!((error.sqlstate(), error.message().replace('"', "")), exceeded(), "{columns}");
        }
        job.reader.run("reset temp_file_limit");
        job.assert_whole(columns);
    }
    cluster.assert_sound(&before);
    assert_no_temporary_files(&cluster);
}
