//! Rights to use the extension.

use pg_background_mgr_tests::{case, literal, wait_until, Db, Session};

/// FROM clause for everything in the extension, with its catalog.
pub const MEMBERS: &str =
    "pg_depend d join pg_extension e on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid \
    and d.deptype = 'e' and e.extname = 'pg_background_mgr'";

/// The interface: every function of the extension but the two that give it, and what only the extension itself calls.
fn interface() -> String {
    format!(
        "select p.oid from {MEMBERS} join pg_proc p on d.classid = 'pg_proc'::regclass and d.objid = p.oid \
         where p.proname not in ('pg_background_grant', 'pg_background_revoke', 'log_rows', 'delete_job')"
    )
}

/// Returns how many functions of the interface a role may call, of how many.
fn callable(session: &mut Session, role: &str) -> (i64, i64) {
    let query = format!(
        "select count(*) filter (where has_function_privilege({}, oid, 'execute')) from ({}) i",
        literal(role),
        interface()
    );
    let all = session.number(&format!("select count(*) from ({}) i", interface()));
    assert!(all >= 4, "the classic interface alone has four functions");
    (session.number(&query), all)
}

#[track_caller]
pub fn assert_all(session: &mut Session, role: &str) {
    let (may, all) = callable(session, role);
    assert_eq!(may, all, "{role} may call all");
}

#[track_caller]
pub fn assert_none(session: &mut Session, role: &str) {
    assert_eq!(callable(session, role).0, 0, "{role} may call none");
}

#[case]
fn public_has_nothing(db: &Db) {
    let mut session = db.session();
    let functions = format!(
        "select p.oid::regprocedure from {MEMBERS} join pg_proc p on d.classid = 'pg_proc'::regclass \
         and d.objid = p.oid \
         where p.proacl is null or exists (select from aclexplode(p.proacl) a where a.grantee = 0)"
    );
    assert_eq!(session.rows(&functions), [""; 0]);
    let relations = format!(
        "select c.oid::regclass from {MEMBERS} join pg_class c on d.classid = 'pg_class'::regclass \
         and d.objid = c.oid, \
         aclexplode(c.relacl) a where a.grantee = 0"
    );
    assert_eq!(session.rows(&relations), [""; 0]);
    let schemas = format!(
        "select n.nspname from {MEMBERS} join pg_namespace n on d.classid = 'pg_namespace'::regclass \
         and d.objid = n.oid, \
         aclexplode(n.nspacl) a where a.grantee = 0"
    );
    assert_eq!(session.rows(&schemas), [""; 0]);
    let all = format!("select count(*) from {MEMBERS} where d.classid = 'pg_proc'::regclass");
    assert!(session.number(&all) >= 6);
}

/// A role that nobody has granted anything.
pub fn stranger(db: &Db, name: &str) -> String {
    let role = format!("{}_{name}", db.name);
    db.session().run(&format!("create role {role} login"));
    role
}

const CALLS: [(&str, &str); 6] = [
    ("pg_background_launch", "pg_background_launch('select 1')"),
    ("pg_background_result", "pg_background_result(1)"),
    ("pg_background_detach", "pg_background_detach(1)"),
    ("background_launch", "background_launch('select 1')"),
    ("pg_background_grant", "pg_background_grant('postgres')"),
    ("pg_background_revoke", "pg_background_revoke('postgres')"),
];

fn denied(function: &str) -> (String, String) {
    ("42501".to_owned(), format!("permission denied for function {function}"))
}

#[case]
fn a_role_without_a_grant_can_call_nothing(db: &Db) {
    let role = stranger(db, "stranger");
    assert_none(&mut db.session(), &role);
    let mut session = db.client().user(&role).connect();
    for (function, call) in CALLS {
        assert_eq!(session.error(&format!("select {call}")).brief(), denied(function));
    }
}

#[case]
fn only_superusers_create_the_extension(db: &Db) {
    let role = stranger(db, "stranger");
    let mut admin = db.session();
    admin.run(&format!(
        "drop extension pg_background_mgr; grant create on database {} to {role}; \
         grant create on schema public to {role}",
        db.name
    ));
    let mut session = db.client().user(&role).connect();
    let error = session.error("create extension pg_background_mgr");
    assert_eq!(
        error.brief(),
        ("42501".to_owned(), "permission denied to create extension \"pg_background_mgr\"".to_owned())
    );
}

#[case]
fn a_grant_gives_the_whole_interface(db: &Db) {
    let (role, other) = (stranger(db, "role"), stranger(db, "other"));
    let mut admin = db.session();
    admin.run(&format!("select pg_background_grant('{role}')"));
    assert_all(&mut admin, &role);
    assert_none(&mut admin, &other);
    let mut session = db.client().user(&role).connect();
    assert_eq!(session.job("select 1", "n int"), ["1"]);
    let pid = session.number("select background_launch('select 2')");
    assert_eq!(session.rows(&format!("select pg_background_result({pid})")), ["(2)"]);
    let pid = session.launch("select 3");
    session.run(&format!("select pg_background_detach({pid})"));
    for (function, call) in &CALLS[4..] {
        assert_eq!(session.error(&format!("select {call}")).brief(), denied(function));
    }
}

#[case]
fn a_member_of_a_granted_role_may_use_it(db: &Db) {
    let (group, member) = (stranger(db, "group"), stranger(db, "member"));
    let mut admin = db.session();
    admin.run(&format!("alter role {group} nologin; grant {group} to {member}; select pg_background_grant('{group}')"));
    let mut session = db.client().user(&member).connect();
    assert_eq!(session.job("select current_user::text", "name text"), [member.as_str()]);
    admin.run(&format!("select pg_background_revoke('{group}')"));
    assert_eq!(session.error("select pg_background_launch('select 1')").brief(), denied("pg_background_launch"));
}

#[case]
fn a_revoke_takes_the_whole_interface(db: &Db) {
    let (role, other) = (stranger(db, "role"), stranger(db, "other"));
    let mut admin = db.session();
    for name in [&role, &other] {
        admin.run(&format!("select pg_background_grant('{name}')"));
    }
    let mut session = db.client().user(&role).connect();
    assert_eq!(session.job("select 1", "n int"), ["1"]);
    admin.run(&format!("select pg_background_revoke('{role}')"));
    assert_none(&mut admin, &role);
    assert_all(&mut admin, &other);
    for (function, call) in CALLS {
        assert_eq!(session.error(&format!("select {call}")).brief(), denied(function));
    }
}

#[case]
fn a_revoke_while_a_job_runs_leaves_the_job(db: &Db) {
    let role = stranger(db, "role");
    let mut admin = db.session();
    admin.run(&format!("create table ran (a int); grant insert on ran to {role}"));
    admin.run(&format!("select pg_background_grant('{role}')"));
    let mut session = db.client().user(&role).connect();
    let pid = session.launch("insert into ran values (1)");
    admin.run(&format!("select pg_background_revoke('{role}')"));
    assert_eq!(session.result_error(pid).brief(), denied("pg_background_result"));
    wait_until("the job's row", || admin.value("select count(*) from ran") == "1");
    admin.run(&format!("select pg_background_grant('{role}')"));
    assert_eq!(session.result(pid, "tag text"), ["INSERT 0 1"]);
}

#[case]
fn grants_and_revokes_can_be_repeated(db: &Db) {
    let role = stranger(db, "role");
    let mut admin = db.session();
    admin.run(&format!("select pg_background_revoke('{role}')"));
    for _ in 0..2 {
        admin.run(&format!("select pg_background_grant('{role}')"));
        assert_all(&mut admin, &role);
    }
    for _ in 0..2 {
        admin.run(&format!("select pg_background_revoke('{role}')"));
        assert_none(&mut admin, &role);
    }
    assert_eq!(admin.notice_texts(), [""; 0]);
    // Nothing is left that would keep the role.
    admin.run(&format!("drop owned by {role}; drop role {role}"));
}

#[case]
fn only_the_owner_and_superusers_grant(db: &Db) {
    let (owner, role, clerk) = (stranger(db, "owner"), stranger(db, "role"), stranger(db, "clerk"));
    let mut admin = db.session();
    admin.run(&format!(
        "drop extension pg_background_mgr; alter role {owner} superuser; create schema bg authorization {owner}"
    ));
    db.client().user(&owner).connect().run("create extension pg_background_mgr schema bg");
    admin.run(&format!("alter role {owner} nosuperuser"));

    let mut session = db.client().user(&owner).connect();
    session.run(&format!("select bg.pg_background_grant('{role}')"));
    assert_all(&mut session, &role);
    assert_eq!(session.notice_texts(), [""; 0]);
    session.run(&format!("select bg.pg_background_revoke('{role}')"));
    assert_none(&mut session, &role);
    admin.run(&format!("select bg.pg_background_grant('{role}')"));
    assert_all(&mut admin, &role);

    // Neither the interface nor a right to the two functions is enough.
    admin.run(&format!(
        "select bg.pg_background_grant('{clerk}'); grant execute on all functions in schema bg to {clerk}"
    ));
    let mut session = db.client().user(&clerk).connect();
    let refused = ("42501".to_owned(), "permission denied to change who may use pg_background_mgr".to_owned());
    for call in ["grant", "revoke"] {
        let error = session.error(&format!("select bg.pg_background_{call}('{role}')"));
        assert_eq!(error.brief(), refused);
    }
    assert_all(&mut admin, &role);
    // Membership in the owner is.
    admin.run(&format!("grant {owner} to {clerk}"));
    session.run(&format!("select bg.pg_background_revoke('{role}')"));
    assert_none(&mut admin, &role);
}

#[case]
fn an_unknown_role_is_refused(db: &Db) {
    let mut session = db.session();
    for call in ["grant", "revoke"] {
        let error = session.error(&format!("select pg_background_{call}('no such role')"));
        assert_eq!(error.brief(), ("42704".to_owned(), "role \"no such role\" does not exist".to_owned()));
    }
    // Not the statement that its name could be taken for.
    for name in ["postgres, public", "postgres with grant option", "current_user", "", "\"postgres\""] {
        let error = session.error(&format!("select pg_background_grant({})", literal(name)));
        assert!(["42704", "42602", "42601"].contains(&error.sqlstate().as_str()), "{name}: {error}");
    }
}

#[case]
fn a_null_role_is_refused(db: &Db) {
    let mut session = db.session();
    for call in ["grant", "revoke"] {
        let error = session.error(&format!("select pg_background_{call}(null)"));
        assert_eq!(error.brief(), ("22004".to_owned(), "role name must not be null".to_owned()));
    }
}

/// Grants to the role, launches as the role, takes the grant back.
#[track_caller]
fn assert_role_works(admin: &mut Session, role: &str) {
    let quoted = format!("\"{}\"", role.replace('"', "\"\""));
    admin.run(&format!("create role {quoted} login"));
    admin.run(&format!("select pg_background_grant({})", literal(role)));
    assert_all(admin, role);
    let who = "select session_user::text, current_user::text";
    admin.run(&format!("set session authorization {quoted}"));
    assert_eq!(admin.job(who, "a text, b text"), [format!("{role}|{role}")]);
    admin.run("reset session authorization");
    admin.run(&format!("set role {quoted}"));
    assert_eq!(admin.job(who, "a text, b text"), [format!("postgres|{role}")]);
    admin.run("reset role");
    admin.run(&format!("select pg_background_revoke({})", literal(role)));
    assert_none(admin, role);
    admin.run(&format!("drop owned by {quoted}; drop role {quoted}"));
}

#[case]
fn role_names_that_need_quoting_work(db: &Db) {
    let mut admin = db.session();
    let long = format!("{}{}", db.name, "x".repeat(63 - db.name.len()));
    let names = ["Odd Name", "a\"b", "it's", "semi;colon", "select", "back\\slash", "p.q", "(x)", "ünï", "100%"];
    for name in names {
        assert_role_works(&mut admin, &format!("{} {name}", db.name));
    }
    assert_role_works(&mut admin, &long);
}

#[case]
fn a_role_name_beyond_ascii_works_in_a_latin1_database(db: &Db) {
    let name = format!("{}_latin1", db.name);
    db.session()
        .run(&format!("create database {name} template template0 encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'"));
    let mut admin = db.cluster.session(&name);
    admin.run("create extension pg_background_mgr");
    assert_eq!(admin.value("show client_encoding"), "UTF8");
    assert_role_works(&mut admin, &format!("{}_café", db.name));
    let error = admin.error("select pg_background_grant('naïve')");
    assert_eq!(error.brief(), ("42704".to_owned(), "role \"naïve\" does not exist".to_owned()));
    // A limit names the role too.
    let role = format!("{}_müde", db.name);
    admin.run(&format!("create role \"{role}\" login connection limit 0"));
    admin.run(&format!("select pg_background_grant('{role}'); set session authorization \"{role}\""));
    assert_eq!(
        admin.job_error("select 1").brief(),
        ("53300".to_owned(), format!("too many connections for role \"{role}\""))
    );
    admin.run(&format!("reset session authorization; drop owned by \"{role}\"; drop role \"{role}\""));
    drop(admin);
    let mut session = db.session();
    let remove = format!("drop database {name}");
    wait_until("nobody uses the database", || session.ask(&remove).error.is_none());
}

#[track_caller]
fn assert_works_in_schema(db: &Db, schema: &str) {
    let role = stranger(db, "role");
    let mut admin = db.session();
    admin.run(&format!(
        "drop extension pg_background_mgr; create schema {schema}; create extension pg_background_mgr schema {schema}"
    ));
    let mut session = db.client().user(&role).connect();
    let launch = format!("select {schema}.pg_background_launch('select current_user::text')");
    assert_eq!(session.error(&launch).sqlstate(), "42501");
    admin.run(&format!("select {schema}.pg_background_grant('{role}')"));
    assert_all(&mut admin, &role);
    let pid = session.number(&launch);
    assert_eq!(
        session.rows(&format!("select * from {schema}.pg_background_result({pid}) as (name text)")),
        [role.as_str()]
    );
    let pid = session.number(&format!("select {schema}.background_launch('select 1')"));
    session.run(&format!("select {schema}.pg_background_detach({pid})"));
    // A job that launches, with the schema in its search path.
    session.run(&format!("set search_path = {schema}"));
    let nested = "select * from pg_background_result(pg_background_launch('select 5')) as (n int)";
    let pid = session.number(&format!("select pg_background_launch({})", literal(nested)));
    assert_eq!(session.rows(&format!("select pg_background_result({pid})")), ["(5)"]);
    admin.run(&format!("select {schema}.pg_background_revoke('{role}')"));
    assert_none(&mut admin, &role);
    assert_eq!(session.error(&launch).sqlstate(), "42501");
    let members = admin.value(&format!(
        "select count(*) from {MEMBERS} join pg_proc p on d.classid = 'pg_proc'::regclass and d.objid = p.oid \
         where p.pronamespace <> e.extnamespace and p.pronamespace <> 'background_mgr'::regnamespace"
    ));
    assert_eq!(members, "0");
}

#[case]
fn the_extension_works_in_a_schema_of_its_own(db: &Db) {
    assert_works_in_schema(db, "bg");
}

#[case]
fn the_extension_works_in_a_schema_whose_name_needs_quoting(db: &Db) {
    assert_works_in_schema(db, "\"Odd \"\"schema\"\"; ünï\"");
}

/// GRANT would take it as the keyword, also in quotes.
#[case]
fn public_is_no_role(db: &Db) {
    let mut session = db.session();
    let before = "select proacl::text from pg_proc where proname like 'pg_background%' order by oid";
    let privileges = session.rows(before);
    for function in ["grant", "revoke"] {
        let error = session.error(&format!("select pg_background_{function}('public')"));
        assert_eq!(error.brief(), ("42704".to_owned(), "role \"public\" does not exist".to_owned()));
    }
    assert_eq!(session.rows(before), privileges);
}
