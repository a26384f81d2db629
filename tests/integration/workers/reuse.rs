//! Workers that stay for the next job of a session: who gets one, and what comes of its jobs.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{wait_gone, Batch};
use crate::support::idle_worker::{
    get_idle_worker, read, run, run_and_wait_idle, terminate_idle_workers, wait_free, wait_idle, wait_idle_after,
    Outcome,
};
use pg_background_mgr_tests::cluster::signal_process;
use pg_background_mgr_tests::{case, literal, wait_until, Cluster, Db, Signal};
use std::collections::BTreeMap;

#[case]
fn a_session_keeps_its_worker(db: &Db) {
    let mut session = db.session();
    let pid = get_idle_worker(&mut session);
    for number in 0..50 {
        let launched = session.launch(&format!("select {number}"));
        assert_eq!(launched, pid);
        assert_eq!(session.result(pid, "n int"), [number.to_string()]);
    }
}

#[case]
fn another_session_gets_a_worker_that_is_free(db: &Db) {
    let (mut first, mut second) = (db.session(), db.session());
    let pid = get_idle_worker(&mut first);
    for number in 0..20 {
        let session = if number % 3 == 0 { &mut first } else { &mut second };
        assert_eq!(run_and_wait_idle(session, "select 1"), pid);
    }
    // So does one that comes later, and a job of a job.
    assert_eq!(run_and_wait_idle(&mut db.session(), "select 1"), pid);
}

#[case]
fn a_worker_whose_result_is_unread_is_not_given_away(db: &Db) {
    let (mut session, mut other) = (db.session(), db.session());
    let first = get_idle_worker(&mut session);
    assert_eq!(session.launch("select 'first'"), first);
    wait_idle(&mut other, first);
    let second = session.launch("select 'second'");
    let third = other.launch("select 'third'");
    assert!(first != second && first != third && second != third);
    assert_eq!(session.result(first, "a text"), ["first"]);
    assert_eq!(session.result(second, "a text"), ["second"]);
    assert_eq!(other.result(third, "a text"), ["third"]);
    for pid in [first, second] {
        assert_eq!(session.error(&format!("select pg_background_result({pid})")).sqlstate(), "42704");
    }
}

#[case]
fn results_of_several_workers_are_read_in_any_order(db: &Db) {
    let mut session = db.session();
    let mut seen = Vec::new();
    for round in 0..12 {
        let mut pids: Vec<i32> = (0..4).map(|n| session.launch(&format!("select {n}, {round}"))).collect();
        let texts: Vec<usize> = (0..4).map(|n| (n * 3 + round) % 4).collect();
        for n in texts {
            assert_eq!(session.result(pids[n], "a int, b int"), [format!("{n}|{round}")]);
        }
        pids.sort_unstable();
        pids.dedup();
        assert_eq!(pids.len(), 4);
        pids.into_iter().for_each(|pid| wait_idle(&mut session, pid));
        let workers = session.rows(
            "select pid from pg_stat_activity where backend_type = 'pg_background' \
             and datname = current_database() order by pid",
        );
        seen.push(workers);
    }
    assert!(seen.iter().all(|workers| *workers == seen[0]), "the same ones: {seen:?}");
}

#[case]
fn a_detached_job_frees_its_worker(db: &Db) {
    let (mut session, mut other) = (db.session(), db.session());
    session.run("create table ran (a int)");
    let pid = get_idle_worker(&mut session);
    for number in 1..=5 {
        let sql = format!("insert into ran values ({number})");
        assert_eq!(session.launch(&sql), pid);
        session.run(&format!("select pg_background_detach({pid})"));
        wait_idle_after(&mut session, pid, &sql);
        // For whoever comes.
        assert_eq!(run_and_wait_idle(&mut other, "select 1"), pid);
    }
    assert_eq!(session.value("select count(*) from ran"), "5");
    // Before its job has ended.
    let mut barrier = Barrier::close(db.session());
    assert_eq!(session.launch(barrier::WAIT), pid);
    barrier.wait_for(pid);
    session.run(&format!("select pg_background_detach({pid})"));
    assert_ne!(run_and_wait_idle(&mut session, "select 1"), pid);
    barrier.open();
    wait_idle(&mut session, pid);
    let sql = "select generate_series(1, 100000)";
    let rows = session.launch(sql);
    session.run(&format!("select pg_background_detach({rows})"));
    wait_idle_after(&mut session, rows, sql);
    assert_eq!(session.job("select 1", "n int"), ["1"]);
}

#[case]
fn a_session_that_leaves_frees_its_workers(db: &Db) {
    let mut session = db.session();
    let pid = get_idle_worker(&mut session);
    for sql in ["select 2", "select generate_series(1, 100000)", "select 1 / 0"] {
        let mut leaving = db.session();
        assert_eq!(leaving.launch(sql), pid);
        let process = leaving.pid();
        drop(leaving);
        wait_gone(process);
        wait_idle_after(&mut session, pid, sql);
        assert_eq!(run_and_wait_idle(&mut session, "select 1"), pid, "{sql}");
    }
    // While its job runs.
    let (mut leaving, mut barrier) = (db.session(), Barrier::close(db.session()));
    assert_eq!(leaving.launch(barrier::WAIT), pid);
    barrier.wait_for(pid);
    let process = leaving.pid();
    drop(leaving);
    wait_gone(process);
    barrier.open();
    wait_idle(&mut session, pid);
    assert_eq!(run_and_wait_idle(&mut session, "select 1"), pid);
}

#[case]
fn a_failed_job_keeps_its_worker(db: &Db) {
    let mut session = db.session();
    let pid = get_idle_worker(&mut session);
    for sql in ["select 1 / 0", "selct", "begin; select 1 / 0", "do $$ begin raise exception 'x'; end $$"] {
        let (failed, outcome) = run(&mut session, sql);
        assert!(failed == pid && outcome.error.is_some(), "{sql}");
        assert_eq!(session.job("select 7", "n int"), ["7"]);
        wait_idle(&mut session, pid);
        assert_eq!(session.launch("select 8"), pid, "{sql}");
        assert_eq!(session.result(pid, "n int"), ["8"]);
    }
}

#[case]
fn queries_of_the_queue_run_in_a_sessions_worker(db: &Db) {
    let mut session = db.session();
    let pid = get_idle_worker(&mut session);
    for _ in 0..3 {
        let batch = Batch::launch(&mut session, &["select 1"]);
        batch.succeed(&mut session);
        assert_eq!(batch.log(&mut session, 0, "pid"), pid.to_string());
        wait_idle(&mut session, pid);
        assert_eq!(run_and_wait_idle(&mut session, "select 1"), pid);
    }
    let batch = Batch::launch(&mut session, &["select 1 / 0"]);
    assert_eq!(batch.finish(&mut session), ["failed"]);
    wait_idle(&mut session, pid);
    assert_eq!(run_and_wait_idle(&mut session, "select 1"), pid);
}

#[case]
fn a_worker_of_the_queue_serves_sessions(db: &Db) {
    let (mut session, mut other) = (db.session(), db.session());
    let batch = Batch::launch(&mut session, &["select 1"]);
    batch.succeed(&mut session);
    let pid: i32 = batch.log(&mut session, 0, "pid").parse().expect("a process id");
    for _ in 0..3 {
        wait_idle(&mut session, pid);
        assert_eq!(run_and_wait_idle(&mut session, "select 1"), pid);
        assert_eq!(run_and_wait_idle(&mut other, "select 1"), pid);
        let batch = Batch::launch(&mut other, &["select 1"]);
        batch.succeed(&mut other);
        assert_eq!(batch.log(&mut other, 0, "pid"), pid.to_string());
    }
}

/// Query for who a process logged in as, which must never change.
const WHO: &str = "select session_user || ' ' || current_user || ' ' || current_setting('is_superuser')";

#[case]
fn no_job_gets_a_worker_of_another_login(db: &Db) {
    let mut session = db.session();
    let (weak, owner) = (db.role("weak", "login"), db.role("owner", "login"));
    session.run(&format!(
        "create function launch_as(text) returns int language sql security definer as \
         'select pg_background_launch($1)'; alter function launch_as owner to {owner}; grant {owner} to {weak}"
    ));
    let mut logins: BTreeMap<i32, String> = BTreeMap::new();
    let mut weak_session = db.client().user(&weak).connect();
    for round in 0..40 {
        let (launcher, is_weak, expected) = match round % 5 {
            0 => ("pg_background_launch($1)", false, "postgres postgres on".to_owned()),
            1 => ("launch_as($1)", false, format!("{owner} {owner} off")),
            2 => ("pg_background_launch($1)", true, format!("{weak} {weak} off")),
            3 => ("launch_as($1)", true, format!("{owner} {owner} off")),
            _ => {
                session.run(&format!("set session authorization {weak}"));
                ("pg_background_launch($1)", false, format!("{weak} {weak} off"))
            }
        };
        let used = if is_weak { &mut weak_session } else { &mut session };
        let pid = used.value(&format!("select {}", launcher.replace("$1", &literal(WHO))));
        let pid: i32 = pid.parse().expect("a process id");
        assert_eq!(used.result(pid, "who text"), std::slice::from_ref(&expected), "round {round}");
        session.run("reset session authorization");
        wait_idle(&mut session, pid);
        assert_eq!(*logins.entry(pid).or_insert_with(|| expected.clone()), expected, "{pid} in round {round}");
    }
    assert_eq!(logins.len(), 3, "one worker for each login: {logins:?}");
}

#[case]
fn the_role_that_is_set_is_that_of_each_job(db: &Db) {
    let mut session = db.session();
    let group = db.role("group", "nologin");
    let pid = get_idle_worker(&mut session);
    for _ in 0..5 {
        session.run(&format!("set role {group}"));
        assert_eq!(run(&mut session, WHO), (pid, rows(&[&format!("(\"postgres {group} off\")")])));
        assert_eq!(run(&mut session, "reset role; set my.own = 1; select 1 / 0").0, pid);
        assert_eq!(run(&mut session, WHO), (pid, rows(&[&format!("(\"postgres {group} off\")")])));
        session.run("reset role");
        assert_eq!(run(&mut session, WHO), (pid, rows(&["(\"postgres postgres on\")"])));
    }
}

fn rows(rows: &[&str]) -> Outcome {
    Outcome { rows: rows.iter().map(|row| (*row).to_owned()).collect(), error: None, notices: Vec::new() }
}

#[case]
fn no_job_gets_a_worker_of_another_database(db: &Db) {
    let other = format!("{}_other", db.name);
    let mut session = db.session();
    session.run(&format!("create database {other} template prepared"));
    let mut far = db.cluster.session(&other);
    let (here, there) = (get_idle_worker(&mut session), get_idle_worker(&mut far));
    assert_ne!(here, there);
    for _ in 0..10 {
        assert_eq!(run(&mut session, "select current_database()"), (here, rows(&[&format!("({})", db.name)])));
        assert_eq!(run(&mut far, "select current_database()"), (there, rows(&[&format!("({other})")])));
    }
    let process = far.pid();
    drop(far);
    wait_gone(process);
    session.run(&format!("drop database {other}"));
    assert_eq!(run_and_wait_idle(&mut session, "select 1"), here);
}

#[case]
fn each_queue_size_works(db: &Db) {
    let mut session = db.session();
    let pid = get_idle_worker(&mut session);
    let least = session.error("select pg_background_launch('select 1', 1)").hint().unwrap_or_default()
        + &session.error("select pg_background_launch('select 1', 1)").message();
    let least: String = least.chars().filter(char::is_ascii_digit).collect();
    let least: i32 = least.parse().expect("the least size");
    for size in [least, least + 1, 4096, 65536, 65537, 262_144, 262_145, 1_048_576, 65536, least, 65536] {
        for count in [1, 3000] {
            let launched = session.number(&format!(
                "select pg_background_launch('select repeat(i::text, 10) from generate_series(1, {count}) i', {size})"
            ));
            assert_eq!(launched, i64::from(pid), "{size}");
            let got = session.value(&format!(
                "select count(*) || ' ' || sum(length(a)) = \
                 (select count(*) || ' ' || sum(length(repeat(i::text, 10))) from generate_series(1, {count}) i) \
                 from pg_background_result({pid}) as (a text)"
            ));
            assert_eq!(got, "t", "{count} rows through {size} bytes");
            wait_idle(&mut session, pid);
        }
    }
}

#[case]
fn results_larger_than_the_queue_arrive_whole(db: &Db) {
    let mut session = db.session();
    let pid = get_idle_worker(&mut session);
    for count in [1, 200_000, 0, 50_000, 2, 100_000] {
        let launched = session.launch(&format!("select i, md5(i::text) from generate_series(1, {count}) i"));
        assert_eq!(launched, pid);
        let got = session.value(&format!(
            "select count(*) || ' ' || coalesce(sum(a), 0) || ' ' || count(*) filter (where b = md5(a::text)) \
             from pg_background_result({pid}) as (a int, b text)"
        ));
        let sum = i64::from(count) * i64::from(count + 1) / 2;
        assert_eq!(got, format!("{count} {sum} {count}"));
        wait_idle(&mut session, pid);
    }
    let wide = session.launch("select repeat('x', 50000000)");
    assert_eq!(wide, pid);
    let got = session.value(&format!("select length(a) from pg_background_result({pid}) as (a text)"));
    assert_eq!(got, "50000000");
    assert_eq!(run_and_wait_idle(&mut session, "select 1"), pid);
}

#[case]
fn texts_of_any_length_arrive_whole(db: &Db) {
    let mut session = db.session();
    let pid = get_idle_worker(&mut session);
    for length in [1, 7000, 8100, 8192, 9000, 5, 100_000, 120_000, 20, 3_000_000, 8192, 1] {
        let text = "ab".repeat(length / 2 + 1);
        let launched = session.launch(&format!("select md5('{text}')"));
        assert_eq!(launched, pid, "{length}");
        assert_eq!(session.result(pid, "a text"), [session.value(&format!("select md5('{text}')"))], "{length}");
        wait_idle(&mut session, pid);
    }
    // So do the settings that travel with it.
    for length in [1, 9000, 100_000, 1] {
        session.run(&format!("set my.own = '{}'", "s".repeat(length)));
        let (launched, outcome) = run(&mut session, "select length(current_setting('my.own'))");
        assert_eq!((launched, outcome), (pid, rows(&[&format!("({length})")])));
        wait_idle(&mut session, pid);
    }
}

#[case]
fn errors_and_notices_are_those_of_the_job(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int primary key check (a < 10)); insert into t values (1)");
    let texts = [
        "select 1 / 0",
        "select 1 +\n nothing from t",
        "insert into t values (1)",
        "insert into t values (10)",
        "do $$ begin raise exception 'e' using errcode = 'ZZ001', detail = 'd', hint = 'h'; end $$",
        "do $$ begin raise notice 'first'; raise warning 'second'; end $$; select 3",
        "do $$ begin raise notice 'before'; perform 1 / 0; end $$",
        "do $$ begin for i in 1..200 loop raise notice '%', repeat('n', i); end loop; end $$",
        "select 1; selct",
        "vacuum t; select 1",
        "begin; vacuum t",
        "commit",
        "copy t from stdin",
        "select 1; select 2, 'b'; create table if not exists t (a int)",
    ];
    let mut fresh = Vec::new();
    for text in texts {
        terminate_idle_workers(&mut session);
        fresh.push(run(&mut session, text).1);
    }
    terminate_idle_workers(&mut session);
    let pid = get_idle_worker(&mut session);
    for round in 0..3 {
        for (text, expected) in texts.iter().zip(&fresh) {
            assert_eq!(run(&mut session, text), (pid, expected.clone()), "{text} in round {round}");
        }
    }
}

#[case]
fn a_job_is_shown_as_its_own(db: &Db) {
    let (mut session, mut other) = (db.session(), db.session());
    let pid = get_idle_worker(&mut session);
    let shown = format!(
        "select state, query, usename, datname, application_name, backend_type from pg_stat_activity where pid = {pid}"
    );
    let mut barrier = Barrier::close(db.session());
    let text = format!("select 'the job'; {}", barrier::WAIT);
    assert_eq!(session.launch(&text), pid);
    barrier.wait_for(pid);
    let name = &db.name;
    assert_eq!(other.rows(&shown), [format!("active|{text}|postgres|{name}|test|pg_background")], "while it runs");
    let open = "select xact_start is not null, backend_xmin is not null from pg_stat_activity where pid";
    assert_eq!(other.rows(&format!("{open} = {pid}")), ["t|t"]);
    barrier.open();
    read(&mut session, pid);
    wait_idle(&mut other, pid);
    assert_eq!(other.rows(&shown), [format!("idle|{text}|postgres|{name}|test|pg_background")], "afterwards");
    wait_free(&mut other, pid);
}

#[case]
fn two_thousand_launches_in_one_loop(db: &Db) {
    let mut session = db.session();
    session.run("create table seen (pid int, count int)");
    get_idle_worker(&mut session);
    session.run(
        "do $$ declare p int; r int; pids int[] := '{}'; failed int := 0; begin \
         for i in 1..2000 loop \
             p := pg_background_launch(case when i % 2 = 0 then format('select %s', i) \
                                       when i % 4 = 1 then format('select %s / 0', i) else 'selct' end); \
             if not p = any (pids) then pids := pids || p; end if; \
             begin \
                 select a into r from pg_background_result(p) as (a int); \
                 assert r = i and i % 2 = 0; \
             exception when division_by_zero then assert i % 4 = 1; failed := failed + 1; \
                 when syntax_error then assert i % 4 = 3; failed := failed + 1; \
             end; \
         end loop; \
         assert failed = 1000; \
         insert into seen select unnest(pids), 1; end $$",
    );
    assert_eq!(session.value("select count(*) from seen"), "1");
}

#[case]
fn many_sessions_at_once() {
    // Of its own: they take the idle workers of others.
    let cluster = &Cluster::start_with_extension(&[]);
    cluster.session("postgres").run("create table ran (a int)");
    std::thread::scope(|scope| {
        for session in 0..4 {
            scope.spawn(move || {
                for round in 0..5 {
                    let mut session_of = cluster.session("postgres");
                    let from = session * 1000 + round * 100;
                    session_of.run(&format!(
                        "do $$ declare p int; q int; r int; begin for i in {from} + 1 .. {from} + 25 loop \
                         p := pg_background_launch(format('insert into ran values (%s) returning a', i)); \
                         q := pg_background_launch(format('select -%s', i)); \
                         assert p <> q; \
                         select a into r from pg_background_result(q) as (a int); assert r = -i; \
                         if i % 5 = 0 then perform pg_background_detach(p); \
                         else select a into r from pg_background_result(p) as (a int); assert r = i; end if; \
                         end loop; end $$"
                    ));
                }
            });
        }
    });
    let mut session = cluster.session("postgres");
    wait_until("the detached jobs", || session.value("select count(*) from ran") == "500");
    assert_eq!(session.value("select count(distinct a) from ran"), "500");
}

#[case]
fn nothing_stays_where_the_cap_is_zero() {
    let cluster =
        Cluster::start_with_extension(&[("max_worker_processes", "2"), ("max_logical_replication_workers", "0")]);
    let before = cluster.baseline();
    let mut session = cluster.session("postgres");
    let mut seen = Vec::new();
    for number in 0..10 {
        let (pid, outcome) = run(&mut session, &format!("select {number}"));
        assert_eq!(outcome, rows(&[&format!("({number})")]));
        wait_gone(pid);
        seen.push(pid);
        let (pid, outcome) = run(&mut session, "select 1 / 0");
        assert_eq!(outcome.error.expect("an error")[&'C'], "22012");
        wait_gone(pid);
        seen.push(pid);
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 20, "each job has a process of its own");
    // Also those of a role, of a definer, and those that nobody reads.
    session.run("create table ran (a int)");
    let pid = session.launch("insert into ran values (1)");
    session.run(&format!("select pg_background_detach({pid})"));
    wait_gone(pid);
    assert_eq!(session.value("select count(*) from ran"), "1");
    drop(session);
    cluster.assert_sound(&before);
}

/// The two may be told of a new configuration in either order.
#[case]
fn a_worker_has_the_configuration_that_its_launcher_has() {
    let cluster = Cluster::start_with_extension(&[]);
    let mut session = cluster.session("postgres");
    let pid = get_idle_worker(&mut session);
    for number in 1..4 {
        let value = format!("{number}23kB");
        session.run(&format!("alter system set work_mem = '{value}'"));
        // Nobody else is told.
        signal_process(session.pid(), Signal::SIGHUP);
        wait_until("the new configuration", || session.value("show work_mem") == value);
        assert_eq!(session.launch("show work_mem"), pid);
        assert_eq!(session.result(pid, "a text"), [value]);
    }
}

/// Half of the cap may be idle, and more for the moment between two jobs.
#[case(alone)]
fn workers_of_sessions_that_launch_again_and_again_stay() {
    let cluster = Cluster::start_with_extension(&[("max_worker_processes", "10")]);
    let mut sessions: Vec<_> = (0..7).map(|_| cluster.session("postgres")).collect();
    let mut round = || {
        let pids: Vec<i32> = sessions.iter_mut().map(|session| session.launch("select 1")).collect();
        for (session, pid) in sessions.iter_mut().zip(&pids) {
            session.result(*pid, "n int");
        }
        pids
    };
    let mut before = round();
    // A busy machine may be too slow for that, but not each time.
    wait_until("the same workers", || {
        let pids = round();
        std::mem::replace(&mut before, pids.clone()) == pids
    });
    let mut watcher = cluster.session("postgres");
    let workers = "select count(*) from pg_stat_activity where backend_type = 'pg_background'";
    wait_until("half of the cap", || watcher.value(workers) == "4");
}

/// There are more sessions than the server has processes for: they take turns.
#[case]
fn sessions_share_too_few_workers() {
    let cluster = Cluster::start_with_extension(&[("max_worker_processes", "4")]);
    let mut sessions: Vec<_> = (0..12).map(|_| cluster.session("postgres")).collect();
    let jobs = "do $$ declare r int; begin for i in 1 .. 50 loop \
                select * into r from pg_background_result(pg_background_launch('select ' || i)) as (r int); \
                assert r = i; end loop; end $$";
    sessions.iter_mut().for_each(|session| session.send(jobs));
    for session in &mut sessions {
        assert_eq!(session.finish(jobs).error, None);
    }
}

/// Sessions that go on and on leave the next worker to one that has waited.
#[case(alone)]
fn a_session_that_waits_is_not_passed_over() {
    let cluster = Cluster::start_with_extension(&[("max_worker_processes", "3")]);
    let mut busy: Vec<_> = (0..2).map(|_| cluster.session("postgres")).collect();
    let endless = "do $$ begin loop perform from pg_background_result(pg_background_launch(\
                   'select pg_sleep(0.02)')) as (result text); end loop; end $$";
    busy.iter_mut().for_each(|session| session.send(endless));
    let mut watcher = cluster.session("postgres");
    let workers = "select count(*) from pg_stat_activity where backend_type = 'pg_background'";
    wait_until("both have a worker", || watcher.value(workers) == "2");
    let mut last = cluster.session("postgres");
    for number in 0..20 {
        assert_eq!(last.job(&format!("select {number}"), "n int"), [number.to_string()]);
    }
    for mut session in busy {
        session.canceller().cancel();
        assert_eq!(session.finish(endless).error.map(|error| error.sqlstate()).as_deref(), Some("57014"));
    }
}
