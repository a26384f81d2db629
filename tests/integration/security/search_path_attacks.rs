//! Objects of others: none is taken for what the extension's own SQL means.

use crate::security::privileges::{assert_all, assert_none, stranger, MEMBERS};
use crate::support::barrier::{self, Barrier};
use crate::support::batch::{crash, wait_at_barrier, Batch, LOCK_LOG};
use pg_background_mgr_tests::{case, literal, wait_until, Cluster, Db, Session, FOREVER, SLEEP_FOREVER};

/// SQL text that makes, in schema `evil`, whatever the extension's own SQL could name by mistake. Each raises an error
/// as soon as it is used.
const EVIL: &str = "
create schema evil;
grant all on schema evil to public;
create function evil.boom() returns boolean language plpgsql as $$ begin \
raise 'a shadow was used' using errcode = 'EV1L0'; end $$;
create function evil.count_step(bigint) returns bigint language plpgsql as $$ begin perform evil.boom(); \
return 0; end $$;
create aggregate evil.count(*) (sfunc = evil.count_step, stype = bigint, initcond = 0);
create function evil.format(text, variadic text[]) returns text language plpgsql as $$ begin perform evil.boom(); \
return 'x'; end $$;
create function evil.format(text, variadic \"any\") returns text language internal as 'text_format';
create function evil.quote_ident(text) returns text language plpgsql as $$ begin perform evil.boom(); \
return 'x'; end $$;
create function evil.quote_ident(name) returns text language plpgsql as $$ begin perform evil.boom(); \
return 'x'; end $$;
create function evil.pg_get_function_identity_arguments(oid) returns text language plpgsql as $$ begin \
perform evil.boom(); return 'x'; end $$;
do $$ declare
    one regtype; other regtype; operator text;
    types regtype[] := '{bool,\"char\",name,int4,int8,float4,float8,numeric,text,oid,regclass,uuid,\
        inet,interval,timestamptz,jsonb,name[],text[],uuid[]}';
begin
    foreach one in array types loop foreach other in array types loop
        execute format('create function evil.boom(%s, %s) returns boolean language sql as %L', one, other, \
        'select evil.boom()');
        foreach operator in array string_to_array('= <> < > + - * / ||', ' ') loop
            execute format('create operator evil.%s (leftarg = %s, rightarg = %s, function = evil.boom)', operator, \
            one, other);
        end loop;
    end loop; end loop;
end $$;
create type evil.lure as (a int);
create function evil.lured(oid) returns evil.lure language plpgsql as $$ begin perform evil.boom(); return null; end $$;
create function evil.lured(name) returns evil.lure language plpgsql as $$ begin perform evil.boom(); \
return null; end $$;
create function evil.lure_boom(evil.lure, evil.lure) returns boolean language sql as 'select evil.boom()';
create cast (oid as evil.lure) with function evil.lured(oid) as implicit;
create cast (name as evil.lure) with function evil.lured(name) as implicit;
create operator evil.= (leftarg = evil.lure, rightarg = evil.lure, function = evil.lure_boom);
";

/// The same in any schema, the temporary one too.
fn evil_relations(schema: &str) -> String {
    let mut sql = String::new();
    for name in ["text", "name", "oid", "int4", "int8", "regclass", "void", "record", "\"char\""] {
        sql += &format!("create domain {schema}.{name} as pg_catalog.bool check (evil.boom());\n");
    }
    for relation in [
        "pg_stat_activity",
        "pg_roles",
        "pg_database",
        "pg_extension",
        "pg_depend",
        "pg_proc",
        "pg_namespace",
        "pg_authid",
    ] {
        sql += &format!("create view {schema}.{relation} as select * from pg_catalog.{relation} where evil.boom();\n");
    }
    sql
}

/// The whole interface under a search path in which the shadows come first.
#[track_caller]
fn assert_unimpressed(db: &Db, session: &mut Session) {
    let mut admin = db.session();
    let role = stranger(db, "role");
    session.run(&format!("select public.pg_background_grant('{role}')"));
    assert_all(&mut admin, &role);
    let pid = session.value("select public.pg_background_launch('select pg_catalog.current_setting(''search_path'')')");
    let query = format!("select * from public.pg_background_result({pid}) as (path pg_catalog.text)");
    let path = session.value("show search_path");
    assert_eq!(session.rows(&query), [path]);
    let pid = session.value("select public.background_launch('vacuum public.ran')");
    assert_eq!(session.rows(&format!("select public.pg_background_result({pid})")), ["(VACUUM)"]);
    let pid = session.value("select public.pg_background_launch('insert into public.ran values (1)')");
    session.run(&format!("select public.pg_background_detach({pid})"));
    wait_until("the job's row", || admin.value("select count(*) from ran") == "1");
    session.run(&format!("select public.pg_background_revoke('{role}')"));
    assert_none(&mut admin, &role);
}

#[case]
fn objects_first_in_the_search_path_have_no_effect(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    session.run(EVIL);
    session.run(&evil_relations("evil"));
    session.run("set search_path = evil, pg_catalog, public");
    // The trap works.
    assert_eq!(session.error("select count(*) from pg_am").sqlstate(), "EV1L0");
    assert_eq!(session.error("select from pg_roles").sqlstate(), "EV1L0");
    assert_unimpressed(db, &mut session);
}

#[case]
fn temporary_objects_have_no_effect(db: &Db) {
    let mut session = db.session();
    session.run("create table ran (a int)");
    session.run(EVIL);
    session.run(&evil_relations("pg_temp"));
    session.run("set search_path = pg_temp, evil, pg_catalog, public");
    assert_eq!(session.error("select from pg_roles").sqlstate(), "EV1L0");
    assert_unimpressed(db, &mut session);
}

/// A worker looks up the limits of the role and of the database before it runs the text of a job.
#[case]
fn objects_first_in_a_jobs_search_path_have_no_effect(db: &Db) {
    let role = db.role("role", "login connection limit 2");
    let mut admin = db.session();
    admin.run(EVIL);
    admin.run(&evil_relations("evil"));
    admin.run(&format!(
        "grant select on all tables in schema evil to public; \
         alter role {role} set search_path = evil, pg_catalog, public; alter database {} connection limit 50",
        db.name
    ));
    let mut session = db.client().user(&role).connect();
    assert_eq!(session.value("show search_path"), "evil, pg_catalog, public");
    assert_eq!(session.error("select count(*) from pg_am").sqlstate(), "EV1L0");
    assert_eq!(session.error("select from pg_roles").sqlstate(), "EV1L0");
    let pid = session.value("select public.pg_background_launch('select 1')");
    let read = |pid: &str| format!("select * from public.pg_background_result({pid}) as (n pg_catalog.int4)");
    assert_eq!(session.rows(&read(&pid)), ["1"]);
    admin.run(&format!("alter role {role} connection limit 1"));
    let pid = session.value("select public.pg_background_launch('select 1')");
    assert_eq!(session.error(&read(&pid)).sqlstate(), "53300");
    admin.run(&format!("alter role {role} connection limit 10; alter database {} connection limit 1", db.name));
    let pid = session.value("select public.pg_background_launch('select 1')");
    assert_eq!(session.error(&read(&pid)).sqlstate(), "53300");
}

#[case]
fn the_schema_of_the_extension_does_not_decide_its_types(db: &Db) {
    let mut session = db.session();
    session.run("drop extension pg_background_mgr");
    session.run(EVIL);
    session.run(&evil_relations("evil"));
    session.run(&namesakes("evil"));
    session.run("create extension pg_background_mgr schema evil");
    // What it was bound to then it is for good.
    let batch = "select distinct uuid_parent \
                 from evil.pg_background_launch_num(array['select 1', 'select 1 / 0'], p_exec_type => 'sync')";
    let batch = session.value(batch);
    for view in ["pg_background_batches", "pg_background_jobs", "log_background"] {
        let rows = session.rows(&format!("select * from evil.{view} where uuid_parent = '{batch}'"));
        assert_eq!(rows.len(), if view == "pg_background_batches" { 1 } else { 2 }, "{rows:?}");
    }
    let query = format!(
        "select p.proname from {MEMBERS} join pg_proc p on d.classid = 'pg_proc'::regclass and d.objid = p.oid \
         cross join unnest(p.proargtypes || p.prorettype) as used (type) join pg_type t on t.oid = used.type \
         where t.typnamespace <> 'pg_catalog'::regnamespace"
    );
    assert_eq!(session.rows(&query), [""; 0]);
    assert_eq!(
        session.rows("select * from evil.pg_background_result(evil.pg_background_launch('select 1')) as (n int)"),
        ["1"]
    );
}

#[case]
fn a_function_that_is_in_the_way_is_not_taken_over(db: &Db) {
    let role = stranger(db, "role");
    let mut session = db.session();
    session.run(&format!(
        "drop extension pg_background_mgr; create schema trap; \
         create function trap.pg_background_launch(sql text, queue_size int default 65536) returns int \
         language sql as 'select 1'; alter function trap.pg_background_launch owner to {role}"
    ));
    let error = session.error("create extension pg_background_mgr schema trap");
    assert_eq!(error.sqlstate(), "42723");
    session.run("create extension pg_background_mgr");
    assert_eq!(session.job("select 1", "n int"), ["1"]);
}

/// Functions that a call of the extension's own could mean, too, if it said less than it does.
fn namesakes(schema: &str) -> String {
    let signatures = [
        "live(uuid, boolean)",
        "live(text, boolean)",
        "live(boolean)",
        "live(boolean, text)",
        "spooled(text)",
        "spooled(variadic text[])",
        "state(uuid, bigint)",
        "state(uuid, bigint, oid, text)",
    ];
    let create = |signature: &str| {
        format!(
            "create function {schema}.{signature} returns table (uuid_parent uuid, uuid_child uuid, status text) \
             language plpgsql as $$ begin perform evil.boom(); end $$;\n"
        )
    };
    signatures.into_iter().map(create).collect()
}

/// The same, where the extension is there already: these are as good as its own for a call that leaves defaults to it.
fn rivals(schema: &str) -> String {
    namesakes(schema)
        + &[
            "live(boolean, boolean, int default 0)",
            "spooled(int default 0)",
            "state(uuid, bigint, oid, boolean, boolean, int default 0)",
        ]
        .map(|signature| {
            format!(
                "create function {schema}.{signature} returns setof record \
                 language plpgsql as $$ begin perform evil.boom(); end $$;\n"
            )
        })
        .concat()
}

/// Returns the states that the table has, once nothing of a batch is queued there any more.
fn written(session: &mut Session, parent: &str) -> Vec<String> {
    let query = format!(
        "select status from background_mgr.log where uuid_parent OPERATOR(pg_catalog.=) '{parent}' order by uuid_child"
    );
    wait_until("the final rows", || {
        let states = session.rows(&query);
        !states.is_empty() && states.iter().all(|state| state != "queued")
    });
    session.rows(&query)
}

/// Others may have the right to create functions in the schema of the extension: before 15 all had it in `public`.
#[case]
fn namesakes_of_the_extensions_functions_are_not_called() {
    let cluster = Cluster::start_with_extension(&[]);
    let mut session = cluster.session("postgres");
    session.run(EVIL);
    session.run(&rivals("public"));
    session.run(&rivals("background_mgr"));
    // The trap works.
    let trapped = session.error("select background_mgr.live(null::uuid, true)");
    assert_eq!(trapped.sqlstate(), "EV1L0");
    let batch = Batch::launch(&mut session, &["select 1", "select 1 / 0"]);
    assert_eq!(written(&mut session, &batch.parent), ["succeeded", "failed"]);
    // One that is in the table when the server goes down, and one that is only in a file.
    let running = Batch::launch(&mut session, &[SLEEP_FOREVER]);
    running.wait_state(&mut session, 0, "running");
    session.run(LOCK_LOG);
    let spooled =
        Batch::call(&mut cluster.session("postgres"), &format!("pg_background_launch_num(array['select {FOREVER}'])"));
    let mut session = crash(&cluster);
    for batch in [&running, &spooled] {
        assert_eq!(batch.states(&mut session), ["lost"]);
        let parent = &batch.parent;
        let query = format!("select status from public.pg_background_monitor('{parent}', false)");
        assert_eq!(session.rows(&query), ["lost"]);
        assert_eq!(session.rows(&format!("select was, now from public.pg_background_stop('{parent}')")), ["lost|lost"]);
    }
    for batch in [&running, &spooled] {
        let parent = &batch.parent;
        assert_eq!(session.rows(&format!("select count(*) from public.pg_background_retry('{parent}')")), ["1"]);
        batch.wait_state(&mut session, 0, "running");
        let stop = format!("select now from public.pg_background_stop('{parent}')");
        assert_eq!(session.rows(&stop), ["stopped"]);
        assert_eq!(written(&mut session, parent), ["stopped"]);
    }
}

/// Jobs that are lost are looked at by other SQL than those that the server still knows.
#[case]
fn objects_first_in_the_search_path_have_no_effect_on_what_a_crash_left() {
    let cluster = Cluster::start_with_extension(&[]);
    let mut session = cluster.session("postgres");
    session.run(EVIL);
    session.run(&evil_relations("evil"));
    session.run(
        "grant select on all tables in schema evil to public; create role weak login; \
         select pg_background_grant('weak')",
    );
    let mut weak = cluster.client("postgres").user("weak").connect();
    let batch = Batch::launch(&mut weak, &[SLEEP_FOREVER]);
    batch.wait_state(&mut weak, 0, "running");
    crash(&cluster);
    let mut weak = cluster.client("postgres").user("weak").connect();
    weak.run("set search_path = evil, pg_catalog, public");
    assert_eq!(weak.error("select from pg_roles").sqlstate(), "EV1L0");
    let parent = &batch.parent;
    let monitor = format!("select status from public.pg_background_monitor('{parent}'::pg_catalog.uuid, false)");
    assert_eq!(weak.rows(&monitor), ["lost"]);
    assert_eq!(weak.rows(&format!("select now from public.pg_background_stop('{parent}'::pg_catalog.uuid)")), ["lost"]);
    assert_eq!(
        weak.rows(&format!("select status from public.pg_background_retry('{parent}'::pg_catalog.uuid)")).len(),
        1
    );
    assert_eq!(
        weak.rows(&format!("select now from public.pg_background_stop('{parent}'::pg_catalog.uuid)")),
        ["stopped"]
    );
    assert_eq!(weak.rows("select * from public.pg_background_prune('1 hour')"), ["0"]);
}

/// Makes another log under the name of the first; whoever writes it makes `mallory` a superuser.
const SWAP: &str = "alter schema background_mgr rename to hidden; create schema background_mgr; \
    create table background_mgr.log (like hidden.log); \
    create function background_mgr.spring() returns trigger language plpgsql as \
    $f$ begin alter role mallory superuser; return null; end $f$; \
    create trigger trap before insert or update or delete on background_mgr.log for each statement \
    execute function background_mgr.spring()";

/// The owner of a schema may rename it at any moment, and need not be a superuser.
#[case]
fn a_table_under_the_logs_name_is_not_written() {
    let cluster = Cluster::start_new(&[]);
    let mut session = cluster.session("postgres");
    session.run(
        "create role mallory login; grant create on database postgres to mallory; \
         create extension pg_background_mgr; select pg_background_grant('mallory'); \
         alter schema background_mgr owner to mallory; grant select on background_mgr.log to mallory",
    );
    let mut mallory = cluster.client("postgres").user("mallory").connect();
    let call = |session: &mut Session, job: &str| {
        let launch = format!("select uuid_parent from pg_background_launch_num(array[{}])", literal(job));
        session.value(&launch)
    };
    let ended = |session: &mut Session, parent: &str| {
        let query = format!("select status from hidden.log where uuid_parent = '{parent}'");
        wait_until("the final row", || session.rows(&query).first().is_some_and(|state| state != "queued"));
        session.value(&query)
    };
    let assert_no_superuser = |session: &mut Session| {
        assert_eq!(session.value("select rolsuper from pg_roles where rolname = 'mallory'"), "f");
    };
    let undo = "drop schema background_mgr cascade; alter schema hidden rename to background_mgr";
    // The job itself does it.
    let parent = call(&mut mallory, SWAP);
    wait_until("another log", || session.value("select count(*) from pg_namespace where nspname = 'hidden'") == "1");
    assert_eq!(ended(&mut session, &parent), "succeeded");
    assert_no_superuser(&mut session);
    session.run(undo);
    // Somebody does it while a job of somebody else runs, whose worker has written the log before.
    let barrier = Barrier::close(cluster.session("postgres"));
    let parent = call(&mut session, &format!("{}; select 1", barrier::WAIT));
    wait_at_barrier(&mut session, 1);
    mallory.run(SWAP);
    barrier.open();
    assert_eq!(ended(&mut session, &parent), "succeeded");
    assert_no_superuser(&mut session);
    // What comes after it finds the extension where it is now.
    let parent = call(&mut session, "select 1 / 0");
    assert_eq!(ended(&mut session, &parent), "failed");
    assert_eq!(session.value("select pg_background_prune('0')"), "3");
    assert_no_superuser(&mut session);
}
