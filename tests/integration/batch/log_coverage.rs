//! Rows of the log: each job has one, whatever it does, also while the log is locked.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{array, cell, drain, fill_log, times, wait_at_barrier, Batch, LOCK_LOG};
use crate::support::job_stage::Paused;
use pg_background_mgr_tests::env::env;
use pg_background_mgr_tests::{case, wait_for, wait_until, Cluster, Db, Stop, SLEEP_FOREVER};

#[case]
fn a_jobs_row_commits_with_its_work(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table ran (a int)");
    for number in 0..100 {
        let batch = Batch::launch(&mut session, &[&format!("insert into ran values ({number})")]);
        // One snapshot has either both or none; the view may know more than it.
        let both = format!(
            "select (select count(*) from ran where a = {number}) || ' ' || \
             coalesce((select status from background_mgr.log where uuid_child = '{child}'), 'queued') || ' ' || \
             (select status from log_background where uuid_child = '{child}')",
            child = batch.children[0]
        );
        wait_until("the end of the job", || {
            let seen = watcher.value(&both);
            let told = ["0 queued queued", "0 queued running", "0 queued succeeded", "1 succeeded succeeded"];
            assert!(told.contains(&seen.as_str()), "{seen}");
            seen == "1 succeeded succeeded"
        });
    }
}

#[case]
fn explicit_transactions_are_logged(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    for (text, state, result) in [
        ("begin; insert into ran values (1); commit", "succeeded", "BEGIN\nINSERT 0 1\nCOMMIT"),
        ("begin; insert into ran values (2); rollback", "succeeded", "BEGIN\nINSERT 0 1\nROLLBACK"),
        (
            "begin; insert into ran values (3); commit; begin; \
             insert into ran values (4); commit",
            "succeeded",
            "BEGIN\nINSERT 0 1\nCOMMIT\nBEGIN\nINSERT 0 1\nCOMMIT",
        ),
        ("insert into ran values (5); commit; insert into ran values (6); rollback", "succeeded", ""),
        (
            "begin; insert into ran values (7); savepoint s; \
             insert into ran values (8); rollback to s; commit and chain; commit",
            "succeeded",
            "",
        ),
        ("begin; insert into ran values (9); commit; select 1 / 0", "failed", ""),
        ("begin; insert into ran values (10); select 1 / 0; commit", "failed", ""),
    ] {
        let batch = Batch::launch(&mut session, &[text]);
        assert_eq!(batch.finish(&mut session), [state], "{text}");
        if !result.is_empty() {
            assert_eq!(batch.log(&mut session, 0, "result"), result, "{text}");
        }
    }
    assert_eq!(session.rows("select a from ran order by a"), ["1", "3", "4", "5", "7", "9"]);
}

#[case]
fn an_unfinished_transaction_is_a_failure(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    let texts = [
        "begin; insert into ran values (1)",
        "select 2",
        "begin; insert into ran values (3); select 1 / 0",
        "select 4",
    ];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"max_workers": 1}"#);
    assert_eq!(batch.finish(&mut session), ["failed", "succeeded", "failed", "succeeded"]);
    assert_eq!(batch.column(&mut session, "sqlstate"), ["25000", "∅", "22012", "∅"]);
    assert_eq!(session.rows("table ran"), [""; 0]);
}

#[case]
fn a_deferred_constraint_fails_the_job(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int unique deferrable initially deferred)");
    let texts =
        ["insert into t values (1), (1)", "begin; insert into t values (2), (2); commit", "insert into t values (3)"];
    let batch = Batch::launch(&mut session, &texts);
    assert_eq!(batch.finish(&mut session), ["failed", "failed", "succeeded"]);
    assert_eq!(batch.column(&mut session, "sqlstate"), ["23505", "23505", "∅"]);
    assert_eq!(session.rows("table t"), ["3"]);
}

#[case]
fn commands_outside_transactions_are_logged(db: &Db) {
    let mut session = db.session();
    session.run("create table t as select i as a from generate_series(1, 100) i");
    let texts = [
        "vacuum t",
        "vacuum full t",
        "create index concurrently i on t (a)",
        "reindex table t",
        "analyze",
        "vacuum (analyze) t",
    ];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential"}"#);
    // Following it would keep the index waiting for the follower's snapshot.
    drain(&mut session);
    batch.succeed(&mut session);
    assert_eq!(
        batch.column(&mut session, "result"),
        ["VACUUM", "VACUUM", "CREATE INDEX", "REINDEX", "ANALYZE", "VACUUM"]
    );
    assert_eq!(session.rows("select indisvalid from pg_index where indexrelid = 'i'::regclass"), ["t"]);
    let batch = Batch::launch(
        &mut session,
        &["vacuum t; select 1", "begin; vacuum t; commit", "create index concurrently j on nothing (a)"],
    );
    assert_eq!(batch.finish(&mut session), ["failed", "failed", "failed"]);
    assert_eq!(batch.column(&mut session, "sqlstate"), ["25001", "25001", "42P01"]);
}

#[case]
fn a_procedure_that_commits_is_logged(db: &Db) {
    let mut session = db.session();
    session.run(
        "create table ran (a int); create procedure p(n int) language plpgsql as $$ begin for i in 1 .. n loop \
         insert into ran values (i); if i % 2 = 0 then commit; else rollback; end if; end loop; \
         if n > 5 then raise 'too many'; end if; end $$",
    );
    let batch = Batch::launch_with(&mut session, &["call p(4)", "call p(7)"], r#"{"mode": "sequential"}"#);
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed"]);
    assert_eq!(batch.log(&mut session, 0, "result"), "CALL");
    assert_eq!(batch.log(&mut session, 1, "message"), "too many");
    assert_eq!(session.rows("table ran"), ["2", "4", "2", "4", "6"]);
}

#[case]
fn a_prepared_transaction_is_logged(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    let name = &db.name;
    let text = format!("begin; insert into ran values (1); prepare transaction '{name}'");
    let batch = Batch::launch(&mut session, &[&text]);
    batch.succeed(&mut session);
    assert_eq!(session.value("select count(*) from ran"), "0");
    let batch = Batch::launch(&mut session, &[&format!("commit prepared '{name}'")]);
    batch.succeed(&mut session);
    assert_eq!(session.rows("table ran"), ["1"]);
}

#[case]
fn a_read_only_job_is_logged(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int); set default_transaction_read_only = on");
    let texts = [
        "select count(*) as n from ran",
        "insert into ran values (1)",
        "begin; select 1; commit",
        "begin read write; insert into ran values (2); commit",
        "select 1 / 0",
    ];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential"}"#);
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed", "succeeded", "succeeded", "failed"]);
    assert_eq!(batch.log(&mut session, 1, "sqlstate"), "25006");
    assert_eq!(batch.log(&mut session, 0, &cell("n")), "0");
    assert_eq!(session.rows("table ran"), ["2"]);
    session.run("reset default_transaction_read_only");
    let batch = Batch::launch(
        &mut session,
        &["set transaction read only; select 1 as a", "begin read only; select 2 as a; commit"],
    );
    batch.succeed(&mut session);
    assert_eq!(batch.column(&mut session, &cell("a")), ["1", "2"]);
}

#[case]
fn jobs_of_any_isolation_level_are_logged(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a text)");
    for level in ["repeatable read", "serializable", "serializable read only deferrable"] {
        let texts = [
            format!("begin isolation level {level}; select count(*) from ran; commit"),
            format!("set transaction isolation level {level}; select 1"),
        ];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        Batch::launch(&mut session, &texts).succeed(&mut session);
    }
    session.run("set default_transaction_isolation = serializable");
    let batch = Batch::launch(
        &mut session,
        &["insert into ran values (current_setting('transaction_isolation'))", "select 1 / 0"],
    );
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed"]);
    assert_eq!(session.rows("table ran"), ["serializable"]);
}

/// Each job reads and writes a table of its own: no conflict is possible but over the log.
#[case]
fn serializable_jobs_do_not_conflict_over_the_log(db: &Db) {
    let mut session = db.session();
    session.run("set default_transaction_isolation = serializable");
    session.run(
        "do $$ begin for i in 100 .. 199 loop execute format('create table t%s (a int primary key)', i); \
         end loop; end $$",
    );
    let texts: Vec<String> =
        (100..200).map(|number| format!("insert into t{number} select count(*) from t{number}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for _ in 0..3 {
        session.run("do $$ begin for i in 100 .. 199 loop execute format('delete from t%s', i); end loop; end $$");
        Batch::launch(&mut session, &texts).succeed(&mut session);
    }
}

#[case]
fn an_empty_text_of_comments_is_logged(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch(&mut session, &["-- nothing", ";"]);
    batch.succeed(&mut session);
    assert_eq!(batch.column(&mut session, "coalesce(row_count, 0)"), ["0", "0"]);
}

#[case]
fn settings_of_a_job_do_not_disturb_the_log(db: &Db) {
    let mut session = db.session();
    session.run(
        "create schema evil; create table evil.log_background (a int); create table evil.pg_background_log (a int); \
         create function evil.now() returns timestamptz language plpgsql as $$ begin raise 'a shadow was used'; end $$",
    );
    let texts = [
        "set search_path = evil, pg_catalog; select 1 as a",
        "set datestyle = 'German'; set intervalstyle = iso_8601; set timezone = 'Asia/Tokyo'; \
         set bytea_output = escape; select 1 as a",
        "set standard_conforming_strings = off; set escape_string_warning = on; select 1 as a",
        "select 1 as a; set lock_timeout = '1ms'; set statement_timeout = '1ms'",
        "set row_security = off; set client_encoding = 'LATIN1'; select 1 as a",
        "set extra_float_digits = -15; set xmloption = document; set array_nulls = off; \
         set transform_null_equals = on; select 1 as a",
        "set enable_seqscan = off; set enable_indexscan = off; set enable_bitmapscan = off; select 1 as a",
        "set default_transaction_isolation = serializable; set default_transaction_deferrable = on; select 1 as a",
        "set client_min_messages = debug5; set log_min_messages = debug5; set log_error_verbosity = verbose; \
         select 1 as a",
        "set session_replication_role = replica; select 1 as a",
        "set synchronous_commit = off; select 1 as a",
        "set quote_all_identifiers = on; set plan_cache_mode = force_generic_plan; set jit_above_cost = 0; \
         select 1 as a",
    ];
    let batch = Batch::launch(&mut session, &texts);
    batch.succeed(&mut session);
    assert_eq!(batch.column(&mut session, &cell("a")), times("1", texts.len()));
    session.run("set search_path = evil, pg_catalog");
    let batch = Batch::launch(&mut session, &["select 1 as a"]);
    batch.succeed(&mut session);
    let stopped = session.rows(&format!("select was from public.pg_background_stop('{}')", batch.parent));
    assert_eq!(stopped, ["succeeded"]);
    session.run("select * from public.pg_background_jobs");
    session.run("select * from public.pg_background_batches");
}

#[case]
fn triggers_cannot_be_hung_on_the_log(db: &Db) {
    let user = db.role("user", "login");
    db.session().run(&format!("grant create on schema public to {user}"));
    let mut weak = db.client().user(&user).connect();
    weak.run("create function trap() returns trigger language plpgsql as $$ begin raise 'trapped'; end $$");
    for target in ["log_background", "background_mgr.log"] {
        let error =
            weak.error(&format!("create trigger t before update on {target} for each row execute function trap()"));
        assert!(["42501", "42809"].contains(&error.sqlstate().as_str()), "{error}");
        let error = weak.error(&format!("create rule r as on update to {target} do instead nothing"));
        assert_eq!(error.sqlstate(), "42501", "{error}");
    }
}

#[case]
fn session_replication_role_does_not_disturb_the_log(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int); set session_replication_role = replica");
    let batch = Batch::launch(&mut session, &["insert into ran values (1)", "select 1 / 0"]);
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed"]);
}

/// The names of the table that is behind the view.
#[case]
fn a_locked_log_does_not_fail_a_job(db: &Db) {
    let (mut session, mut locker, mut watcher, barrier) =
        (db.session(), db.session(), db.session(), Barrier::close(db.session()));
    session.run("create table ran (a int)");
    let text = format!("{}; insert into ran values (1)", barrier::WAIT);
    let failing = format!("{}; select 1 / 0", barrier::WAIT);
    let batch = Batch::launch(&mut session, &[&text, &failing]);
    wait_at_barrier(&mut session, 2);
    locker.run(LOCK_LOG);
    barrier.open();
    wait_until("the job's work", || watcher.value("select count(*) from ran") == "1");
    locker.run("rollback");
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed"]);
    let rows = batch.column(&mut session, "end_time_exec is not null and pid is not null and attempts = 1");
    assert_eq!(rows, ["t", "t"]);
    assert_eq!(batch.log(&mut session, 1, "sqlstate"), "22012");
    assert_eq!(session.value("select count(*) from ran"), "1");
}

#[case]
fn a_locked_log_does_not_hide_states(db: &Db) {
    let (mut session, mut locker, barrier) = (db.session(), db.session(), Barrier::close(db.session()));
    session.run("create table ran (a int)");
    let texts = [format!("{}; select 1", barrier::WAIT), format!("{}; select 1 / 0", barrier::WAIT)];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let batch = Batch::launch(&mut session, &texts);
    wait_at_barrier(&mut session, 2);
    locker.run(LOCK_LOG);
    // The log itself cannot be read; what the server knows without it can.
    session.run("set statement_timeout = '20s'");
    let now = format!("select status from pg_background_monitor('{}', false, '0') order by 1", batch.parent);
    assert_eq!(session.rows(&now), ["running", "running"]);
    barrier.open();
    let followed = format!("select status from pg_background_monitor('{}', false) order by 1", batch.parent);
    assert_eq!(session.rows(&followed), ["failed", "succeeded"]);
    locker.run("rollback");
    assert_eq!(batch.finish(&mut session), ["succeeded", "failed"]);
}

/// The process of the call gets no time between the end of the job and the lock, and there is no room in the queue for
/// what has ended.
#[case]
fn a_call_that_has_waited_knows_how_jobs_ended_whoever_has_the_log() {
    let cluster = Cluster::start_with_extension(&[
        ("pg_background_mgr.queue_memory_limit", "64kB"),
        ("pg_background_mgr.worker_idle_timeout", "0"),
    ]);
    let session = || cluster.session("postgres");
    let (mut session, mut watcher, mut locker) = (session(), session(), session());
    let failing = array(&[&format!("{}; select 1 / 0", barrier::WAIT)]);
    let calls = [
        format!("select status from pg_background_launch_num({failing}, p_exec_type => 'sync')"),
        format!(
            "select status from pg_background_monitor((select uuid_parent \
             from pg_background_launch_num({failing})), false)"
        ),
    ];
    for call in calls {
        let barrier = Barrier::close(cluster.session("postgres"));
        session.send(&call);
        wait_at_barrier(&mut watcher, 1);
        let paused = Paused::at_rest(session.pid(), &mut watcher);
        barrier.open();
        // Its row is written then.
        cluster.wait_no_workers();
        let too_much = "select pg_background_launch_num(array[repeat('-', 100000)])";
        assert_eq!(watcher.ask(too_much).error.expect("an error").sqlstate(), "53400");
        locker.run(LOCK_LOG);
        drop(paused);
        let reply = session.finish(&call);
        assert!(reply.error.is_none(), "{call}: {:?}", reply.error);
        assert_eq!(reply.last_rows().expect("rows").text_rows(), ["failed"], "{call}");
        locker.run("rollback");
    }
}

/// No file of the cluster may grow beyond so many bytes: a full disk, for the files that are that large already.
fn limit_files(cluster: &Cluster, bytes: &str) {
    for process in cluster.processes() {
        // One that has gone in the meantime needs no limit.
        let pid = format!("--pid={}", process.pid);
        let _ = env().command("/usr/bin/prlimit").args([pid, format!("--fsize={bytes}:")]).output();
    }
}

#[case]
fn a_full_disk_does_not_fail_a_job() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "200ms")]);
    let mut session = cluster.session("postgres");
    session.run("create table ran (a int)");
    let finished = Batch::launch(&mut session, &["select 1"]);
    finished.succeed(&mut session);
    // More than a segment of the write-ahead log, which must still be written.
    let many = "background_mgr.log, generate_series(0, 150000) as i";
    let uuid = "case i when 0 then uuid_child else md5(i::text)::uuid end";
    fill_log(&mut session, many, &[("uuid_child", uuid)]);
    let bytes = session.value("select pg_relation_size('background_mgr.log')");
    assert!(bytes.parse::<u64>().expect("a number") > 17 << 20, "{bytes}");
    limit_files(&cluster, &bytes);
    // Its last page takes a few rows more.
    let mark = cluster.log_mark();
    let mut batches = Vec::new();
    wait_until("a log that is full", || {
        let batch = Batch::launch(&mut session, &["insert into ran values (1)", "select 1 / 0"]);
        let ended = format!("select status from pg_background_monitor('{}', false) order by 1", batch.parent);
        assert_eq!(session.rows(&ended), ["failed", "succeeded"]);
        let rows = format!("select count(*) from background_mgr.log where uuid_parent = '{}'", batch.parent);
        batches.push(batch);
        session.value(&rows) == "0"
    });
    cluster.wait_log(mark, "the reason", |line| line.text.contains("could not extend file"));
    assert_eq!(session.value("select count(*) from ran"), batches.len().to_string());
    limit_files(&cluster, "unlimited");
    for batch in &batches {
        assert_eq!(batch.finish(&mut session), ["succeeded", "failed"]);
        assert_eq!(batch.log(&mut session, 1, "sqlstate"), "22012");
    }
    let rows = "select count(*) from background_mgr.log where sqlstate = '22012'";
    wait_until("all rows in the table", || session.value(rows) == batches.len().to_string());
}

#[case]
fn a_locked_log_does_not_hold_up_jobs_for_ever(db: &Db) {
    let (mut session, mut locker, mut watcher) = (db.session(), db.session(), db.session());
    session.run("create table ran (a int)");
    let barrier = Barrier::close(db.session());
    let text = format!("{}; insert into ran values (1)", barrier::WAIT);
    let batch = Batch::launch_with(&mut session, &times(&text, 6), r#"{"max_workers": 2}"#);
    wait_at_barrier(&mut session, 2);
    locker.run(LOCK_LOG);
    barrier.open();
    wait_until("the jobs' work", || watcher.value("select count(*) from ran") == "6");
    // Nobody waits for the lock but those who read.
    locker.run("rollback");
    batch.succeed(&mut session);
    let waiting = "select count(*) from pg_locks where relation = 'background_mgr.log'::regclass and not granted \
                   and database = (select oid from pg_database where datname = current_database())";
    assert_eq!(watcher.value(waiting), "0");
}

/// A reader's snapshot may be older than what the server knows of a job, and newer.
#[case]
fn no_job_is_lost_while_the_server_lives(db: &Db) {
    let (mut session, mut watcher) = (db.session(), db.session());
    session.run("create table ran (a int)");
    let texts = times("insert into ran values (1)", 500);
    let batch = Batch::launch(&mut session, &texts);
    let of_batch = format!("where uuid_parent = '{}'", batch.parent);
    wait_until("the end of all jobs", || {
        let look = format!("select count(*), count(*) filter (where status = 'lost') from log_background {of_batch}");
        assert_eq!(watcher.rows(&look), ["500|0"]);
        let look =
            format!("select count(*), count(*) filter (where status = 'lost') from pg_background_jobs {of_batch}");
        assert_eq!(watcher.rows(&look), ["500|0"]);
        let look = format!(
            "select total, lost, queued + running + succeeded, queued + running from pg_background_batches {of_batch}"
        );
        let seen = watcher.value(&look);
        assert!(seen.starts_with("500|0|500|"), "{seen}");
        seen.ends_with("|0")
    });
    assert_eq!(session.value("select count(*) from ran"), "500");
}

#[case]
fn a_caller_with_an_old_snapshot_sees_the_truth_by_functions(db: &Db) {
    let (mut session, mut other) = (db.session(), db.session());
    for level in ["repeatable read", "serializable"] {
        session.run(&format!("begin isolation level {level}; select count(*) from pg_class"));
        let batch = Batch::launch(&mut other, &["select 1", "select 1 / 0"]);
        let followed =
            session.rows(&format!("select status from pg_background_monitor('{}', false) order by 1", batch.parent));
        assert_eq!(followed, ["failed", "succeeded"], "{level}");
        let own = Batch::launch(&mut session, &["select 2"]);
        let followed =
            session.rows(&format!("select status, query from pg_background_monitor('{}', false)", own.parent));
        assert_eq!(followed, ["succeeded|select 2"], "{level}");
        let stopped = session.rows(&format!("select was, now from pg_background_stop('{}')", own.parent));
        assert_eq!(stopped, ["succeeded|succeeded"], "{level}");
        session.run("commit");
    }
}

/// A session that commits waits for a standby that never comes, unless it has said that it does not want to.
#[case]
fn the_log_waits_for_no_standby() {
    let cluster = Cluster::start_with_extension(&[]);
    let mut session = cluster.client("postgres").parameter("options", "-c synchronous_commit=local").connect();
    session.run("create table ran (a int)");
    session.run("alter system set synchronous_standby_names = 'nobody'");
    cluster.reload();
    let mut patient = cluster.session("postgres");
    let waits =
        format!("select count(*) from pg_stat_activity where pid = {} and wait_event = 'SyncRep'", patient.pid());
    wait_until("the server waits for its standby", || {
        let before = session.number("select count(*) from ran");
        patient.send("insert into ran values (0)");
        let is_waiting = wait_for("the commit, or its wait", || {
            // Nobody sees a row whose commit waits.
            let is_done = session.number("select count(*) from ran") > before;
            (is_done || session.value(&waits) == "1").then_some(!is_done)
        });
        if !is_waiting {
            patient.finish("the commit");
        }
        is_waiting
    });
    let ended = Batch::launch(&mut session, &["insert into ran values (1)", "select 1 / 0"]);
    assert_eq!(ended.finish(&mut session), ["succeeded", "failed"]);
    let running = Batch::launch(&mut session, &[SLEEP_FOREVER]);
    running.wait_state(&mut session, 0, "running");
    // What a job commits does wait as it was told to, and a limit of its time is no reason not to.
    session.run("set synchronous_commit = on");
    let held = Batch::launch_with(&mut session, &["insert into ran values (2)"], r#"{"timeout": 0.2}"#);
    let waits_on =
        "select count(*) from pg_stat_activity where backend_type = 'pg_background' and wait_event = 'SyncRep' \
                    and clock_timestamp() > xact_start + interval '0.6 s'";
    wait_until("the job waits for its standby beyond its limit", || session.value(waits_on) == "1");
    assert_eq!(held.states(&mut session), ["running"]);
    drop(session);
    cluster.stop(Stop::Fast);
    std::fs::remove_file(cluster.data().join("postgresql.auto.conf")).expect("the setting is gone");
    cluster.start();
    let mut session = cluster.session("postgres");
    assert_eq!(running.states(&mut session), ["stopped"]);
    assert_eq!(held.states(&mut session), ["succeeded"], "it was committed here");
    assert_eq!(session.value("select count(*) from ran where a = 2"), "1");
}
