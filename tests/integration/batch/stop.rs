//! `pg_background_stop`.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{array, counts, drain, stop, stubborn, times, wait_at_barrier, Batch, FREEZE_LOG, NOBODY};
use pg_background_mgr_tests::{case, wait_until, Cluster, Db, Session, FOREVER};
use std::time::{Duration, Instant};

/// A job of `batch` that has been stopped.
#[track_caller]
fn assert_stopped(session: &mut Session, batch: &Batch, number: usize) {
    let row = "status || ' ' || sqlstate || ' ' || (message is not null and end_time_exec is not null)";
    assert_eq!(batch.log(session, number, row), "stopped 57014 true");
}

#[case]
fn a_batch_is_stopped_whole(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    session.run("create table ran (a int)");
    let text = format!("insert into ran values (1); {}", barrier::WAIT);
    let mut texts = vec!["select 1"];
    texts.extend(times(&text, 5));
    let batch = Batch::launch_with(&mut session, &texts, r#"{"max_workers": 2}"#);
    wait_at_barrier(&mut session, 2);
    let rows = session.rows(&format!("select uuid_child, was, now from pg_background_stop('{}')", batch.parent));
    assert_eq!(rows[0], format!("{}|succeeded|succeeded", batch.children[0]));
    // A worker whose last job was short has taken the one after its next one along.
    let mut rest = Vec::new();
    for (row, child) in rows[1..].iter().zip(&batch.children[1..]) {
        rest.push(row.strip_prefix(&format!("{child}|")).expect("the rows in the order of the list"));
    }
    rest.sort_unstable();
    assert_eq!(rest, [times("queued|stopped", 3), times("running|stopped", 2)].concat());
    assert_eq!(batch.finish(&mut session)[1..], times("stopped", 5));
    (1..6).for_each(|number| assert_stopped(&mut session, &batch, number));
    wait_at_barrier(&mut session, 0);
    barrier.open();
    assert_eq!(session.value("select count(*) from ran"), "0");
}

#[case]
fn a_job_is_stopped_alone(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = Batch::launch(&mut session, &times(barrier::WAIT, 3));
    wait_at_barrier(&mut session, 3);
    assert_eq!(stop(&mut session, &batch.children[1], None), ["running|stopped"]);
    assert_eq!(batch.states(&mut session), ["running", "stopped", "running"]);
    barrier.open();
    assert_eq!(batch.finish(&mut session), ["succeeded", "stopped", "succeeded"]);
}

#[case]
fn a_queued_job_is_stopped_and_never_runs(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    session.run("create table ran (a int)");
    let texts = [barrier::WAIT, "insert into ran values (1)", "insert into ran values (2)"];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"max_workers": 1}"#);
    wait_at_barrier(&mut session, 1);
    assert_eq!(stop(&mut session, &batch.children[1], None), ["queued|stopped"]);
    assert_eq!(batch.states(&mut session), ["running", "stopped", "queued"]);
    assert_stopped(&mut session, &batch, 1);
    assert_eq!(batch.log(&mut session, 1, "start_time_exec is null and pid is null and attempts = 0"), "t");
    barrier.open();
    assert_eq!(batch.finish(&mut session), ["succeeded", "stopped", "succeeded"]);
    assert_eq!(session.rows("table ran"), ["2"]);
}

#[case]
fn a_uuid_is_a_text_or_a_uuid(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = Batch::launch(&mut session, &times(barrier::WAIT, 4));
    wait_at_barrier(&mut session, 4);
    let children = &batch.children;
    for (child, uuid) in [
        (&children[0], format!("'{}'", children[0])),
        (&children[1], format!("'{}'::text", children[1])),
        (&children[2], format!("'{}'::uuid, '1 s'", children[2])),
        (&children[3], format!("uuid_father_or_child => '{}'::uuid", children[3])),
    ] {
        let rows = session.rows(&format!("select * from pg_background_stop({uuid})"));
        assert_eq!(rows, [format!("{child}|running|stopped")]);
    }
    barrier.open();
    assert_eq!(batch.finish(&mut session), times("stopped", 4));
}

#[case]
fn jobs_that_have_ended_stay_as_they_were(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch(&mut session, &["select 1", "select 1 / 0"]);
    batch.wait(&mut session);
    let row = "concat_ws('|', status, sqlstate, message, end_time_exec)";
    let before = batch.column(&mut session, row);
    for _ in 0..2 {
        assert_eq!(stop(&mut session, &batch.parent, None), ["succeeded|succeeded", "failed|failed"]);
        assert_eq!(stop(&mut session, &batch.children[1], None), ["failed|failed"]);
    }
    assert_eq!(batch.column(&mut session, row), before);
}

#[case]
fn a_stopped_job_says_who_stopped_it(db: &Db) {
    let (user, stopper) = (db.role("user", "login"), db.role("stopper", "login"));
    db.session().run(&format!("grant pg_signal_backend to {stopper}"));
    let (mut session, mut other) = (db.client().user(&user).connect(), db.client().user(&stopper).connect());
    let (mut admin, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = Batch::launch_with(&mut session, &[barrier::WAIT, "select 2"], r#"{"max_workers": 1}"#);
    wait_at_barrier(&mut admin, 1);
    // Nobody can write the log: it is known all the same.
    let mut holder = db.session();
    holder.run(FREEZE_LOG);
    stop(&mut other, &batch.parent, None);
    let expected = [
        format!("57014|stopped by user \"{stopper}\""),
        format!("57014|the job was stopped by user \"{stopper}\" before it started"),
    ];
    let row = "sqlstate || '|' || message";
    wait_until("both have ended", || batch.states(&mut session) == ["stopped", "stopped"]);
    assert_eq!(batch.column(&mut session, row), expected);
    holder.run("rollback");
    let unwritten = format!(
        "select count(*) from background_mgr.live() \
         where uuid_parent = '{}' and (not is_recorded or end_time_exec is null)",
        batch.parent
    );
    wait_until("the rows are written", || admin.value(&unwritten) == "0");
    assert_eq!(batch.finish(&mut session), ["stopped", "stopped"]);
    assert_eq!(batch.column(&mut session, row), expected);
    let messages = format!("'{}' order by queued_at, uuid_child", batch.parent);
    let jobs = format!("select sqlstate || '|' || message from pg_background_jobs where uuid_parent = {messages}");
    assert_eq!(session.rows(&jobs), expected);
    let monitor = format!("select '57014|' || message from pg_background_monitor('{}', false)", batch.parent);
    assert_eq!(session.rows(&monitor), expected);
    barrier.open();
}

#[case]
fn the_first_who_stopped_a_job_is_named(db: &Db) {
    let user = db.role("user", "login");
    let (mut session, mut admin) = (db.client().user(&user).connect(), db.session());
    let batch = Batch::launch(&mut session, &[&stubborn()]);
    batch.wait_asleep(&mut admin, 0);
    let call = format!("select * from pg_background_stop('{}', '1 hour')", batch.parent);
    session.send(&call);
    let pid = session.pid();
    wait_until("the first waits for the end", || {
        let waits = format!("select wait_event_type = 'Extension' from pg_stat_activity where pid = {pid}");
        admin.value(&waits) == "t"
    });
    assert_eq!(stop(&mut admin, &batch.parent, Some("0")), ["running|stopped"]);
    session.finish(&call);
    assert_eq!(batch.finish(&mut session), ["stopped"]);
    assert_eq!(batch.log(&mut session, 0, "message"), format!("stopped by user \"{user}\""));
}

#[case]
fn who_stopped_a_job_is_known_when_the_role_has_another_name(db: &Db) {
    let stopper = db.role("stopper", "login");
    let mut admin = db.session();
    admin.run(&format!("grant pg_signal_backend to {stopper}"));
    let user = db.role("user", "login");
    let mut session = db.client().user(&user).connect();
    let barrier = Barrier::close(db.session());
    let batch = Batch::launch_with(&mut session, &times(barrier::WAIT, 2), r#"{"max_workers": 1}"#);
    wait_at_barrier(&mut admin, 1);
    let mut holder = db.session();
    holder.run(FREEZE_LOG);
    let mut other = db.client().user(&stopper).connect();
    stop(&mut other, &batch.parent, None);
    drop(other);
    admin.run(&format!("alter role {stopper} rename to {stopper}_2; alter role {stopper}_2 rename to {stopper}_3"));
    holder.run("rollback");
    assert_eq!(batch.finish(&mut session), ["stopped", "stopped"]);
    let named = format!("message like '%stopped by user \"{stopper}\"%'");
    assert_eq!(batch.column(&mut session, &named), ["t", "t"]);
    admin.run(&format!("alter role {stopper}_3 rename to {stopper}"));
    barrier.open();
}

#[case]
fn a_job_stopped_between_attempts_says_so(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch_with(&mut session, &["select 1 / 0"], r#"{"max_attempts": 2, "retry_delay": "1 hour"}"#);
    wait_until("the first attempt has failed", || batch.log(&mut session, 0, "status || attempts") == "queued1");
    assert_eq!(stop(&mut session, &batch.parent, None), ["queued|stopped"]);
    assert_eq!(batch.finish(&mut session), ["stopped"]);
    let row = "sqlstate || ' ' || message";
    let expected = "57014 the job was stopped by user \"postgres\" before its next attempt";
    assert_eq!(batch.log(&mut session, 0, row), expected);
}

#[case]
fn the_effects_of_a_stopped_job_are_gone(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    session.run("create table ran (a int)");
    let texts = [
        format!("insert into ran values (1); {}; insert into ran values (2)", barrier::WAIT),
        format!("begin; insert into ran values (3); commit; insert into ran values (4); {}", barrier::WAIT),
    ];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let batch = Batch::launch(&mut session, &texts);
    wait_at_barrier(&mut session, 2);
    stop(&mut session, &batch.parent, None);
    assert_eq!(batch.finish(&mut session), ["stopped", "stopped"]);
    barrier.open();
    assert_eq!(session.rows("table ran"), ["3"], "what a job has committed stays");
}

#[case]
fn a_stop_survives_the_callers_rollback(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = Batch::launch_with(&mut session, &[barrier::WAIT, "select 2"], r#"{"max_workers": 1}"#);
    wait_at_barrier(&mut session, 1);
    session.run("begin");
    stop(&mut session, &batch.parent, None);
    session.run("rollback");
    assert_eq!(batch.finish(&mut session), ["stopped", "stopped"]);
    barrier.open();
}

#[case]
fn a_stopped_batch_makes_room(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    for _ in 0..10 {
        let batch = Batch::launch_with(&mut session, &times(barrier::WAIT, 20), r#"{"max_workers": 2}"#);
        wait_at_barrier(&mut session, 2);
        stop(&mut session, &batch.parent, None);
        assert_eq!(batch.finish(&mut session), times("stopped", 20));
        wait_at_barrier(&mut session, 0);
        Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    }
    barrier.open();
    assert_eq!(
        session.value(
            "select count(*) from pg_background_jobs where database = current_database() \
             and status in ('queued', 'running')"
        ),
        "0"
    );
}

#[case]
fn a_stopped_job_does_not_stop_the_next_of_a_sequence(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let texts = [barrier::WAIT, "select pg_sleep(0.1)", "select 3"];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential"}"#);
    wait_at_barrier(&mut session, 1);
    stop(&mut session, &batch.children[0], None);
    assert_eq!(batch.finish(&mut session), ["stopped", "succeeded", "succeeded"]);
    barrier.open();
}

#[case]
fn a_stopped_job_is_not_tried_again(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = Batch::launch_with(&mut session, &[barrier::WAIT], r#"{"max_attempts": 10}"#);
    wait_at_barrier(&mut session, 1);
    stop(&mut session, &batch.parent, None);
    assert_eq!(batch.finish(&mut session), ["stopped"]);
    assert_eq!(batch.log(&mut session, 0, "attempts"), "1");
    barrier.open();
}

/// A function that stops the job or the batch that it runs in.
const STOP_ME: &str = "create function stop_me(whole boolean) returns text language sql as $$ \
    select string_agg(was || ' ' || now, ', ') from pg_background_jobs j, \
    lateral pg_background_stop(case when whole then j.uuid_parent else j.uuid_child end) s \
    where j.pid = pg_backend_pid() $$";

#[case]
fn a_job_stops_itself(db: &Db) {
    let mut session = db.session();
    session.run(STOP_ME);
    let texts = [&format!("select stop_me(false); select {FOREVER}"), "select 2"];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential"}"#);
    assert_eq!(batch.finish(&mut session), ["stopped", "succeeded"]);
}

#[case]
fn a_job_stops_its_own_batch(db: &Db) {
    let mut session = db.session();
    session.run(STOP_ME);
    let texts = ["select 1", &format!("select stop_me(true); select {FOREVER}"), "select 3", "select 4"];
    let batch = Batch::launch_with(&mut session, &texts, r#"{"mode": "sequential"}"#);
    assert_eq!(batch.finish(&mut session), ["succeeded", "stopped", "stopped", "stopped"]);
}

#[case]
fn two_sessions_stop_one_batch(db: &Db) {
    let (mut session, mut other, barrier) = (db.session(), db.session(), Barrier::close(db.session()));
    for _ in 0..10 {
        let batch = Batch::launch_with(&mut session, &times(barrier::WAIT, 10), r#"{"max_workers": 3}"#);
        wait_at_barrier(&mut session, 3);
        let call = format!("select now from pg_background_stop('{}')", batch.parent);
        other.send(&call);
        assert_eq!(session.rows(&call), times("stopped", 10));
        let reply = other.finish(&call);
        assert_eq!(reply.last_rows().expect("rows").text_rows(), times("stopped", 10));
        assert_eq!(batch.finish(&mut session), times("stopped", 10));
    }
    barrier.open();
}

#[case]
fn ten_thousand_queued_jobs_are_stopped_at_once() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.max_workers", "2")]);
    let (mut session, barrier) = (cluster.session("postgres"), Barrier::close(cluster.session("postgres")));
    session.run("create table ran (a int)");
    let held = Batch::launch(&mut session, &times(barrier::WAIT, 2));
    wait_at_barrier(&mut session, 2);
    let jobs = "(select array_agg('insert into ran values (' || i || ')') from generate_series(1, 10000) i)";
    let batch = Batch::call(&mut session, &format!("pg_background_launch_num({jobs})"));
    let query = format!("select was, now, count(*) from pg_background_stop('{}') group by was, now", batch.parent);
    session.run("set statement_timeout = '30s'");
    assert_eq!(session.rows(&query), ["queued|stopped|10000"]);
    session.run("reset statement_timeout");
    barrier.open();
    held.succeed(&mut session);
    drain(&mut session);
    assert_eq!(counts(&mut session, &format!("uuid_parent = '{}'", batch.parent)), ["stopped 10000"]);
    assert_eq!(session.value("select count(*) from ran"), "0");
}

#[case]
fn a_job_that_catches_its_cancel_is_terminated_after_the_grace(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    let batch =
        Batch::launch_with(&mut session, &[&stubborn(), "insert into ran values (1)"], r#"{"mode": "sequential"}"#);
    batch.wait_asleep(&mut session, 0);
    let began = Instant::now();
    stop(&mut session, &batch.children[0], Some("0.3 s"));
    assert_eq!(batch.finish(&mut session), ["stopped", "succeeded"]);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(20), "{took:?}");
    assert_eq!(session.rows("table ran"), ["1"]);
    let told = batch.log(&mut session, 0, "sqlstate || ' ' || message");
    assert_eq!(told, "57014 stopped by user \"postgres\"");
}

#[case]
fn a_grace_of_nothing_terminates_at_once(db: &Db) {
    let mut session = db.session();
    // A negative one is none.
    for grace in ["0", "-1 s"] {
        let batch = Batch::launch(&mut session, &[&stubborn()]);
        batch.wait_asleep(&mut session, 0);
        stop(&mut session, &batch.parent, Some(grace));
        assert_eq!(batch.finish(&mut session), ["stopped"], "{grace}");
    }
}

#[case]
fn a_stop_does_not_wait_longer_than_it_must(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    let batch = Batch::launch(&mut session, &[barrier::WAIT]);
    wait_at_barrier(&mut session, 1);
    // The job goes at once; a stop that waited for its grace would take an hour.
    assert_eq!(stop(&mut session, &batch.parent, Some("1 hour")), ["running|stopped"]);
    assert_eq!(batch.finish(&mut session), ["stopped"]);
    barrier.open();
}

/// The call may have ended by itself: a stop need not wait for what it has asked.
#[case]
fn a_waiting_stop_can_be_cancelled(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch(&mut session, &[&stubborn()]);
    batch.wait_asleep(&mut session, 0);
    let call = format!("select * from pg_background_stop('{}', '1 hour')", batch.parent);
    session.run("set statement_timeout = '300ms'");
    let reply = session.ask(&call);
    assert!(reply.error.is_none_or(|error| error.sqlstate() == "57014"));
    session.run("reset statement_timeout");
    stop(&mut session, &batch.parent, Some("0"));
    assert_eq!(batch.finish(&mut session), ["stopped"]);
}

#[case]
fn bad_arguments_are_refused(db: &Db) {
    let mut session = db.session();
    for (arguments, states) in [
        (format!("'{NOBODY}'"), &["42704"][..]),
        (format!("'{NOBODY}'::uuid"), &["42704"]),
        ("'x'".to_owned(), &["22P02"]),
        ("''".to_owned(), &["22P02"]),
        ("null::text".to_owned(), &["22004"]),
        ("null::uuid".to_owned(), &["22004"]),
        (format!("'{NOBODY}', null"), &["22004"]),
        (format!("'{NOBODY}'::uuid, null"), &["22004"]),
    ] {
        let error = session.error(&format!("select * from pg_background_stop({arguments})"));
        assert!(states.contains(&error.sqlstate().as_str()), "{arguments}: {error}");
    }
}

/// One job after the other on one worker; every first is stopped while it runs, and no second is hit.
#[case]
fn a_stop_never_hits_the_next_job(db: &Db) {
    let (mut session, barrier) = (db.session(), Barrier::close(db.session()));
    session.run("create table ran (a int)");
    let work = "do $$ begin for i in 1 .. 200 loop perform i; end loop; end $$; insert into ran values (1)";
    for _ in 0..100 {
        let batch = Batch::launch_with(&mut session, &[barrier::WAIT, work, work], r#"{"mode": "sequential"}"#);
        wait_at_barrier(&mut session, 1);
        assert_eq!(stop(&mut session, &batch.children[0], None), ["running|stopped"]);
        assert_eq!(batch.finish(&mut session), ["stopped", "succeeded", "succeeded"]);
    }
    barrier.open();
    assert_eq!(session.value("select count(*) from ran"), "200");
}

/// Stops hit jobs at any moment, also in their last: what a stop says, what the log says and what was done agree.
#[case]
fn stops_at_random_are_exact(db: &Db) {
    let (mut session, mut stopper) = (db.session(), db.session());
    session.run("create table ran (a uuid)");
    let mut stopped = 0;
    for round in 0..40 {
        let texts: Vec<String> =
            (0..20).map(|number| format!("insert into ran select '{}'", uuid(round, number))).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let batch = Batch::launch_with(&mut session, &texts, r#"{"max_workers": 1}"#);
        // Every second one, as fast as they can be told.
        let even: Vec<&str> = batch.children.iter().step_by(2).map(String::as_str).collect();
        let told =
            stopper.rows(&format!("select s.now from unnest({}) c, lateral pg_background_stop(c) s", array(&even)));
        assert_eq!(told.len(), 10);
        let states = batch.finish(&mut session);
        let effect = "(select count(*) from ran where query = 'insert into ran select ''' || a || '''')";
        let effects = batch.column(&mut session, effect);
        for (number, (state, effect)) in states.iter().zip(&effects).enumerate() {
            let is_right = match state.as_str() {
                "succeeded" => effect == "1",
                "stopped" => effect == "0" && number % 2 == 0,
                _ => false,
            };
            assert!(is_right, "job {number}: {state}, {effect} rows");
        }
        for (number, now) in told.iter().enumerate() {
            // One that was asked while it ran may have been at its end.
            assert!(*now == states[2 * number] || now == "running" || now == "stopped", "{now} {states:?}");
        }
        stopped += states.iter().filter(|state| *state == "stopped").count();
    }
    assert!(stopped > 0, "no stop came in time");
}

fn uuid(round: u32, number: u32) -> String {
    format!("{round:08x}-0000-0000-0000-{number:012x}")
}

#[case]
fn the_owner_stops(db: &Db) {
    let user = db.role("user", "login");
    let client = db.client().user(&user);
    let (mut session, mut other, barrier) = (client.connect(), client.connect(), Barrier::close(db.session()));
    let batch = Batch::launch_with(&mut session, &times(barrier::WAIT, 3), r#"{"max_workers": 1}"#);
    wait_at_barrier(&mut db.session(), 1);
    assert_eq!(stop(&mut other, &batch.parent, None), ["running|stopped", "queued|stopped", "queued|stopped"]);
    assert_eq!(batch.finish(&mut session), times("stopped", 3));
    barrier.open();
}

#[case]
fn a_member_of_the_owner_stops(db: &Db) {
    let (user, member) = (db.role("user", "login"), db.role("member", "login"));
    db.session().run(&format!("grant {user} to {member}"));
    let (mut session, mut other) = (db.client().user(&user).connect(), db.client().user(&member).connect());
    let barrier = Barrier::close(db.session());
    let batch = Batch::launch(&mut session, &[barrier::WAIT]);
    wait_at_barrier(&mut db.session(), 1);
    assert_eq!(stop(&mut other, &batch.parent, None), ["running|stopped"]);
    assert_eq!(batch.finish(&mut session), ["stopped"]);
    barrier.open();
}

#[case]
fn a_superuser_stops_everybodys(db: &Db) {
    let user = db.role("user", "login");
    let (mut session, mut admin, barrier) =
        (db.client().user(&user).connect(), db.session(), Barrier::close(db.session()));
    let batch = Batch::launch(&mut session, &[barrier::WAIT]);
    wait_at_barrier(&mut admin, 1);
    assert_eq!(stop(&mut admin, &batch.parent, None), ["running|stopped"]);
    assert_eq!(batch.finish(&mut session), ["stopped"]);
    barrier.open();
}

#[case]
fn a_signaller_stops_others_but_no_superusers(db: &Db) {
    let (user, signaller) = (db.role("user", "login"), db.role("signaller", "login"));
    let mut admin = db.session();
    admin.run(&format!("grant pg_signal_backend to {signaller}"));
    let (mut session, mut other) = (db.client().user(&user).connect(), db.client().user(&signaller).connect());
    let barrier = Barrier::close(db.session());
    let batch = Batch::launch_with(&mut session, &times(barrier::WAIT, 2), r#"{"max_workers": 1}"#);
    let superusers = Batch::launch_with(&mut admin, &times(barrier::WAIT, 2), r#"{"max_workers": 1}"#);
    wait_at_barrier(&mut admin, 2);
    assert_eq!(stop(&mut other, &batch.parent, None), ["running|stopped", "queued|stopped"]);
    for uuid in [&superusers.parent, &superusers.children[0], &superusers.children[1]] {
        let error = other.error(&format!("select * from pg_background_stop('{uuid}')"));
        assert!(["42501", "42704"].contains(&error.sqlstate().as_str()), "{error}");
    }
    barrier.open();
    superusers.succeed(&mut admin);
}

/// The error for what is not there, in the words for what is somebody else's.
#[track_caller]
fn assert_unknown(session: &mut Session, call: &str, uuid: &str) {
    let foreign = session.error(&call.replace("{}", uuid));
    let unknown = session.error(&call.replace("{}", NOBODY));
    assert_eq!(foreign.sqlstate(), "42704", "{foreign}");
    assert_eq!(foreign.to_string().replace(uuid, NOBODY), unknown.to_string());
}

#[case]
fn a_stranger_learns_nothing(db: &Db) {
    let (user, stranger) = (db.role("user", "login"), db.role("stranger", "login"));
    let (mut session, mut other) = (db.client().user(&user).connect(), db.client().user(&stranger).connect());
    let barrier = Barrier::close(db.session());
    let ended = Batch::launch(&mut session, &["select 1"]);
    ended.wait(&mut session);
    let batch = Batch::launch_with(&mut session, &times(barrier::WAIT, 2), r#"{"max_workers": 1}"#);
    wait_at_barrier(&mut db.session(), 1);
    for uuid in [&batch.parent, &batch.children[0], &batch.children[1], &ended.parent, &ended.children[0]] {
        for call in [
            "select * from pg_background_stop('{}')",
            "select * from pg_background_stop('{}'::uuid, '0')",
            "select * from pg_background_monitor('{}')",
            "select * from pg_background_monitor('{}'::uuid, false, '0')",
            "select * from pg_background_retry('{}')",
            "select * from pg_background_retry('{}'::uuid)",
        ] {
            assert_unknown(&mut other, call, uuid);
        }
    }
    assert_eq!(batch.states(&mut session), ["running", "queued"]);
    barrier.open();
    batch.succeed(&mut session);
}
