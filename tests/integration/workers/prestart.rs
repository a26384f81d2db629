//! A process for the next job is started ahead of it while launches that need a new process follow each other.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{wait_at_barrier, wait_gone, Batch};
use crate::support::job_stage::assert_nothing_fatal;
use pg_background_mgr_tests::cluster::{signal_process, try_signal, Baseline};
use pg_background_mgr_tests::session::literal;
use pg_background_mgr_tests::{case, wait_for, wait_until, Cluster, Session, Signal, Stop};

/// Each job of these clusters wants a new process. One of `max_worker_processes` is the server's own.
fn cluster_with(settings: &[(&str, &str)]) -> (Cluster, Baseline) {
    let settings: Vec<_> = [("pg_background_mgr.worker_idle_timeout", "0")].iter().chain(settings).copied().collect();
    let cluster = Cluster::start_with_extension(&settings);
    let before = cluster.baseline();
    (cluster, before)
}

fn cluster() -> (Cluster, Baseline) {
    cluster_with(&[])
}

/// Launches and reads so many jobs, one after the other; their text is an expression of `i`.
fn in_a_row(count: usize, text: &str, into: &str) -> String {
    format!(
        "do $do$ declare job int; begin for i in 1 .. {count} loop \
         job := pg_background_launch({text}); {into} from pg_background_result(job) as (a text); end loop; end $do$"
    )
}

/// A process that waits for a job of `session`, stopped so that it goes on waiting.
#[track_caller]
fn stopped_ahead(cluster: &Cluster, session: &mut Session) -> i32 {
    wait_for("a process that was started ahead", || {
        session.run(&in_a_row(6, "'select 1::text'", "perform a"));
        let shown = "select pid from pg_stat_activity where backend_type = 'pg_background'";
        // Those of the jobs are on their way out.
        let ahead = wait_for("the end of the jobs' processes", || {
            let workers = cluster.workers();
            (workers.len() < 2).then_some(workers)
        });
        let pid = *ahead.first()?;
        if !session.rows(shown).is_empty() {
            return None;
        }
        // It may leave now.
        let _ = try_signal(pid, Signal::SIGSTOP);
        if is_stopped(pid) && cluster.workers() == [pid] {
            return Some(pid);
        }
        let _ = try_signal(pid, Signal::SIGCONT);
        None
    })
}

fn is_stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
}

#[case]
fn each_job_has_a_process_of_its_own() {
    let (cluster, before) = cluster();
    let mut session = cluster.session("postgres");
    session.run("create table seen (pid int, work_mem text, own text, temp text)");
    let text = "$job$insert into seen select pg_backend_pid(), current_setting('work_mem'), \
                current_setting('my.own', true), to_regclass('pg_temp.mine')::text; \
                set work_mem = '7MB'; set my.own = 'x'; create temp table mine (a int)$job$";
    session.run(&in_a_row(60, text, "perform a"));
    assert_eq!(session.rows("select count(*), count(distinct pid) from seen"), ["60|60"]);
    let state =
        "select distinct work_mem = current_setting('work_mem'), coalesce(own, ''), coalesce(temp, '') from seen";
    assert_eq!(session.rows(state), ["t||"]);
    drop(session);
    cluster.assert_sound(&before);
}

#[case]
fn processes_are_started_ahead() {
    let (cluster, before) = cluster();
    let mut session = cluster.session("postgres");
    session.run("create table seen (launched timestamptz, begun timestamptz)");
    let text =
        "format('insert into seen select %L, backend_start from pg_stat_activity where pid = pg_backend_pid()', \
                clock_timestamp())";
    wait_until("processes that were there before their jobs were launched", || {
        session.run(&in_a_row(20, text, "perform a"));
        session.number("select count(*) from seen where begun < launched") > 10
    });
    // None waits for long.
    assert!(session.holds("select max(launched - begun) < '5s' from seen"));
    drop(session);
    cluster.assert_sound(&before);
}

#[case]
fn each_job_is_its_launchers() {
    let (cluster, before) = cluster();
    let mut session = cluster.session("postgres");
    session.run("create role anna login; create role berta login; grant berta to anna");
    session.run("select pg_background_grant('anna'); select pg_background_grant('berta')");
    session.run(
        "do $$ declare who text; seen text; begin for i in 1 .. 30 loop \
         execute format('set session authorization %I', (array['anna', 'berta', 'postgres'])[i % 3 + 1]); \
         if i % 3 = 0 then set local role berta; end if; perform set_config('my.own', i::text, false); \
         who := session_user || ' ' || current_user || ' ' || i; \
         select a into seen from pg_background_result(pg_background_launch(\
         $j$select session_user || ' ' || current_user || ' ' || current_setting('my.own')$j$)) as (a text); \
         if seen <> who then raise '% is not %', seen, who; end if; \
         reset role; end loop; reset session authorization; end $$",
    );
    drop(session);
    cluster.assert_sound(&before);
}

#[case]
fn queues_of_any_size_are_served() {
    let (cluster, before) = cluster();
    let mut session = cluster.session("postgres");
    session.run("create table seen (n int)");
    session.run(
        "do $$ declare a text; begin for i in 1 .. 60 loop \
         select * into a from pg_background_result(pg_background_launch(\
         format('select length(repeat(''x'', %s))::text', 1000 * i) || repeat(' ', (i % 7) * 3000), \
         (array[65536, 131072, 1000000])[i % 3 + 1])) as (a text); \
         if a <> (1000 * i)::text then raise '%', a; end if; end loop; end $$",
    );
    // A few of them are kept for the next jobs.
    let segments = cluster.segments();
    assert!(segments.len() < 20, "{segments:?}");
    drop(session);
    cluster.assert_sound(&before);
}

#[case]
fn a_single_launch_starts_one_process() {
    let (cluster, before) = cluster();
    let mut session = cluster.session("postgres");
    let mut barrier = Barrier::close(cluster.session("postgres"));
    let pid = session.launch(barrier::WAIT);
    barrier.wait_for(pid);
    assert_eq!(cluster.workers(), [pid]);
    barrier.open();
    session.result(pid, "a text");
    drop(session);
    cluster.assert_sound(&before);
}

#[case]
fn a_process_that_gets_no_job_leaves() {
    let (cluster, before) = cluster();
    let mut session = cluster.session("postgres");
    let mark = cluster.log_mark();
    for _ in 0..3 {
        session.run(&in_a_row(10, "'select 1::text'", "perform a"));
        wait_until("the end of every process", || cluster.workers().is_empty());
    }
    assert_eq!(session.job("select 42", "n int"), ["42"]);
    assert_nothing_fatal(&cluster, mark);
    drop(session);
    cluster.assert_sound(&before);
}

#[case]
fn a_process_that_was_held_up_runs_its_job() {
    let (cluster, before) = cluster();
    let mut session = cluster.session("postgres");
    let ahead = stopped_ahead(&cluster, &mut session);
    // It has not noticed yet that it has waited for too long.
    let pid = session.launch("select pg_backend_pid()");
    assert_eq!(pid, ahead);
    session.send(&format!("select * from pg_background_result({pid}) as (n int)"));
    signal_process(ahead, Signal::SIGCONT);
    assert_eq!(session.finish("the result").last_rows().expect("rows").text_rows(), [pid.to_string()]);
    drop(session);
    cluster.assert_sound(&before);
}

#[case]
fn a_process_that_was_terminated_gets_no_job() {
    let (cluster, before) = cluster();
    let mut session = cluster.session("postgres");
    let ahead = stopped_ahead(&cluster, &mut session);
    let mark = cluster.log_mark();
    signal_process(ahead, Signal::SIGTERM);
    signal_process(ahead, Signal::SIGCONT);
    wait_gone(ahead);
    assert_eq!(session.job("select 42", "n int"), ["42"]);
    assert_nothing_fatal(&cluster, mark);
    drop(session);
    cluster.assert_sound(&before);
}

#[case]
fn a_process_that_is_terminated_with_its_job_says_so() {
    let (cluster, before) = cluster();
    let mut session = cluster.session("postgres");
    session.run("create table ran (a int)");
    let ahead = stopped_ahead(&cluster, &mut session);
    signal_process(ahead, Signal::SIGTERM);
    let pid = session.launch("insert into ran values (1)");
    assert_eq!(pid, ahead);
    signal_process(ahead, Signal::SIGCONT);
    assert_eq!(session.result_error(pid).sqlstate(), "57P01");
    assert_eq!(session.value("select count(*) from ran"), "0");
    assert_eq!(session.job("select 42", "n int"), ["42"]);
    drop(session);
    cluster.assert_sound(&before);
}

/// The next process is refused sooner than a launch is, mostly, while a session launches all the time; then that one,
/// too.
#[case]
fn a_process_that_could_not_be_started_is_replaced() {
    let (cluster, before) = cluster();
    let (mut session, mut other) = (cluster.session("postgres"), cluster.session("postgres"));
    session.run("create table ran (a int); create table enough ()");
    let jobs = "do $$ begin while not exists (select from enough) loop \
                begin perform from pg_background_result(pg_background_launch('insert into ran values (1)')) \
                as (a text); \
                exception when insufficient_resources then null; end; end loop; end $$";
    session.send(jobs);
    let wait_for_jobs = |other: &mut Session| {
        let ran = other.number("select count(*) from ran");
        wait_until("jobs in new processes", || other.number("select count(*) from ran") > ran + 10);
    };
    for _ in 0..5 {
        wait_for_jobs(&mut other);
        let mark = cluster.log_mark();
        cluster.refuse_forks(&mut other);
        cluster.wait_log(mark, "the refused fork", |line| line.text.contains("could not fork"));
        cluster.allow_forks(&mut other);
    }
    wait_for_jobs(&mut other);
    other.run("insert into enough default values");
    assert!(session.finish(jobs).error.is_none());
    drop((session, other));
    cluster.assert_sound(&before);
}

/// The process is there, so its launch waits for nothing: a cancel comes before it or after it.
#[case]
fn a_cancelled_launch_runs_nothing() {
    let (cluster, before) = cluster();
    let (mut session, mut other) = (cluster.session("postgres"), cluster.session("postgres"));
    session.run("create table ran (a int)");
    let mut launched = 0;
    for _ in 0..20 {
        session.send(
            "do $$ declare job int; begin \
             for i in 1 .. 200 loop job := pg_background_launch('insert into ran values (1)'); \
             perform from pg_background_result(job) as (a text); raise notice 'one'; end loop; end $$",
        );
        session.next_notice();
        other.run(&format!("select pg_cancel_backend({})", session.pid()));
        let reply = session.finish("the jobs");
        launched += 1 + session.notice_texts().len();
        assert!(reply.error.is_none_or(|error| error.sqlstate() == "57014"));
        wait_until("the end of every process", || cluster.workers().is_empty());
    }
    // The job that the session was waiting for, or was launching, may have run.
    let ran = other.number("select count(*) from ran");
    let launched = i64::try_from(launched).expect("a number of jobs");
    assert!((launched..=launched + 20).contains(&ran), "{launched} were read, {ran} ran");
    drop((session, other));
    cluster.assert_sound(&before);
}

#[case]
fn a_process_outlives_its_session_only_for_a_moment() {
    let (cluster, before) = cluster();
    for _ in 0..3 {
        let mut session = cluster.session("postgres");
        let ahead = stopped_ahead(&cluster, &mut session);
        let launcher = session.pid();
        drop(session);
        wait_gone(launcher);
        signal_process(ahead, Signal::SIGCONT);
        wait_gone(ahead);
    }
    cluster.assert_sound(&before);
}

#[case]
fn a_new_configuration_holds_for_it() {
    let (cluster, before) = cluster();
    let (mut session, mut other) = (cluster.session("postgres"), cluster.session("postgres"));
    for number in 1..4 {
        let ahead = stopped_ahead(&cluster, &mut session);
        other.run(&format!("alter system set work_mem = '{number}23kB'"));
        cluster.reload();
        wait_until("the new configuration", || session.value("show work_mem") == format!("{number}23kB"));
        let pid = session.launch("show work_mem");
        assert_eq!(pid, ahead);
        signal_process(ahead, Signal::SIGCONT);
        assert_eq!(session.result(pid, "a text"), [format!("{number}23kB")]);
    }
    drop((session, other));
    cluster.assert_sound(&before);
}

#[case]
fn a_launch_of_another_session_gets_its_place() {
    let (cluster, before) = cluster_with(&[("max_worker_processes", "4"), ("pg_background_mgr.reserved_workers", "0")]);
    let (mut session, mut other) = (cluster.session("postgres"), cluster.session("postgres"));
    let mut barrier = Barrier::close(cluster.session("postgres"));
    let ahead = stopped_ahead(&cluster, &mut session);
    let first: Vec<i32> = (0..2).map(|_| other.launch(barrier::WAIT)).collect();
    first.iter().for_each(|pid| barrier.wait_for(*pid));
    other.send(&format!("select pg_background_launch({})", literal(barrier::WAIT)));
    let waits =
        format!("select count(*) from pg_stat_activity where pid = {} and wait_event_type = 'Extension'", other.pid());
    wait_until("the launch waits for the process to leave", || session.value(&waits) == "1");
    signal_process(ahead, Signal::SIGCONT);
    let launched = other.finish("the launch");
    let pid: i32 = launched.last_rows().expect("rows").text_rows()[0].parse().expect("a process id");
    barrier.wait_for(pid);
    assert!(!cluster.workers().contains(&ahead));
    barrier.open();
    for pid in first.into_iter().chain([pid]) {
        other.result(pid, "a text");
    }
    drop((session, other));
    cluster.assert_sound(&before);
}

#[case]
fn a_queue_gets_its_place() {
    let (cluster, before) = cluster_with(&[("max_worker_processes", "3"), ("pg_background_mgr.reserved_workers", "0")]);
    let (mut session, mut other) = (cluster.session("postgres"), cluster.session("postgres"));
    for _ in 0..10 {
        let barrier = Barrier::close(cluster.session("postgres"));
        session.run(&in_a_row(6, "'select 1::text'", "raise notice '%', job; perform a"));
        // The process of the last job has gone, the one that was started ahead of the next has not.
        let last = session.notices().pop().expect("a notice").message().parse().expect("a process id");
        wait_gone(last);
        let batch = Batch::launch(&mut session, &[barrier::WAIT, barrier::WAIT]);
        wait_at_barrier(&mut other, 2);
        barrier.open();
        batch.succeed(&mut session);
    }
    drop((session, other));
    cluster.assert_sound(&before);
}

/// Every session has a process that ends, and would have one that waits.
#[case]
fn few_processes_serve_many_sessions() {
    let (cluster, before) = cluster();
    let mut sessions: Vec<Session> = (0..7).map(|_| cluster.session("postgres")).collect();
    let text = in_a_row(100, "'select 1::text'", "perform a");
    for session in &mut sessions {
        session.send(&text);
    }
    for session in &mut sessions {
        let reply = session.finish("the jobs");
        assert!(reply.error.is_none(), "{reply:?}");
    }
    drop(sessions);
    cluster.assert_sound(&before);
}

/// The process of the job before is still ending when the next is launched.
#[case]
fn one_process_serves_job_after_job() {
    for timeout in ["0", "10s"] {
        let cluster = Cluster::start_with_extension(&[
            ("max_worker_processes", "2"),
            ("pg_background_mgr.worker_idle_timeout", timeout),
        ]);
        let before = cluster.baseline();
        let mut session = cluster.session("postgres");
        for _ in 0..3 {
            session.run(&in_a_row(50, "'select 1::text'", "perform a"));
        }
        drop(session);
        cluster.assert_sound(&before);
    }
}

#[case]
fn a_server_stops_at_once() {
    let (cluster, _) = cluster();
    for how in [Stop::Fast, Stop::Smart, Stop::Immediate] {
        let mut session = cluster.session("postgres");
        session.run(&in_a_row(10, "'select 1::text'", "perform a"));
        drop(session);
        cluster.stop(how);
        cluster.start();
    }
    let mut session = cluster.session("postgres");
    assert_eq!(session.job("select 42", "n int"), ["42"]);
}

#[case]
fn a_killed_one_loses_nothing_but_the_servers_memory() {
    let (cluster, before) = cluster();
    let mut session = cluster.session("postgres");
    let ahead = stopped_ahead(&cluster, &mut session);
    signal_process(ahead, Signal::SIGKILL);
    wait_until("the end of the session", || session.is_closed());
    cluster.wait_ready();
    let mut session = cluster.session("postgres");
    session.run(&in_a_row(10, "'select 1::text'", "perform a"));
    drop(session);
    cluster.assert_sound(&before);
}
