//! ALTER EXTENSION UPDATE from 0.1.0, whose log was a table among the views.

use crate::support::barrier::{self, Barrier};
use crate::support::batch::{array, drain, times, wait_at_barrier, Batch};
use pg_background_mgr_tests::{case, wait_until, Cluster};

const UPDATE: &str = "alter extension pg_background_mgr update";

/// Query for everything that the catalogs say of the members of the extension; of rights, those that others than the
/// owner have.
const MEMBERS: &str = "
create function pg_temp.rights(rights aclitem[], kind \"char\", owner oid) returns jsonb language sql as $$
    select jsonb_agg(a.*) from aclexplode(coalesce(rights, acldefault(kind, owner))) a where a.grantee <> owner $$;
create function pg_temp.columns(relation oid) returns jsonb language sql as $$
    select jsonb_agg(jsonb_build_array(a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attacl,
        a.attstorage, col_description(relation, a.attnum)) order by a.attnum)
    from pg_attribute a where a.attrelid = relation and a.attnum > 0 $$;
create function pg_temp.indexes(relation oid) returns jsonb language sql as $$
    select jsonb_agg(pg_get_indexdef(i.indexrelid) order by pg_get_indexdef(i.indexrelid))
    from pg_index i where i.indrelid = relation $$;
create function pg_temp.triggers(relation oid) returns jsonb language sql as $$
    select jsonb_agg(jsonb_build_array(pg_get_triggerdef(t.oid), obj_description(t.oid, 'pg_trigger'))
        order by t.tgname) from pg_trigger t where t.tgrelid = relation $$;
create function pg_temp.rules(relation oid) returns jsonb language sql as $$
    select jsonb_agg(jsonb_build_array(pg_get_ruledef(r.oid), obj_description(r.oid, 'pg_rewrite')) order by r.rulename)
    from pg_rewrite r where r.ev_class = relation $$;
with members as (
    select d.classid, d.objid, pg_describe_object(d.classid, d.objid, 0) as name
    from pg_depend d join pg_extension e on e.oid = d.refobjid and d.refclassid = 'pg_extension'::regclass
    where e.extname = 'pg_background_mgr' and d.deptype = 'e')
select m.name, obj_description(m.objid, m.classid::regclass::name),
    (select jsonb_build_object('rights', pg_temp.rights(p.proacl, 'f', p.proowner),
        'definition', pg_get_functiondef(p.oid), 'cost', p.procost, 'rows', p.prorows)
     from pg_proc p where m.classid = 'pg_proc'::regclass and p.oid = m.objid),
    (select pg_temp.rights(n.nspacl, 'n', n.nspowner)
     from pg_namespace n where m.classid = 'pg_namespace'::regclass and n.oid = m.objid),
    (select jsonb_build_object('kind', c.relkind, 'rights', pg_temp.rights(c.relacl, 'r', c.relowner),
        'options', c.reloptions, 'lasts', c.relpersistence, 'populated', c.relispopulated,
        'view', case when c.relkind in ('v', 'm') then pg_get_viewdef(c.oid) end, 'columns', pg_temp.columns(c.oid),
        'indexes', pg_temp.indexes(c.oid), 'triggers', pg_temp.triggers(c.oid), 'rules', pg_temp.rules(c.oid),
        'sequence', (select to_jsonb(s) - 'seqrelid' from pg_sequence s where s.seqrelid = c.oid))
     from pg_class c where m.classid = 'pg_class'::regclass and c.oid = m.objid),
    (select count(*) from pg_init_privs i, aclexplode(i.initprivs) a
     where i.classoid = m.classid and i.objoid = m.objid and a.grantee <> 10)
from members m order by 1";

/// Statements that grant everything to everybody by default; what the extension makes takes it back.
const GRANTS: &str = "alter default privileges grant all on tables to somebody, public; \
     alter default privileges grant all on sequences to somebody; \
     alter default privileges grant all on functions to somebody; \
     alter default privileges grant all on schemas to somebody";

#[case]
fn an_updated_extension_is_as_one_that_is_made() {
    let cluster = Cluster::start_new(&[]);
    let mut session = cluster.session("postgres");
    session.run("create role somebody");
    session.run("create database made");
    session.run("create database updated");
    let (mut made, mut updated) = (cluster.session("made"), cluster.session("updated"));
    made.run(&format!(
        "create schema \"quo\"\"ted $\"; {GRANTS}; create extension pg_background_mgr schema \"quo\"\"ted $\""
    ));
    updated.run(
        "create schema \"quo\"\"ted $\"; create extension pg_background_mgr schema \"quo\"\"ted $\" version '0.1.0'",
    );
    updated.run(GRANTS);
    updated.run(UPDATE);
    let (found, expected) = (updated.rows(MEMBERS), made.rows(MEMBERS));
    assert!(expected.len() > 20, "{expected:?}");
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len());
}

#[case]
fn an_extension_with_rows_jobs_and_grants_is_updated() {
    let cluster = Cluster::start_new(&[("pg_background_mgr.max_workers", "2")]);
    let (mut admin, mut session) = (cluster.session("postgres"), cluster.session("postgres"));
    admin.run(
        "create role caller login; create role reader; create role \"Deleter\"; \
         create extension pg_background_mgr version '0.1.0'; \
         select pg_background_grant('caller'); \
         grant select on log_background to reader with grant option; \
         grant select (query), delete on log_background to \"Deleter\"; \
         insert into pg_background_log (status, user_name, uuid_parent, uuid_child, query, result, queued_at, \
             attempts, epoch, owner, login, database, end_time_exec) \
         select case g % 3 when 0 then 'failed' when 1 then 'succeeded' else 'queued' end, 'caller', \
             gen_random_uuid(), gen_random_uuid(), 'select ' || g, repeat('x', 10000), now(), 1, 1, \
             'caller'::regrole, 'caller'::regrole, \
             (select oid from pg_database where datname = current_database()), now() \
         from generate_series(1, 30) g; \
         create temp table before as select * from pg_background_log"
            .replace("gen_random_uuid()", "md5(random()::text)::uuid")
            .as_str(),
    );
    let barrier = Barrier::close(cluster.session("postgres"));
    let texts = [times(barrier::WAIT, 2), times("select 1 / 0", 2), times("select 2", 3)].concat();
    let batch = Batch::launch(&mut session, &texts);
    wait_at_barrier(&mut admin, 2);
    // Its views cannot be read with this library, which says what to do.
    let error = admin.error("select * from log_background");
    assert_eq!(error.hint().as_deref(), Some("You may need to run ALTER EXTENSION pg_background_mgr UPDATE."));
    admin.run(UPDATE);
    // Nothing is lost, of the rows and of the jobs.
    let lost = "select count(*) from before b where not exists (select from background_mgr.log l \
                where (l.id, l.uuid_child, l.status, l.query, l.result, l.owner) = \
                      (b.id, b.uuid_child, b.status, b.query, b.result, b.owner))";
    assert_eq!(admin.value(lost), "0");
    assert_eq!(admin.value("select count(*) from pg_background_jobs"), "37");
    assert_eq!(
        admin.rows("select status, count(*) from pg_background_jobs group by status order by status"),
        ["failed|10", "lost|10", "queued|5", "running|2", "succeeded|10"]
    );
    barrier.open();
    let states = batch.finish(&mut session);
    assert_eq!(states, ["succeeded", "succeeded", "failed", "failed", "succeeded", "succeeded", "succeeded"]);
    drain(&mut session);
    assert_eq!(admin.value("select count(*) from background_mgr.log"), "37");
    assert_eq!(admin.value("select count(*) = count(distinct id) from background_mgr.log"), "t");
    // Who had rights has them.
    let rights = "select grantee, privilege_type, is_grantable from information_schema.table_privileges \
                  where table_name = 'log_background' and grantee <> 'postgres' order by 1, 2";
    assert_eq!(admin.rows(rights), ["Deleter|DELETE|NO", "caller|SELECT|NO", "reader|SELECT|YES"]);
    assert!(admin.holds("select has_column_privilege('Deleter', 'log_background', 'query', 'select')"));
    let mut caller = cluster.client("postgres").user("caller").connect();
    assert_eq!(caller.value("select count(*) from log_background"), "30");
    assert_eq!(
        Batch::call(&mut caller, &format!("pg_background_launch_num({})", array(&["select 1"]))).finish(&mut caller),
        ["succeeded"]
    );
    assert_eq!(caller.value("select count(*) from pg_background_jobs"), "31");
    // They are what users have granted, and so in a dump.
    let initial = "select count(*) from pg_init_privs where initprivs::text ~ 'caller|reader|Deleter'";
    assert_eq!(admin.value(initial), "0");
    assert_eq!(admin.run("delete from log_background").tags(), ["DELETE 38"]);
    cluster.restart();
    let mut again = cluster.session("postgres");
    Batch::launch(&mut again, &["select 1"]).succeed(&mut again);
    wait_until("its row", || again.value("select count(*) from background_mgr.log") == "1");
}

#[case]
fn an_update_that_would_lose_something_is_refused() {
    let cluster = Cluster::start_new(&[]);
    let mut session = cluster.session("postgres");
    session.run("create extension pg_background_mgr version '0.1.0'");
    // The snapshot of such a transaction may be older than rows of the log.
    session.run("begin isolation level repeatable read");
    assert_eq!(session.error(UPDATE).sqlstate(), "25001");
    session.run(
        "rollback; create view of_user as select query from log_background; \
                 create view another as select status from log_background",
    );
    let error = session.error(UPDATE);
    let expected = ("2BP01".to_owned(), "other views depend on view log_background".to_owned());
    assert_eq!(error.brief(), expected);
    assert_eq!(error.detail().as_deref(), Some("They are another, of_user."));
    assert_eq!(session.value("select extversion from pg_extension where extname = 'pg_background_mgr'"), "0.1.0");
    session.run(&format!("drop view of_user, another; {UPDATE}"));
    Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
}

/// The role that made 0.1.0 may be no superuser any more, and still own what the update reads.
#[case]
fn an_update_runs_no_code_of_a_former_owner() {
    let cluster = Cluster::start_new(&[]);
    let mut admin = cluster.session("postgres");
    admin.run("create role eve superuser login");
    for (number, (plant, is_owner)) in [
        // Another table of the name, with a type that is cast by her function.
        (
            "alter table pg_background_log rename to other; create table pg_background_log (like other); \
          alter table pg_background_log drop column id; alter table pg_background_log add id et default 'x'",
            false,
        ),
        ("alter table pg_background_log add another et default 'x'", false),
        ("create index on pg_background_log ((evil('x')))", false),
        ("create index on pg_background_log (pid) where evil('x') = 1", false),
        ("alter table pg_background_log add check (evil('x') = 1)", false),
        ("create statistics s on pid, status from pg_background_log", false),
        ("select 1", true),
    ]
    .into_iter()
    .enumerate()
    {
        admin.run(&format!("create database d{number}"));
        let mut database = cluster.session(&format!("d{number}"));
        let mut eve = cluster.client(&format!("d{number}")).user("eve").connect();
        eve.run("create extension pg_background_mgr version '0.1.0'");
        admin.run("alter role eve nosuperuser");
        database.run("grant create on schema public to eve");
        eve.run(
            "create type et as enum ('x'); \
             create function evil(et) returns int8 immutable language plpgsql as $$ begin \
             if (select rolsuper from pg_roles where rolname = current_user) then alter role eve superuser; end if; \
             return 1; end $$; create cast (et as int8) with function evil(et) as assignment",
        );
        eve.run(plant);
        eve.ask(
            "insert into pg_background_log (status, user_name, uuid_parent, uuid_child, query, queued_at, attempts, \
             epoch, owner, login, database, is_started) values ('failed', 'postgres', md5('a')::uuid, md5('b')::uuid, \
             'select 1', now(), 1, 1, 10, 10, 1, true)",
        );
        assert_eq!(database.error(UPDATE).sqlstate(), "55000", "{plant}");
        // Also when what she has made belongs to a superuser now.
        database.run("reassign owned by eve to postgres");
        let reply = database.ask(UPDATE);
        let refused = reply.error.map(|error| error.sqlstate());
        assert_eq!(refused.as_deref(), (!is_owner).then_some("55000"), "{plant}");
        assert!(!admin.holds("select rolsuper from pg_roles where rolname = 'eve'"), "{plant}");
        admin.run("alter role eve superuser");
    }
}
