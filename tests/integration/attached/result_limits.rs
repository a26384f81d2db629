//! Bounds of the results of a session that nobody reads: how many, in segments, in shared memory.

use crate::support::barrier::{self, Barrier};
use pg_background_mgr_tests::{case, wait_until, Cluster, Db, ServerError, Session};

/// Launches a job with a queue of so many bytes.
fn launch_sized(session: &mut Session, sql: &str, bytes: i64) -> i32 {
    let call = format!("select pg_background_launch($sql${sql}$sql$, {bytes})");
    i32::try_from(session.number(&call)).expect("a process id")
}

const TOO_MANY: &str = "too many unread results of background jobs in this session";

/// Gives a result that is too large for the session's own memory, and fits in a queue of [`LARGE_QUEUE`].
const LARGE: &str = "select repeat('x', 70000)";
const LARGE_QUEUE: i64 = 100_000;

fn launch_large(session: &mut Session) -> i32 {
    launch_sized(session, LARGE, LARGE_QUEUE)
}

#[track_caller]
fn read_large(session: &mut Session, pid: i32) {
    let length = format!("select length(a) from pg_background_result({pid}) as (a text)");
    assert_eq!(session.value(&length), "70000");
}

/// Launches 1,000 times, as often as there is a process, or until there are too many results; gives the number of
/// launches.
fn launch_unread(session: &mut Session, launch: &str) -> i64 {
    session.run("create temp table launched (pid int)");
    session.run(&format!(
        "do $do$ declare n int := 0; begin while n < 1000 loop begin \
         insert into launched values ({launch}); n := n + 1; \
         exception when insufficient_resources then exit when sqlerrm = '{TOO_MANY}'; \
         if sqlerrm <> 'could not register background process' then raise; end if; perform pg_sleep(0.01); \
         end; end loop; end $do$"
    ));
    session.number("select count(*) from launched")
}

/// The bound that a session has by default.
fn default_bound(session: &mut Session) -> i64 {
    let version = session.number("show server_version_num");
    let autovacuum = if version >= 180_000 { "autovacuum_worker_slots" } else { "autovacuum_max_workers" };
    let configured = session.number(&format!(
        "select sum(setting::int) from pg_settings \
         where name in ('max_connections', '{autovacuum}', 'max_worker_processes', 'max_wal_senders')"
    ));
    // The launcher of autovacuum, and the worker that synchronizes slots, count as backends.
    let special = if version >= 170_000 { 2 } else { 1 };
    (64 + 5 * (configured + special)) / 8
}

#[case]
fn a_session_that_never_reads_leaves_the_segments_to_others() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "0")]);
    let baseline = cluster.baseline();
    let before = cluster.segments().len();
    let (mut session, mut other) = (cluster.session("postgres"), cluster.session("postgres"));
    session.run("create role plain login; select pg_background_grant('plain')");
    let mut plain = cluster.client("postgres").user("plain").connect();
    // Small ones go to the session's memory.
    assert_eq!(launch_unread(&mut plain, "pg_background_launch('select 1')"), 1000);
    assert!(cluster.segments().len() < 100, "{:?}", cluster.segments());
    cluster.wait_no_workers();
    let last = plain.launch("select 1");
    cluster.wait_no_workers();
    assert!(cluster.segments().len() <= before + 10, "{:?}", cluster.segments());
    let sum = "select sum(n) from launched, lateral pg_background_result(pid) as (n int)";
    assert_eq!(plain.value(sum), "1000");
    assert_eq!(plain.result(last, "n int"), ["1"]);
    // Of others there is a bound, and others launch beside them.
    plain.run("drop table launched");
    let launch = format!("pg_background_launch($$ {LARGE} $$, {LARGE_QUEUE})");
    assert_eq!(launch_unread(&mut plain, &launch), default_bound(&mut session));
    assert_eq!(plain.error(&format!("select {launch}")).message(), TOO_MANY);
    assert_eq!(other.job("select 42", "n int"), ["42"]);
    plain.run("discard all");
    assert_eq!(plain.job("select 43", "n int"), ["43"]);
    drop((session, other, plain));
    cluster.assert_sound(&baseline);
}

#[case]
fn small_results_that_nobody_reads_hold_no_segment() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "0")]);
    let baseline = cluster.baseline();
    let before = cluster.segments().len();
    let mut session = cluster.session("postgres");
    let pids: Vec<i32> = (0..40).map(|number| session.launch(&format!("select {number}"))).collect();
    cluster.wait_no_workers();
    let last = session.launch("select 40");
    cluster.wait_no_workers();
    // Those that the session keeps for its next workers, the last one's, and that of a process ahead of its job.
    assert!(cluster.segments().len() <= before + 10, "{:?}", cluster.segments());
    for (number, pid) in pids.iter().enumerate().rev() {
        assert_eq!(session.result(*pid, "n int"), [number.to_string()]);
    }
    assert_eq!(session.result(last, "n int"), ["40"]);
    drop(session);
    cluster.assert_sound(&baseline);
}

/// Bytes of the largest segment.
fn largest(cluster: &Cluster) -> u64 {
    let bytes = |segment: &String| segment.split(&['(', ' '][..]).rev().nth(1)?.parse::<u64>().ok();
    cluster.segments().iter().filter_map(bytes).max().expect("a segment")
}

#[case]
fn a_large_queue_is_given_back_when_its_result_is_small() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "1h")]);
    let before = cluster.baseline();
    let mut session = cluster.session("postgres");
    session.run("set pg_background_mgr.max_result_memory = '40MB'");
    // Whether its worker is a new one or has had jobs.
    for number in 0..3 {
        let pid = launch_sized(&mut session, &format!("select {number}"), 33_554_432);
        assert!(largest(&cluster) >= 33_554_432);
        // There is no room for a second one beside it.
        let mut next = None;
        wait_until("the job has ended", || {
            let reply = session.ask("select pg_background_launch('select 10', 33554432)");
            match reply.error {
                Some(error) => assert_eq!(error.sqlstate(), "53400", "{error}"),
                None => next = Some(reply.last_rows().expect("a row").text_rows().concat().parse().expect("a number")),
            }
            next.is_some()
        });
        assert_eq!(session.result(pid, "n int"), [number.to_string()]);
        assert_eq!(session.result(next.expect("a process id"), "n int"), ["10"]);
        wait_until("no worker has a large segment", || largest(&cluster) < 33_554_432);
    }
    drop(session);
    cluster.assert_sound(&before);
}

#[case]
fn segments_of_others_are_named_as_theirs() {
    let few = [
        ("max_connections", "6"),
        ("superuser_reserved_connections", "0"),
        ("max_worker_processes", "6"),
        ("max_wal_senders", "0"),
        ("autovacuum_max_workers", "1"),
        ("pg_background_mgr.max_unread_results", "1000"),
    ];
    let cluster = Cluster::start_with_extension(&few);
    let (mut session, mut other) = (cluster.session("postgres"), cluster.session("postgres"));
    // Too large for the session's memory.
    let launch = format!("select pg_background_launch($$ {LARGE} $$, {LARGE_QUEUE})");
    let refusal = |session: &mut Session| -> ServerError {
        let mut refusal = None;
        wait_until("no segment is left", || match session.ask(&launch).error {
            Some(error) if error.message() == "could not register background process" => false,
            Some(error) => {
                refusal = Some(error);
                true
            }
            None => false,
        });
        refusal.expect("an error")
    };
    let expected = ("53000".to_owned(), "too many dynamic shared memory segments".to_owned());
    let own = refusal(&mut session);
    assert_eq!(own.brief(), expected);
    assert_eq!(own.hint().as_deref(), Some("Read or detach the results of jobs that have ended."));
    let detail = own.detail().expect("a detail");
    let (_, rest) = detail.split_once("This session has ").expect("how many");
    let (count, rest) = rest.split_once(' ').expect("words");
    assert_eq!(rest, "of them, for its results or its next job.");
    assert!(count.parse::<usize>().expect("a number") > 50, "{detail}");
    let theirs = refusal(&mut other);
    assert_eq!(theirs.brief(), expected);
    let detail = "This session has 0 of them, for its results or its next job.";
    assert_eq!(theirs.detail().as_deref(), Some(detail));
    assert_eq!(
        theirs.hint().as_deref(),
        Some(
            "Other sessions have them, for parallel queries, or for results that they have not read. \
             The server has more of them with a larger max_connections."
        )
    );
}

#[case]
fn unread_results_are_bounded(db: &Db) {
    let (mut session, mut other) = (db.session(), db.session());
    session.run("set pg_background_mgr.max_unread_results = 2");
    let refused = |session: &mut Session| {
        let error = session.error("select pg_background_launch('select 1')");
        assert_eq!(error.brief(), ("53000".to_owned(), TOO_MANY.to_owned()));
        let detail = "It has 2 in shared memory, and pg_background_mgr.max_unread_results allows 2.";
        assert_eq!(error.detail().as_deref(), Some(detail));
        let hint = "Read them with pg_background_result, or give them up with pg_background_detach. \
                    DISCARD ALL gives all of them up. Or increase pg_background_mgr.max_unread_results.";
        assert_eq!(error.hint().as_deref(), Some(hint));
        assert_eq!(session.error("select background_launch('select 1')").message(), TOO_MANY);
    };
    let pids = [launch_large(&mut session), launch_large(&mut session)];
    refused(&mut session);
    // Others have their own.
    assert_eq!(other.job("select 7", "n int"), ["7"]);
    // Each that is read, or given up, makes room for one; one that its reader could not take does not.
    let error = session.error(&format!("select * from pg_background_result({}) as (a uuid)", pids[0]));
    assert_eq!(error.sqlstate(), "42804");
    refused(&mut session);
    read_large(&mut session, pids[0]);
    let pid = launch_large(&mut session);
    refused(&mut session);
    session.run(&format!("select pg_background_detach({pid})"));
    // So does a small one, when its job has ended.
    let small = session.launch("select 3");
    let mut pid: Option<i32> = None;
    wait_until("the job has ended", || {
        let reply = session.ask(&format!("select pg_background_launch($$ {LARGE} $$, {LARGE_QUEUE})"));
        pid = reply.last_rows().and_then(|rows| rows.text_rows().concat().parse().ok());
        pid.is_some()
    });
    refused(&mut session);
    assert_eq!(session.result(small, "n int"), ["3"]);
    refused(&mut session);
    // Jobs of the queue have no results of that kind.
    session.run("select pg_background_launch_num(array['select 1', 'select 2', 'select 3'], p_exec_type => 'sync')");
    session.run("discard all");
    session.run("set pg_background_mgr.max_unread_results = 2");
    let pids = [launch_large(&mut session), launch_large(&mut session)];
    refused(&mut session);
    session.run("set pg_background_mgr.max_unread_results = 0");
    assert_eq!(session.error("select pg_background_launch('select 1')").message(), TOO_MANY);
    pids.into_iter().for_each(|pid| read_large(&mut session, pid));
    assert_eq!(session.error("select pg_background_launch('select 1')").message(), TOO_MANY);
    // It is for superusers to set, for one role too.
    let role = db.role("plain", "login");
    session.run(&format!("alter role {role} set pg_background_mgr.max_unread_results = 1"));
    let mut plain = db.client().user(&role).connect();
    let pid = launch_large(&mut plain);
    assert_eq!(plain.error("select pg_background_launch('select 1')").message(), TOO_MANY);
    read_large(&mut plain, pid);
    for setting in ["max_unread_results", "max_result_memory"] {
        assert_eq!(plain.error(&format!("set pg_background_mgr.{setting} = 1000")).sqlstate(), "42501");
    }
}

#[case]
fn the_bound_is_an_eighth_of_the_servers_segments(db: &Db) {
    let mut session = db.session();
    let bound = default_bound(&mut session);
    let launch = format!("pg_background_launch($$ {LARGE} $$, {LARGE_QUEUE})");
    assert_eq!(launch_unread(&mut session, &launch), bound);
    let error = session.error(&format!("select {launch}"));
    let detail = format!("It has {bound} in shared memory, and pg_background_mgr.max_unread_results allows {bound}.");
    assert_eq!(error.detail(), Some(detail));
}

#[case]
fn results_in_the_sessions_memory_are_bounded(db: &Db) {
    let mut session = db.session();
    session.run("set pg_background_mgr.max_result_memory = '1MB'");
    session.run("create table got (a int)");
    let launch = "pg_background_launch('insert into got values (1) returning repeat(''x'', 40000)')";
    session.run(&format!(
        "do $do$ begin loop begin perform {launch}; exception when insufficient_resources then \
         exit when sqlstate = '53400'; perform pg_sleep(0.01); end; end loop; end $do$"
    ));
    // Each has 40 kB, and the last one 64 kB for its queue; the jobs of those in a queue may still have run.
    let wants = "results of background jobs exceed pg_background_mgr.max_result_memory (1024kB)";
    let mut count = 0;
    wait_until("all are in memory", || {
        let error = session.error(&format!("select {launch} from generate_series(1, 30)"));
        // Some of those that fill it with their queues may not have run yet.
        count = session.number("select count(*) from got");
        error.message() == wants && count >= 15
    });
    assert!(count <= 26, "{count}");
    session.run("discard all");
    assert_eq!(session.job("select 1", "n int"), ["1"]);
}

/// Launches so many small jobs that their results, and those of before, go to the session's memory.
fn collect(session: &mut Session) -> Vec<i32> {
    let pids: Vec<i32> = (0..12).map(|number| session.launch(&format!("select {number}"))).collect();
    let list = pids.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
    let at_work = format!("select count(*) from pg_stat_activity where pid in ({list}) and state = 'active'");
    wait_until("all have ended", || session.value(&at_work) == "0");
    [pids, vec![session.launch("select 12")]].concat()
}

#[case]
fn results_are_the_same_out_of_the_sessions_memory(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int, b text)");
    let rows = session.launch("select i, md5(i::text) from generate_series(1, 500) i");
    let again = session.launch("select i, md5(i::text) from generate_series(1, 500) i");
    let tags = session.launch("insert into t values (1, 'x'); insert into t values (2, 'y'); vacuum");
    let tags_alone = session.launch("insert into t values (1, 'x'); insert into t values (2, 'y')");
    let failed = session.launch("select 1; select 1 / 0");
    let noted = session.launch("do $$ begin raise notice 'from the job'; end $$; select 5");
    let empty = session.launch("select 1 where false");
    let detached = session.launch("select 6");
    let others = collect(&mut session);
    let read = |pid| {
        format!(
            "select count(*), sum(a), bool_and(b = md5(a::text)) from pg_background_result({pid}) as (a int, b text)"
        )
    };
    assert_eq!(session.rows(&read(rows)), ["500|125250|t"]);
    for columns in ["a int", "a uuid, b text"] {
        let error = session.error(&format!("select * from pg_background_result({again}) as ({columns})"));
        assert_eq!(error.sqlstate(), "42804");
        for pid in collect(&mut session) {
            session.run(&format!("select pg_background_detach({pid})"));
        }
    }
    let texts = read(again).replace("sum(a)", "sum(a::int)").replace("a int", "a text");
    assert_eq!(session.rows(&texts), ["500|125250|t"]);
    assert_eq!(
        session.result_error(again).message(),
        format!("result of the job with PID {again} has already been read")
    );
    assert_eq!(session.result_error(tags).sqlstate(), "25001");
    assert_eq!(session.result(tags_alone, "tag text"), ["INSERT 0 1", "INSERT 0 1"]);
    let error = session.result_error(failed);
    assert_eq!(error.brief(), ("22012".to_owned(), "division by zero".to_owned()));
    session.notices();
    assert_eq!(session.result(noted, "n int"), ["5"]);
    let notices: Vec<String> = session.notices().iter().map(ServerError::message).collect();
    assert_eq!(notices, ["from the job"]);
    assert_eq!(session.result(empty, "n int"), [""; 0]);
    session.run(&format!("select pg_background_detach({detached})"));
    let gone = format!("result of the job with PID {detached} has been given up");
    assert_eq!(session.result_error(detached).message(), gone);
    for (number, pid) in others.into_iter().enumerate() {
        assert_eq!(session.result(pid, "n int"), [number.to_string()]);
    }
}

#[case]
fn a_result_in_the_sessions_memory_keeps_its_process_id(db: &Db) {
    let mut session = db.session();
    let role = db.role("plain", "login");
    session.run(&format!("set role {role}"));
    let of_role = session.launch("select 7");
    session.run("reset role");
    let pids = collect(&mut session);
    // No two of them are the same: a worker gets no other job of a session while its result is unread.
    let mut distinct = [pids.clone(), vec![of_role]].concat();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), pids.len() + 1);
    let other = db.role("other", "login");
    session.run(&format!("set role {other}"));
    assert_eq!(session.result_error(of_role).message(), format!("PID {of_role} is not attached to this session"));
    session.run(&format!("reset role; set role {role}"));
    assert_eq!(session.result(of_role, "n int"), ["7"]);
    session.run("reset role");
    session.run("discard all");
    for pid in pids {
        assert_eq!(session.result_error(pid).message(), format!("PID {pid} is not attached to this session"));
    }
}

#[case]
fn queues_are_bounded_in_sum(db: &Db) {
    let mut barrier = Barrier::close(db.session());
    let mut session = db.session();
    session.run("set pg_background_mgr.max_result_memory = '1MB'");
    let pid = launch_sized(&mut session, barrier::WAIT, 600_000);
    barrier.wait_for(pid);
    let error = session.error("select pg_background_launch('select 1', 448577)");
    let message = "results of background jobs exceed pg_background_mgr.max_result_memory (1024kB)";
    assert_eq!(error.brief(), ("53400".to_owned(), message.to_owned()));
    let detail = "The job wants 448577 bytes, and unread results of this session have 600000.";
    assert_eq!(error.detail().as_deref(), Some(detail));
    let hint =
        "Read or detach the results of jobs that have ended, or launch with a smaller queue_size: what does not \
                fit there is kept in memory and in a temporary file.";
    assert_eq!(error.hint().as_deref(), Some(hint));
    let fits = launch_sized(&mut session, barrier::WAIT, 448_576);
    assert_eq!(session.error("select pg_background_launch('select 1', 64)").sqlstate(), "53400");
    barrier.open();
    for pid in [pid, fits] {
        assert_eq!(session.rows(&format!("select pg_background_result({pid})")), ["(\"\")"]);
    }
    // What is in the queue as a whole, and is not small, keeps it.
    let large = launch_sized(&mut session, "select repeat('x', 100000)", 1_000_000);
    assert_eq!(session.error("select pg_background_launch('select 1')").sqlstate(), "53400");
    assert_eq!(session.value(&format!("select length(a) from pg_background_result({large}) as (a text)")), "100000");
    assert_eq!(session.job("select 1", "n int"), ["1"]);
}

#[case]
fn a_queue_that_was_given_up_counts_while_its_job_runs(db: &Db) {
    let mut barrier = Barrier::close(db.session());
    let mut session = db.session();
    session.run("set pg_background_mgr.max_result_memory = '1MB'");
    let give_up = |session: &mut Session, barrier: &mut Barrier| {
        let pid = launch_sized(session, barrier::WAIT, 600_000);
        barrier.wait_for(pid);
        session.run(&format!("select pg_background_detach({pid})"));
    };
    give_up(&mut session, &mut barrier);
    let launch = "select pg_background_launch('select 1', 600000)";
    assert_eq!(session.error(launch).sqlstate(), "53400");
    session.run("discard all");
    session.run("set pg_background_mgr.max_result_memory = '1MB'");
    assert_eq!(session.error(launch).sqlstate(), "53400");
    // Small ones are not counted.
    session.run("select pg_background_detach(pg_background_launch('select 1'))");
    barrier.open();
    wait_until("the job has ended", || session.ask(launch).error.is_none());
}

#[case]
fn the_largest_queue_is_within_the_default_bound(db: &Db) {
    let mut barrier = Barrier::close(db.session());
    let mut session = db.session();
    let pid = launch_sized(&mut session, "select 1", 268_435_456);
    assert_eq!(session.result(pid, "n int"), ["1"]);
    assert_eq!(session.value("show pg_background_mgr.max_result_memory"), "256MB");
    let pid = launch_sized(&mut session, barrier::WAIT, 268_435_456);
    barrier.wait_for(pid);
    assert_eq!(session.error("select pg_background_launch('select 1', 268435456)").sqlstate(), "53400");
    barrier.open();
}

#[case]
fn a_queue_of_size_zero_is_one_of_the_default_size(db: &Db) {
    let mut barrier = Barrier::close(db.session());
    let mut session = db.session();
    session.run("set pg_background_mgr.max_result_memory = '100kB'");
    let pid = launch_sized(&mut session, barrier::WAIT, 0);
    barrier.wait_for(pid);
    let error = session.error("select pg_background_launch('select 1', 40000)");
    let detail = "The job wants 40000 bytes, and unread results of this session have 65536.";
    assert_eq!(error.detail().as_deref(), Some(detail));
    barrier.open();
    assert_eq!(session.rows(&format!("select pg_background_result({pid})")), ["(\"\")"]);
    let pid = launch_sized(&mut session, "select 1", 0);
    assert_eq!(session.result(pid, "n int"), ["1"]);
}
