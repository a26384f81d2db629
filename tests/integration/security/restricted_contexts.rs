//! Places from which no job may be launched.

use pg_background_mgr_tests::env::{env, forced_parallel};
use pg_background_mgr_tests::{case, wait_until, Cluster, Db, Session};

const RESTRICTED: &str = "cannot launch a background job within a security-restricted operation";

/// A role's table and a function for its index that launches once it is armed: what a superuser's maintenance calls.
fn set_trap(db: &Db) -> (String, Session) {
    let weak = db.role("weak", "login");
    let mut session = db.session();
    session.run(&format!(
        "create table ran (a int); grant insert on ran to public; \
         create table t as select i as a from generate_series(1, 10) i; alter table t owner to {weak}; \
         create function trap(int) returns int immutable language plpgsql as $$ begin \
         if current_setting('my.armed', true) = 'on' then \
         perform public.pg_background_launch('insert into public.ran values (1)'); \
         end if; return $1; end $$; \
         alter function trap owner to {weak}"
    ));
    (weak, session)
}

#[track_caller]
fn assert_refused(session: &mut Session, commands: &[&str]) {
    session.run("set my.armed = 'on'");
    for command in commands {
        let error = session.error(command);
        assert_eq!(error.brief(), ("42501".to_owned(), RESTRICTED.to_owned()), "{command}");
    }
    session.run("set my.armed = 'off'");
    assert_eq!(session.value("select count(*) from ran"), "0");
}

#[case]
fn index_expressions_do_not_launch(db: &Db) {
    let (_, mut session) = set_trap(db);
    session.run("create index trapped on t (trap(a))");
    let commands = [
        "create index on t (trap(a))",
        "create index on t (a) where trap(a) > 0",
        "create index concurrently broken on t (trap(a))",
        "reindex index trapped",
        "reindex table t",
        "vacuum full t",
        "cluster t using trapped",
    ];
    assert_refused(&mut session, &commands);
    // Where rows are changed, the index's function runs with the rights of whoever changes them.
    session.run("set my.armed = 'on'; insert into t values (11)");
    wait_until("the job's row", || session.value("select count(*) from ran") != "0");
}

#[case]
fn analyze_does_not_launch(db: &Db) {
    let (_, mut session) = set_trap(db);
    session.run("create index trapped on t (trap(a))");
    assert_refused(&mut session, &["analyze t", "vacuum analyze t"]);
}

#[case]
fn materialized_views_do_not_launch(db: &Db) {
    let (weak, mut session) = set_trap(db);
    session.run(&format!(
        "create materialized view m as select trap(a) as a from t; alter materialized view m owner to {weak}; \
         create unique index on m (a)"
    ));
    let commands = [
        "refresh materialized view m",
        "refresh materialized view concurrently m",
        "create materialized view n as select trap(a) as a from t",
    ];
    assert_refused(&mut session, &commands);
}

/// The results of the session are its user's, not the table owner's.
#[case]
fn results_are_not_read_in_a_restricted_operation(db: &Db) {
    let (_, mut session) = set_trap(db);
    let pid = session.launch("select 'secret'");
    for (function, call) in [("read", "pg_background_result"), ("discard", "pg_background_detach")] {
        session.run(&format!(
            "create function {function}(int) returns int immutable language plpgsql as $$ begin \
             if current_setting('my.armed', true) = 'on' then perform public.{call}({pid}); end if; return $1; end $$; \
             create index {function} on t ({function}(a)); set my.armed = 'on'"
        ));
        let error = session.error("analyze t");
        let message = "cannot read or give up the result of a background job within a security-restricted operation";
        assert_eq!(error.brief(), ("42501".to_owned(), message.to_owned()));
        session.run(&format!("set my.armed = 'off'; drop index {function}"));
    }
    assert_eq!(session.result(pid, "a text"), ["secret"]);
}

#[case]
fn a_definers_function_in_a_restricted_operation_does_not_launch(db: &Db) {
    let (_, mut session) = set_trap(db);
    session.run(
        "alter function trap security definer; alter function trap owner to postgres; \
         create index trapped on t (trap(a))",
    );
    assert_refused(&mut session, &["analyze t", "reindex index trapped"]);
}

#[case]
fn autovacuum_does_not_launch() {
    let cluster = Cluster::start_with_extension(&[("autovacuum", "on"), ("autovacuum_naptime", "1s")]);
    let mark = cluster.log_mark();
    let mut session = cluster.session("postgres");
    session.run(
        "create table ran (a int); \
         create table t (a int) with (autovacuum_analyze_threshold = 1, autovacuum_analyze_scale_factor = 0); \
         create function trap(int) returns int immutable language plpgsql as $$ begin \
         if (select backend_type from pg_stat_activity where pid = pg_backend_pid()) = 'autovacuum worker' then \
         perform public.pg_background_launch('insert into public.ran values (1)'); \
         end if; return $1; end $$; \
         create index on t (trap(a))",
    );
    // A session that ends reports its statistics at once.
    cluster.session("postgres").run("insert into t select generate_series(1, 100)");
    let line = cluster.wait_log(mark, "the refusal", |line| line.sqlstate == "42501");
    assert_eq!((line.kind.as_str(), line.text.as_str()), ("ERROR", RESTRICTED));
    assert_eq!(session.value("select count(*) from ran"), "0");
}

#[case]
fn a_parallel_worker_does_not_launch(db: &Db) {
    let mut session = db.session();
    let force = forced_parallel();
    session.run(&format!(
        "create table ran (a int); create function sneak() returns int parallel safe language plpgsql as \
         $$ begin return pg_background_launch('insert into ran values (1)'); end $$; \
         set {force} = on"
    ));
    let error = session.error("select sneak()");
    assert_eq!(error.brief(), ("42501".to_owned(), "cannot launch a background job from a parallel worker".to_owned()));
    assert_eq!(session.value("select count(*) from ran"), "0");
}

#[case]
fn a_walsender_does_not_launch(db: &Db) {
    let mut session = db.client().parameter("replication", "database").connect();
    let error = session.error("select pg_background_launch('select 1')");
    assert_eq!(error.brief(), ("42501".to_owned(), "cannot launch a background job from a walsender".to_owned()));
}

/// Changes are applied from 16 on as the owner of the table, which must not launch.
#[case]
fn a_subscription_launches_as_its_owner_only() {
    let publisher = Cluster::start_new(&[("wal_level", "logical")]);
    let subscriber = Cluster::start_with_extension(&[]);
    let mut source = publisher.session("postgres");
    source.run("create table t (a int primary key); create publication p for table t");
    let place = source.value("select split_part(current_setting('unix_socket_directories'), ',', 1)");
    let mut session = subscriber.session("postgres");
    session.run(
        "create role app; select pg_background_grant('app'); create table ran (a int); \
         create table t (a int primary key); alter table t owner to app; \
         create function start_job() returns trigger language plpgsql as $$ begin \
         perform public.pg_background_launch('insert into public.ran values (1)'); return new; end $$; \
         create trigger start_job after insert on t for each row execute function start_job(); \
         alter table t enable always trigger start_job",
    );
    let mark = subscriber.log_mark();
    session
        .run(&format!("create subscription s connection 'host={place} user=postgres dbname=postgres' publication p"));
    source.run("insert into t values (1)");
    if env().version >= 16 {
        let line = subscriber.wait_log(mark, "the refusal", |line| line.sqlstate == "42501");
        assert_eq!(line.text, RESTRICTED);
        let hint = "Changes are applied as the owner of the table. Create or alter the subscription WITH \
                    (run_as_owner = true) to let triggers launch jobs as its owner.";
        subscriber.wait_log(mark, "the hint", |line| line.kind == "HINT" && line.text == hint);
        session.run("alter subscription s set (run_as_owner = true)");
    }
    wait_until("the job's row", || session.value("select count(*) from ran") == "1");
    session.run("drop subscription s");
}
