//! Settings at the ends of their ranges: those of the server in a job, those of the extension under load and by those
//! who may not set them.

use crate::support::batch::{drain, load, times, Batch};
use pg_background_mgr_tests::{case, wait_until, Cluster, Db, Session};

/// Each setting that a session may change, with its least and greatest value, or all that it may have.
const VALUES: &str = "select quote_literal(name) || ';' || quote_literal(v) from pg_settings, unnest(case vartype \
    when 'enum' then enumvals when 'bool' then array['on', 'off'] else array[min_val, max_val] end) as v \
    where context in ('user', 'superuser') and vartype <> 'string' \
    and name not in ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable') order by name, v";

#[case(slow)]
fn a_job_has_each_value_of_each_setting() {
    let cluster = Cluster::start_with_extension(&[("pg_background_mgr.worker_idle_timeout", "1h")]);
    let mark = cluster.log_mark();
    let (mut session, mut admin) = (cluster.session("postgres"), cluster.session("postgres"));
    let mut launched = Vec::new();
    for row in admin.rows(VALUES) {
        let (name, value) = row.split_once(';').expect("a name and a value");
        // Some are not for this build or this machine.
        if session.ask(&format!("select set_config({name}, {value}, false)")).error.is_none() {
            let show = format!("select current_setting({name}) as v");
            let own = session.value(&show);
            assert_eq!(session.job(&show, "v text"), std::slice::from_ref(&own), "{row}");
            let batch = Batch::launch(&mut session, &[&show]);
            launched.push((row.clone(), own, batch));
            session.run(&format!("reset {}", name.trim_matches('\'')));
        }
    }
    assert!(launched.len() > 200, "{} values", launched.len());
    drain(&mut admin);
    for (row, own, batch) in launched {
        assert_eq!(batch.log(&mut admin, 0, &crate::support::batch::cell("v")), own, "{row}");
    }
    let died = cluster.log_since(mark).into_iter().find(|line| line.text.contains("terminated by signal"));
    assert_eq!(died, None);
}

#[case(slow)]
fn the_extensions_settings_change_under_load() {
    let cluster = Cluster::start_with_extension(&[("max_worker_processes", "10")]);
    let (mut session, mut admin) = (cluster.session("postgres"), cluster.session("postgres"));
    load(&mut admin);
    admin.run("create table ran (a int)");
    let settings = "select name || ';' || v from pg_settings, unnest(array[min_val, max_val, boot_val]) as v \
                    where name like 'pg\\_background\\_mgr.%' and vartype = 'integer' and context = 'sighup' \
                    and not (name ~ 'reserved' and v = max_val) and not (name ~ 'max_workers$' and v = min_val) \
                    order by name";
    let values = admin.rows(settings);
    assert!(values.len() >= 12, "{values:?}");
    let mut set = |name: &str, value: &str| {
        admin.run(&format!("alter system set {name} = '{value}'"));
        admin.run("select pg_reload_conf()");
        let shown = format!("select setting from pg_settings where name = '{name}'");
        wait_until("the setting", || admin.value(&shown) == value);
    };
    let change = |row: &String| {
        let batch = Batch::launch(&mut session, &times("insert into ran values (1)", 40));
        let (name, value) = row.split_once(';').expect("a name and a value");
        set(name, value);
        batch
    };
    let batches: Vec<Batch> = values.iter().map(change).collect();
    batches.iter().for_each(|batch| batch.succeed(&mut session));
    let count = session.number("select count(*) from ran");
    assert_eq!(count, 40 * batches.len() as i64);
    // A limit below what is in use refuses, and says so.
    set("pg_background_mgr.queue_memory_limit", "64");
    let error = session.error("select pg_background_launch_num(array_fill(repeat('x', 10000), array[100]))");
    assert_eq!(error.brief(), ("53400".to_owned(), "background job queue is full".to_owned()));
    // It would not fit into an empty one either.
    let hint = "Launch fewer or shorter jobs in a call, or increase pg_background_mgr.queue_memory_limit.";
    assert_eq!(error.hint().as_deref(), Some(hint));
    assert_eq!(session.job("select 42", "n int"), ["42"]);
}

#[case(slow)]
fn a_plain_roles_values_do_not_hold(db: &Db) {
    let user = db.role("user", "login");
    let mut admin = db.session();
    load(&mut admin);
    let settings = admin.rows(
        "select name || ';' || setting || ';' || min_val from pg_settings \
         where name like 'pg\\_background\\_mgr.%' and context in ('superuser', 'sighup')",
    );
    assert!(settings.len() >= 6, "{settings:?}");
    for row in settings {
        let parts: Vec<&str> = row.split(';').collect();
        let [name, setting, least] = parts[..] else { panic!("three columns: {row}") };
        let least = if setting == least { "77" } else { least };
        let shown = format!("select setting from pg_settings where name = '{name}'");
        // Before the library is loaded the name is nobody's.
        let client = db.client().user(&user);
        let mut sessions = Vec::new();
        for set in [
            format!("set {name} = {least}"),
            format!("select set_config('{name}', '{least}', false)"),
            format!("begin; set local {name} = {least}"),
            format!(
                "create or replace function pg_temp.f() returns text language sql set {name} = {least} as 'select 1'"
            ),
        ] {
            let mut session = client.connect();
            session.ask(&set);
            sessions.push(session);
        }
        let mut session = client.connect();
        session.ask(&format!("alter role {user} set {name} = {least}"));
        sessions.push(client.connect());
        session.ask(&format!("alter role {user} reset {name}"));
        for mut session in sessions {
            session.ask("rollback");
            load(&mut session);
            assert_ne!(session.value(&shown), least, "{name}");
            let job = format!("select pg_background_report_progress(0); {shown}");
            assert_ne!(session.job(&job, "v text"), [least], "{name}");
            // Now it is known whose it is.
            assert!(session.ask(&format!("set {name} = {least}")).error.is_some(), "{name}");
        }
    }
}

/// Names the value of the configuration, and another one.
const CONFIGURED: [(&str, &str, &str); 8] = [
    ("pg_background_mgr.max_workers", "3", "5"),
    ("pg_background_mgr.reserved_workers", "1", "0"),
    ("pg_background_mgr.queue_memory_limit", "1GB", "64kB"),
    ("pg_background_mgr.log_result_limit", "1kB", "1GB"),
    ("pg_background_mgr.max_unread_results", "7", "1000"),
    ("pg_background_mgr.max_result_memory", "2MB", "1GB"),
    ("pg_background_mgr.worker_idle_timeout", "1h", "0"),
    ("pg_background_mgr.log_retention", "1d", "0"),
];

/// Settings that superusers change for a session, a role, a database.
const OF_SUPERUSERS: [&str; 3] = ["log_result_limit", "max_unread_results", "max_result_memory"];

#[track_caller]
fn assert_refused(session: &mut Session, name: &str) {
    let message = format!("value of parameter \"{name}\" that was given for this session is refused");
    // As often as it is tried.
    for call in ["select pg_background_launch('select 1')", "select pg_background_monitor()", "table log_background"] {
        assert_eq!(session.error(call).brief(), ("55P02".to_owned(), message.clone()), "{call}");
        session.run("rollback");
    }
}

/// Before the library is loaded a session may give its settings any value: in place of the configured one, which it
/// does not know any more when the library refuses that.
#[case(slow)]
fn configured_values_hold() {
    let cluster = Cluster::start_with_extension(&CONFIGURED.map(|(name, value, _)| (name, value)));
    let mut admin = cluster.session("postgres");
    load(&mut admin);
    let settings = "select count(*) from pg_settings where name like 'pg\\_background\\_mgr.%'";
    assert_eq!(admin.value(settings), CONFIGURED.len().to_string());
    admin.run("create role plain login; select pg_background_grant('plain')");
    // A superuser who does not know the settings either.
    let mut unknowing = cluster.session("postgres");
    let client = cluster.client("postgres").user("plain");
    for (name, value, other) in CONFIGURED {
        let options = client.clone().parameter("options", &format!("-c {name}={other}"));
        let set = format!("set {name} = '{other}'");
        for given in [options, client.clone().parameter(name, other), client.clone().parameter(name, "nonsense")] {
            assert_refused(&mut given.connect(), name);
            for hidden in [set.clone(), format!("begin; set local {name} = '{value}'")] {
                let mut session = given.connect();
                session.run(&hidden);
                assert_refused(&mut session, name);
            }
        }
        for object in ["role plain", "database postgres", "role plain in database postgres"] {
            unknowing.run(&format!("alter {object} set {name} = '{other}'"));
            let (mut session, mut superuser) = (client.connect(), cluster.session("postgres"));
            if OF_SUPERUSERS.iter().any(|of_superusers| name.ends_with(of_superusers)) {
                // Superusers may do that, for others as well.
                load(&mut session);
                assert_eq!(session.value(&format!("show {name}")), other);
            } else {
                assert_refused(&mut session, name);
                match object {
                    "database postgres" => assert_refused(&mut superuser, name),
                    _ => assert_eq!(superuser.job(&format!("show {name}"), "v text"), [value]),
                }
            }
            unknowing.run(&format!("alter {object} reset {name}"));
        }
        for set in [set, format!("begin; set local {name} = '{other}'")] {
            let mut session = client.connect();
            session.run(&set);
            load(&mut session);
            assert_eq!(session.value(&format!("show {name}")), value);
            assert_eq!(session.job(&format!("show {name}"), "v text"), [value]);
        }
    }
    let name = "pg_background_mgr.log_result_limit";
    let mut session = cluster.client("postgres").parameter("options", &format!("-c {name}=2kB")).connect();
    assert_eq!(session.job(&format!("show {name}"), "v text"), ["2kB"]);
    assert_eq!(session.value(&format!("show {name}")), "2kB");
}
