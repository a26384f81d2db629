//! Attacks of others on the log, whatever they are granted and whatever they own.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{set_server, times, wait_at_barrier, Batch};
use pg_background_mgr_tests::{case, wait_until, Cluster, Db, Session};

/// A role with a function that makes it a superuser, if it runs with the rights for that; and its session.
fn mallory(db: &Db) -> (String, Session) {
    let role = format!("{}_mallory", db.name);
    db.session().run(&format!(
        "create role {role} login; create schema {role} authorization {role}; \
         create table {role}.keyed (id uuid primary key); alter table {role}.keyed owner to {role}"
    ));
    let mut session = db.client().user(&role).connect();
    session.run(&format!(
        "create function {role}.spring() returns trigger language plpgsql as \
         $$ begin execute 'alter role {role} superuser'; return coalesce(new, old); end $$; \
         create function {role}.gives(text) returns text immutable language plpgsql as \
         $$ begin if current_user <> '{role}' then execute 'alter role {role} superuser'; end if; return $1; end $$; \
         create function {role}.gives(anyelement) returns boolean immutable language plpgsql as \
         $$ begin return {role}.gives('x') is not null; end $$"
    ));
    (role, session)
}

#[track_caller]
fn assert_no_superuser(session: &mut Session, role: &str) {
    assert_eq!(session.value(&format!("select rolsuper from pg_roles where rolname = '{role}'")), "f");
}

/// Runs a job of each kind and deletes its row in each way, while the role that attacks has done what it could.
#[track_caller]
fn use_log(session: &mut Session) {
    let batch = Batch::launch_with(session, &["select 1", "select 1 / 0", "vacuum"], r#"{"max_attempts": 2}"#);
    assert_eq!(batch.finish(session), ["succeeded", "failed", "succeeded"]);
    wait_until("the rows are written", || batch.written(session) == ["succeeded", "failed", "succeeded"]);
    session.run(&format!("select * from pg_background_retry('{}')", batch.parent));
    assert_eq!(batch.finish(session), ["succeeded", "failed", "succeeded"]);
    wait_until("the rows are written", || batch.written(session) == ["succeeded", "failed", "succeeded"]);
    let delete = format!("delete from log_background where uuid_parent = '{}' and status = 'failed'", batch.parent);
    assert_eq!(session.run(&delete).tags(), ["DELETE 1"]);
    assert_eq!(session.value("select pg_background_prune('0')"), "2");
}

/// Statements for everything that PostgreSQL lets a role do to a relation, with all rights on it and on its schema.
const ATTACKS: &[&str] = &[
    "insert into background_mgr.log select * from background_mgr.log",
    "copy background_mgr.log from '/dev/null'",
    "copy background_mgr.log from stdin",
    "update background_mgr.log set status = 'failed'",
    "delete from background_mgr.log",
    "truncate background_mgr.log",
    "truncate background_mgr.log cascade",
    "lock table background_mgr.log in access exclusive mode",
    "lock table background_mgr.log in access share mode",
    "select * from background_mgr.log for update",
    "select * from background_mgr.log for key share",
    "create trigger t before insert or update or delete on background_mgr.log \
     for each row execute function {}.spring()",
    "create trigger t after insert or update or delete on background_mgr.log \
     for each statement execute function {}.spring()",
    "create constraint trigger t after insert on background_mgr.log for each row execute function {}.spring()",
    "create rule r as on insert to background_mgr.log do also select {}.gives('x')",
    "create rule r as on delete to log_background do instead select {}.gives('x')",
    "create policy p on background_mgr.log using ({}.gives('x') is not null)",
    "create index on background_mgr.log ({}.gives(status))",
    "create unique index on background_mgr.log (status)",
    "create statistics {}.s on pid, status from background_mgr.log",
    "create table {}.child () inherits (background_mgr.log)",
    "create table {}.referrer (job uuid references background_mgr.log (uuid_child))",
    "alter table {}.keyed add foreign key (id) references background_mgr.log (uuid_child)",
    "alter table background_mgr.log add foreign key (uuid_child) references {}.keyed",
    "alter table background_mgr.log add check ({}.gives(status) is not null)",
    "alter table background_mgr.log alter column status set default {}.gives('x')",
    "alter table background_mgr.log enable row level security",
    "alter table background_mgr.log inherit {}.keyed",
    "alter table background_mgr.log disable trigger all",
    "alter table background_mgr.log replica identity full",
    "alter table background_mgr.log set unlogged",
    "alter materialized view background_mgr.log owner to {}",
    "alter materialized view background_mgr.log set schema {}",
    "alter materialized view background_mgr.log rename to log2",
    "alter materialized view background_mgr.log rename column status to status2",
    "alter materialized view background_mgr.log set (fillfactor = 10)",
    "alter index background_mgr.log_uuid_child rename to i",
    "drop index background_mgr.log_uuid_child",
    "drop materialized view background_mgr.log cascade",
    "drop view log_background cascade",
    "drop schema background_mgr cascade",
    "drop sequence background_mgr.log_id cascade",
    "drop extension pg_background_mgr cascade",
    "alter extension pg_background_mgr drop materialized view background_mgr.log",
    "create or replace function background_mgr.log_rows() returns setof background_mgr.log \
     language sql as 'select null'",
    "comment on materialized view background_mgr.log is 'mine'",
    "create publication p for table background_mgr.log",
    "refresh materialized view background_mgr.log",
    "refresh materialized view concurrently background_mgr.log",
    // What has an effect, and none on the log's truth.
    "select setval('background_mgr.log_id', 9223372036854775807)",
    "select nextval('background_mgr.log_id')",
    "create function background_mgr.live() returns int language sql as 'select 1'",
    "create table background_mgr.log2 (a int)",
    "vacuum background_mgr.log",
    "analyze background_mgr.log",
];

#[case]
fn who_is_granted_everything_has_no_effect_on_the_log(db: &Db) {
    let (role, mut mallory) = mallory(db);
    let mut admin = db.session();
    let kept = Batch::launch(&mut admin, &["select 1", "select 2"]);
    kept.succeed(&mut admin);
    let barrier = Barrier::close(db.session());
    let running = Batch::launch(&mut admin, &[barrier::WAIT]);
    wait_at_barrier(&mut admin, 1);
    for schema in ["public", "background_mgr"] {
        admin.run(&format!(
            "grant all on schema {schema} to {role}; grant all on all tables in schema {schema} to {role}; \
             grant all on all sequences in schema {schema} to {role}; \
             grant all on all functions in schema {schema} to {role}"
        ));
    }
    let last = ATTACKS.iter().position(|text| text.starts_with("select setval")).expect("what is possible");
    for (number, text) in ATTACKS.iter().enumerate() {
        let text = text.replace("{}", &role);
        let reply = mallory.ask(&text);
        let is_refused = reply.error.is_some();
        // Who may maintain it (17) reaches what refuses to refresh it.
        assert_eq!(is_refused, number < last, "{text}: {:?}", reply.error);
        mallory.ask("rollback");
    }
    for text in ["begin; select * from background_mgr.log", "create table mine (like background_mgr.log)"] {
        mallory.run(text);
    }
    barrier.open();
    running.succeed(&mut admin);
    assert_eq!(kept.written(&mut admin), ["succeeded", "succeeded"]);
    assert_eq!(kept.column(&mut admin, "query"), ["select 1", "select 2"]);
    admin.run("delete from log_background");
    use_log(&mut admin);
    mallory.run("rollback");
    assert_no_superuser(&mut admin, &role);
    // His rights let him delete what he sees of the ended, and empty what he may maintain; not run anything as others.
    admin.run(&format!(
        "drop table if exists background_mgr.log2; drop function background_mgr.live(); drop owned by {role} cascade"
    ));
}

#[case]
fn who_may_have_triggers_on_the_view_has_none_run(db: &Db) {
    let (role, mut mallory) = mallory(db);
    let mut admin = db.session();
    admin.run(&format!("grant all on all tables in schema public to {role}"));
    Batch::launch(&mut admin, &["select 1"]).succeed(&mut admin);
    admin.run("prepare d as delete from log_background where status = 'failed'; execute d");
    for event in
        ["instead of delete on log_background for each row", "before delete on log_background for each statement"]
    {
        mallory.run(&format!("create trigger \"!\" {event} execute function {role}.spring()"));
        for text in ["delete from log_background", "execute d"] {
            let error = admin.error(text);
            let message = r#"view "log_background" has a trigger that is not part of extension "pg_background_mgr""#;
            assert_eq!(error.brief(), ("55000".to_owned(), message.to_owned()), "{event}");
        }
        assert_no_superuser(&mut admin, &role);
        admin.run("select * from log_background; drop trigger \"!\" on log_background; execute d");
    }
    use_log_with(&mut admin, 1);
    assert_no_superuser(&mut admin, &role);
    admin.run(&format!("drop owned by {role} cascade"));
}

#[case]
fn who_may_maintain_the_log_loses_no_end_of_a_job(db: &Db) {
    let mut admin = db.session();
    let barrier = Barrier::close(db.session());
    let text = format!("{}; select 1 as a", barrier::WAIT);
    let batch = Batch::launch_with(&mut admin, &times(&text, 4), r#"{"max_workers": 2}"#);
    wait_at_barrier(&mut admin, 2);
    // The owner of the log, and from 17 on who may maintain it.
    admin.run("refresh materialized view background_mgr.log with no data");
    assert_eq!(admin.error("select * from log_background").sqlstate(), "55000");
    let stopped = admin.rows(&format!("select was, now from pg_background_stop('{}')", batch.children[3]));
    assert_eq!(stopped, ["queued|stopped"]);
    barrier.open();
    wait_until("the ends", || {
        let written = admin.ask("select status from background_mgr.log order by uuid_child");
        let rows = written.last_rows().map(|rows| rows.text_rows()).unwrap_or_default();
        rows == ["succeeded", "succeeded", "succeeded", "stopped"]
    });
    assert_eq!(batch.finish(&mut admin), ["succeeded", "succeeded", "succeeded", "stopped"]);
    let whole = "query <> '' and queued_at is not null and user_name = current_user and attempts < 2 \
                 and (result is not null) = (status = 'succeeded')";
    assert_eq!(batch.column(&mut admin, whole), times("t", 4));
    use_log_with(&mut admin, 4);
}

/// Calls [`use_log`], beside so many rows of others that have ended.
#[track_caller]
fn use_log_with(session: &mut Session, others: usize) {
    assert_eq!(session.value("select pg_background_prune('0')"), others.to_string());
    use_log(session);
}

#[case]
fn an_owner_of_the_log_has_no_code_run_with_other_rights(db: &Db) {
    let (role, mut owner) = mallory(db);
    let mut admin = db.session();
    admin.run(&format!(
        "alter schema background_mgr owner to {role}; alter materialized view background_mgr.log owner to {role}"
    ));
    for index in [
        "on background_mgr.log ({}.gives(status))",
        "on background_mgr.log ({}.gives('x'::text))",
        "on background_mgr.log (pid) where {}.gives(status) is not null",
        "on background_mgr.log (pid) where {}.gives('x'::text) is not null",
    ] {
        let index = index.replace("{}", &role);
        let barrier = Barrier::close(db.session());
        let before = Batch::launch(&mut admin, &[&format!("{}; select 1", barrier::WAIT)]);
        wait_at_barrier(&mut admin, 1);
        owner.run(&format!("create index trap {index}"));
        barrier.open();
        // The jobs run; their rows wait until the log is as the extension has made it.
        let batch = Batch::call(&mut admin, "pg_background_launch_num(array['select 1'])");
        let live = format!(
            "select status from background_mgr.live() where uuid_parent in ('{}', '{}') order by queued_at",
            before.parent, batch.parent
        );
        wait_until("the jobs have run", || admin.rows(&live) == ["succeeded", "succeeded"]);
        // Nor is it read, but by who asks for it.
        for text in
            ["select pg_background_prune('0')", &format!("select * from pg_background_retry('{}')", batch.parent)]
        {
            let error = admin.error(text);
            assert_eq!(error.brief(), ("55000".to_owned(), "the log of pg_background_mgr was altered".to_owned()));
        }
        assert_no_superuser(&mut admin, &role);
        owner.run("drop index background_mgr.trap");
        for batch in [&before, &batch] {
            wait_until("the rows are written", || batch.written(&mut admin) == ["succeeded"]);
        }
        assert_eq!(admin.value("select pg_background_prune('0')"), "2");
    }
    assert_no_superuser(&mut admin, &role);
    admin.run(&format!("reassign owned by {role} to postgres; drop schema {role} cascade"));
}

#[case]
fn an_owner_of_the_log_changes_what_can_be_changed(db: &Db) {
    let (role, mut owner) = mallory(db);
    let mut admin = db.session();
    admin.run(&format!(
        "alter schema background_mgr owner to {role}; alter materialized view background_mgr.log owner to {role}; \
         alter sequence background_mgr.log_id owner to {role}"
    ));
    for text in [
        "create index plain on background_mgr.log using hash (name)",
        "create index more on background_mgr.log (user_name, pid desc) include (status)",
        "create index few on background_mgr.log using brin (queued_at)",
        "create index words on background_mgr.log using gin (options)",
        "drop index background_mgr.log_uuid_parent",
        "alter index background_mgr.log_queued_at rename to i",
        "alter materialized view background_mgr.log cluster on plain",
        "alter materialized view background_mgr.log cluster on more",
        "cluster background_mgr.log",
        "reindex table background_mgr.log",
        "alter materialized view background_mgr.log set (fillfactor = 10)",
        "alter materialized view background_mgr.log alter column query set storage external",
        "alter materialized view background_mgr.log alter column query set statistics 0",
        "alter materialized view background_mgr.log rename column query to text",
        "alter materialized view background_mgr.log rename to renamed",
        "alter sequence background_mgr.log_id rename to numbers",
        "alter schema background_mgr rename to renamed",
        "alter sequence renamed.numbers restart",
        "drop index renamed.i",
        "drop index renamed.log_uuid_child",
    ] {
        let reply = owner.ask(text);
        if let Some(error) = reply.error {
            // A schema is renamed by who may create one; a hash has no order to cluster on.
            assert!(["42501", "0A000"].contains(&error.sqlstate().as_str()), "{text}: {error}");
            admin.ask(text);
        }
        let batch = Batch::launch_with(&mut admin, &["select 1", "select 1 / 0"], r#"{"max_attempts": 2}"#);
        assert_eq!(batch.finish(&mut admin), ["succeeded", "failed"], "{text}");
        let mut pruned = 0;
        wait_until(&format!("the rows are written: {text}"), || {
            pruned += admin.number("select pg_background_prune('0')");
            pruned == 2
        });
    }
    assert_no_superuser(&mut admin, &role);
    admin.run(&format!("reassign owned by {role} to postgres; drop schema {role} cascade"));
}

#[case]
fn the_log_is_refreshed_only_when_it_is_empty(db: &Db) {
    let mut session = db.session();
    session.run("refresh materialized view background_mgr.log");
    let batch = Batch::launch(&mut session, &["select 1"]);
    batch.succeed(&mut session);
    for text in
        ["refresh materialized view background_mgr.log", "refresh materialized view concurrently background_mgr.log"]
    {
        let error = session.error(text);
        assert_eq!(error.brief(), ("55000".to_owned(), "the log of pg_background_mgr cannot be refreshed".to_owned()));
    }
    assert_eq!(batch.written(&mut session), ["succeeded"]);
    // Nobody else comes to the rows by the function that it is made from.
    assert_eq!(session.error("select * from background_mgr.log_rows()").sqlstate(), "55000");
    session
        .run("refresh materialized view background_mgr.log with no data; refresh materialized view background_mgr.log");
    assert_eq!(session.value("select count(*) from log_background"), "0");
    use_log(&mut session);
}

#[case]
fn a_trigger_function_of_the_extension_serves_nobody_else(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch(&mut session, &["select 1"]);
    batch.succeed(&mut session);
    session.run(
        "create view v as select * from log_background; create table t as select * from log_background; \
         create trigger t instead of delete on v for each row execute function background_mgr.delete_job(); \
         create trigger t before delete on t for each row execute function background_mgr.delete_job(); \
         create trigger u after update on t for each statement execute function background_mgr.delete_job()",
    );
    for text in ["delete from v", "delete from t", "update t set pid = 1"] {
        assert_eq!(session.error(text).sqlstate(), "39P01", "{text}");
    }
    assert_eq!(batch.written(&mut session), ["succeeded"]);
}

/// Lists what others than the owners may do with members of the extension.
const RIGHTS: &str = "select m.name, a.grantee::regrole, a.privilege_type from pg_extension e \
    join pg_depend d on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid and d.deptype = 'e' \
    join (select tableoid, oid, proname::text as name, proowner as owner, \
        coalesce(proacl, acldefault('f', proowner)) as acl \
        from pg_proc \
        union all select tableoid, oid, relname, relowner, relacl from pg_class \
        union all select tableoid, oid, nspname, nspowner, nspacl from pg_namespace) m \
        on m.tableoid = d.classid and m.oid = d.objid, aclexplode(m.acl) a \
    where e.extname = 'pg_background_mgr' and a.grantee <> m.owner order by 1, 2, 3";

#[case]
fn default_privileges_give_nothing(db: &Db) {
    let role = format!("{}_role", db.name);
    let mut admin = db.session();
    admin.run(&format!("drop extension pg_background_mgr; create role {role} login"));
    for to in [role.as_str(), "public"] {
        admin.run(&format!(
            "alter default privileges grant all on tables to {to}; \
             alter default privileges grant all on sequences to {to}; \
             alter default privileges grant all on functions to {to}; \
             alter default privileges grant all on schemas to {to}; \
             alter default privileges in schema public grant all on tables to {to}"
        ));
    }
    admin.run("create extension pg_background_mgr");
    assert_eq!(admin.rows(RIGHTS), [""; 0]);
    let mut session = db.client().user(&role).connect();
    for call in ["pg_background_launch('select 1')", "pg_background_launch_num(array['select 1'])", "log_background"] {
        assert_eq!(session.error(&format!("select * from {call}")).sqlstate(), "42501", "{call}");
    }
    admin.run(&format!("select pg_background_grant('{role}')"));
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
    assert_eq!(session.error("select * from background_mgr.log").sqlstate(), "42501");
    // Nothing of the log, but what the views call; nothing that writes.
    let more = format!("select string_agg(distinct privilege_type, ' ' order by privilege_type) from ({RIGHTS}) r");
    assert_eq!(admin.value(&more), "EXECUTE SELECT");
    let own = format!(
        "select distinct name from ({RIGHTS}) r where name in ('log', 'log_id', 'all_jobs', 'log_rows', 'delete_job')"
    );
    assert_eq!(admin.rows(&own), [""; 0]);
}

#[case]
fn what_is_granted_on_all_tables_shows_own_rows_only(db: &Db) {
    let role = db.role("role", "login");
    let mut admin = db.session();
    Batch::launch(&mut admin, &["select 'secret'"]).succeed(&mut admin);
    admin.run(&format!(
        "grant all on all tables in schema public to {role}; grant all on all functions in schema public to {role}"
    ));
    let mut session = db.client().user(&role).connect();
    let own = Batch::launch(&mut session, &["select 'own'"]);
    own.succeed(&mut session);
    for view in ["log_background", "pg_background_jobs"] {
        assert_eq!(session.rows(&format!("select distinct user_name from {view}")), [role.as_str()]);
    }
    // He may delete what he sees and has ended: not that of others.
    assert_eq!(session.run("delete from log_background").tags(), ["DELETE 1"]);
    for text in [
        "truncate log_background",
        "update log_background set status = 'x'",
        "insert into log_background (pid) values (1)",
    ] {
        assert!(session.ask(text).error.is_some(), "{text}");
    }
    assert_eq!(admin.rows("select trim(query) from log_background"), ["select 'secret'"]);
}

#[case]
fn a_namesake_of_the_sequence_is_of_no_account(db: &Db) {
    let (mut session, mut other) = (db.session(), db.session());
    session.run(
        "drop extension pg_background_mgr; create sequence pg_background_log_id_seq; create sequence log_id; \
         create extension pg_background_mgr",
    );
    other.run("begin; alter sequence pg_background_log_id_seq restart 100; alter sequence log_id restart 100");
    use_log(&mut session);
    assert_eq!(session.value("select last_value from background_mgr.log_id"), "3");
    other.run("commit");
    assert_eq!(session.value("select nextval('log_id')"), "100");
}

/// Publishes a row in one cluster after its jobs, and waits until an apply worker has brought it into the other.
#[track_caller]
fn follow(source: &mut Session, target: &mut Session, number: usize) {
    source.run(&format!("insert into app values ({number})"));
    let query = format!("select count(*) from app where a = {number}");
    wait_until("what is published", || target.value(&query) == "1");
}

#[case]
fn publications_leave_the_log_out() {
    let publisher = Cluster::start_with_extension(&[("wal_level", "logical")]);
    let with = Cluster::start_with_extension(&[("wal_level", "logical")]);
    let without = Cluster::start_new(&[]);
    let mut source = publisher.session("postgres");
    source.run("create table app (a int primary key)");
    // Rows from before, for the initial copy, and some for the stream.
    Batch::launch(&mut source, &["select 1", "select 1 / 0"]).wait(&mut source);
    source.run("create publication p for all tables");
    let place =
        |session: &mut Session| session.value("select split_part(current_setting('unix_socket_directories'), ',', 1)");
    let subscribe = |target: &mut Session, place: &str, name: &str| {
        target.run(&format!(
            "create subscription {name} connection 'host={place} user=postgres dbname=postgres' publication p"
        ));
    };
    let from = place(&mut source);
    let mut targets = [with.session("postgres"), without.session("postgres")];
    for (number, target) in targets.iter_mut().enumerate() {
        target.run("create table app (a int primary key)");
        subscribe(target, &from, &format!("s{number}"));
    }
    for number in 1..=2 {
        Batch::launch(&mut source, &["select 1", "select 1 / 0"]).wait(&mut source);
        Batch::launch(&mut targets[0], &["select 2"]).wait(&mut targets[0]);
        for (index, target) in targets.iter_mut().enumerate() {
            follow(&mut source, target, 10 * number + index);
        }
        source.run("delete from log_background where status = 'failed'");
    }
    // Back, from the one that has the extension.
    let [mut back, mut without] = targets;
    for text in
        ["alter subscription s1 disable", "alter subscription s1 set (slot_name = none)", "drop subscription s1"]
    {
        without.run(text);
    }
    for text in ["drop subscription s0", "create publication p for all tables"] {
        back.run(text);
    }
    let to = place(&mut back);
    source.run("truncate app");
    back.run("truncate app");
    subscribe(&mut source, &to, "back");
    Batch::launch(&mut back, &["select 2"]).wait(&mut back);
    follow(&mut back, &mut source, 3);
    // No row of another server.
    assert_eq!(back.rows("select distinct trim(query) from background_mgr.log"), ["select 2"]);
    assert_eq!(source.value("select count(*) from background_mgr.log where query = 'select 2'"), "0");
    source.run("drop subscription back");
}

#[case]
fn nothing_stays_of_an_extension_that_was_dropped() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.max_workers", "6")]);
    let (mut session, mut locker) = (cluster.session("postgres"), cluster.session("postgres"));
    let barrier = Barrier::close(cluster.session("postgres"));
    let batch = Batch::launch(&mut session, &times(barrier::WAIT, 6));
    wait_at_barrier(&mut session, 6);
    // Nobody has come to it: it is in a file only.
    let waiting = Batch::call(&mut session, "pg_background_launch_num(array['select 1'])");
    let files = "select count(*) from pg_ls_dir('pg_background_mgr') as f where f not like '%.attempt'";
    assert_eq!(session.value(files), "1");
    session.run("drop extension pg_background_mgr");
    barrier.open();
    wait_until("the jobs' end", || {
        session.value("select count(*) from pg_stat_activity where backend_type = 'pg_background' and state = 'active'")
            == "0"
    });
    session.run("create extension pg_background_mgr");
    wait_until("no file of it stays", || {
        Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
        session.value(files) == "0"
    });
    for batch in [&batch, &waiting] {
        assert_eq!(batch.states(&mut session), [""; 0]);
    }
    let notes = "select count(*) from pg_ls_dir('pg_background_mgr') as f where f like '%.note2'";
    // Those of jobs whose end is still to be written do.
    let barrier = Barrier::close(cluster.session("postgres"));
    let batch = Batch::launch(&mut session, &times(barrier::WAIT, 2));
    wait_at_barrier(&mut session, 2);
    locker.run(crate::support::batch::LOCK_LOG);
    barrier.open();
    wait_until("notes", || session.value(notes) == "2");
    set_server(&cluster, &mut session, "pg_background_mgr.worker_idle_timeout", "0");
    Batch::call(&mut session, "pg_background_launch_num(array['select 1'])");
    assert_eq!(session.value(notes), "2");
    locker.run("rollback");
    batch.succeed(&mut session);
    wait_until("they are in the log", || session.value(notes) == "0");
}

/// LOCK goes on to the relations that a view reads, with the rights of its owner.
#[case]
fn who_locks_the_views_keeps_nobody_out(db: &Db) {
    let (role, mut locker) = mallory(db);
    let mut admin = db.session();
    admin.run(&format!("grant all on all tables in schema public to {role}"));
    for view in ["log_background", "pg_background_jobs", "pg_background_batches"] {
        locker.run(&format!("begin; lock table {view} in access exclusive mode"));
        let locked = format!(
            "select c.relnamespace::regnamespace, c.relkind from pg_locks l join pg_class c on c.oid = l.relation \
             where l.pid = {} and l.mode = 'AccessExclusiveLock' and c.relkind <> 'v' or l.pid = {} and \
             l.mode = 'AccessExclusiveLock' and c.relnamespace = 'pg_catalog'::regnamespace",
            locker.pid(),
            locker.pid()
        );
        assert_eq!(admin.rows(&locked), [""; 0], "{view}");
        // Others log in, run jobs and have their rows written.
        let mut other = db.session();
        let batch = Batch::call(&mut other, "pg_background_launch_num(array['select 1'])");
        wait_until("the row is written", || {
            admin.value(&format!(
                "select count(*) from background_mgr.log where uuid_parent = '{}' and status = 'succeeded'",
                batch.parent
            )) == "1"
        });
        locker.run("rollback");
    }
}

#[case]
fn who_reads_statistics_deletes_nothing(db: &Db) {
    let (role, mut reader) = mallory(db);
    let mut admin = db.session();
    admin.run(&format!(
        "grant pg_read_all_stats to {role}; select pg_background_grant('{role}'); \
         grant delete on log_background to {role}"
    ));
    let batch = Batch::launch(&mut admin, &["select 1"]);
    batch.succeed(&mut admin);
    wait_until("the row is written", || batch.written(&mut admin) == ["succeeded"]);
    assert_eq!(reader.value("select count(*) from log_background"), "1");
    assert_eq!(reader.run("delete from log_background").tags(), ["DELETE 0"]);
    assert_eq!(batch.written(&mut admin), ["succeeded"]);
}

#[case]
fn a_savepoint_does_not_give_the_log_away(db: &Db) {
    let mut session = db.session();
    let batch = Batch::launch(&mut session, &times("select 1", 3));
    batch.succeed(&mut session);
    wait_until("the rows are written", || batch.written(&mut session) == ["succeeded"; 3]);
    session.run("begin; savepoint a");
    assert_eq!(session.value("select pg_background_prune('0')"), "3");
    session.run("rollback to a");
    assert_eq!(session.value("select pg_background_prune('0')"), "3");
    let locks =
        "select count(*) from pg_locks where pid = pg_backend_pid() and relation = 'background_mgr.log'::regclass \
                 and mode = 'RowExclusiveLock'";
    assert_eq!(session.value(locks), "1");
    session.run("commit");
}
