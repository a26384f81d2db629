//! Every function of the extension, also those of later versions, where it must not launch or must not tell.

use crate::support::batch::{Batch, NOBODY};
use crate::support::catalog::{functions, Function};
use pg_background_mgr_tests::env::forced_parallel;
use pg_background_mgr_tests::{case, literal, wait_until, Db, ServerError, Session, FOREVER};

const INSERT: &str = "insert into public.ran values (1)";

/// Calls of every function: with a uuid, and with a text to run, where each takes a text.
fn calls(session: &mut Session, uuid: &str, pid: i32) -> Vec<String> {
    let statement = |function: &Function, text| function.statement(&function.least_arguments(text, uuid, pid));
    let functions = functions(session);
    functions.iter().flat_map(|function| [uuid, INSERT].map(|text| statement(function, text))).collect()
}

/// A superuser's session with a job that runs, and one whose result is not read; the batch of the first, the other's
/// process.
fn secrets(db: &Db) -> (Session, Batch, i32) {
    let mut session = db.session();
    session.run("create table ran (a int); grant insert on ran to public");
    let batch = Batch::launch(&mut session, &[&format!("select 'secret' from {FOREVER}")]);
    batch.wait_state(&mut session, 0, "running");
    let pid = session.launch("select 'secret'");
    (session, batch, pid)
}

/// Asserts that nothing ran, and that the superuser's jobs are as they were.
#[track_caller]
fn assert_untouched(session: &mut Session, batch: &Batch, pid: i32) {
    assert_eq!(session.value("select count(*) from log_background"), "1");
    assert_eq!(batch.states(session), ["running"]);
    assert_eq!(session.result(pid, "a text"), ["secret"]);
    session.run(&format!("select pg_background_stop('{}')", batch.parent));
    assert_eq!(session.value("select count(*) from ran"), "0");
}

#[case(slow)]
fn no_function_launches_or_tells_in_a_restricted_operation(db: &Db) {
    let weak = db.role("weak", "login");
    let (mut session, batch, pid) = secrets(db);
    // What the call gives has nothing of the superuser's: that is looked for in the operation itself.
    session.run(&format!(
        "create table t as select 1 as a; alter table t owner to {weak}; \
         create function trap(int) returns int immutable language plpgsql as $$ declare r record; begin \
         if current_setting('my.call', true) <> '' then \
         for r in execute current_setting('my.call') loop \
         if r::text like '%secret%' then raise 'told: %', r; end if; end loop; end if; return $1; end $$; \
         alter function trap owner to {weak}; create index trapped on t (trap(a)); create materialized view m as \
         select public.trap(a) from public.t; alter materialized view m owner to {weak}"
    ));
    let calls = calls(&mut db.client().user(&weak).connect(), &batch.parent, pid);
    for call in calls.iter().filter(|call| !call.starts_with("call")) {
        session.run(&format!("set my.call = {}", literal(call)));
        for command in ["analyze t", "reindex table t", "refresh materialized view m"] {
            if let Some(error) = session.ask(command).error {
                assert!(!error.message().starts_with("told") && !error.sqlstate().starts_with("XX"), "{call}: {error}");
            }
        }
    }
    session.run("reset my.call");
    assert_untouched(&mut session, &batch, pid);
}

#[case(slow)]
fn no_function_launches_in_a_parallel_worker(db: &Db) {
    let (mut session, batch, pid) = secrets(db);
    session.run(
        "create function sneak(call text) returns int parallel safe language plpgsql as \
         $$ declare r record; begin for r in execute call loop null; end loop; return 1; end $$",
    );
    for call in calls(&mut session, NOBODY, pid).iter().filter(|call| !call.starts_with("call")) {
        session.run(&format!("set {} = on", forced_parallel()));
        let error = session.ask(&format!("select sneak({})", literal(call))).error;
        session.run(&format!("set {} = off", forced_parallel()));
        // The server itself refuses what would look at the log as it is now.
        let is_refused = |message: &str| message == "cannot update SecondarySnapshot during a parallel operation";
        let is_internal = |error: &ServerError| error.sqlstate().starts_with("XX") && !is_refused(&error.message());
        assert!(!error.as_ref().is_some_and(is_internal), "{call}: {error:?}");
    }
    assert_untouched(&mut session, &batch, pid);
}

#[case(slow)]
fn no_function_tells_a_foreign_uuid_from_an_unknown_one(db: &Db) {
    let stranger = db.role("stranger", "login");
    let (mut session, batch, pid) = secrets(db);
    let mut other = db.client().user(&stranger).connect();
    let mut answer = |function: &Function, uuid: &str| {
        let reply = other.ask(&function.statement(&function.least_arguments(uuid, uuid, pid)));
        let rows = reply.last_rows().map(|rows| rows.text_rows()).unwrap_or_default().join("\n");
        let error = reply.error.map(|error| error.to_string()).unwrap_or_default();
        format!("{rows}{error}").replace(uuid, "the uuid")
    };
    let mut compared = 0;
    for function in functions(&mut db.client().user(&stranger).connect()) {
        let unknown = answer(&function, NOBODY);
        // What launches gives other numbers each time, or says which word of the uuid is no SQL.
        if answer(&function, NOBODY) == unknown && !unknown.starts_with("ERROR 42601") {
            for uuid in [&batch.parent, &batch.children[0]] {
                assert_eq!(answer(&function, uuid), unknown, "{function:?}");
            }
            compared += 1;
        }
    }
    assert!(compared > 5, "{compared} functions");
    // The stranger may launch jobs, of which these are the last.
    let ended = "select count(*) from log_background where status in ('queued', 'running')";
    wait_until("the stranger's jobs have ended", || other.value(ended) == "0");
    other.run("select pg_background_prune('0')");
    assert_untouched(&mut session, &batch, pid);
}
