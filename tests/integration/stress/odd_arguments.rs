//! Every function and view with arguments that make no sense, at random, by several sessions at once whose workers are
//! terminated: the server stays up, no error is an internal one, and what comes after works.
//!
//! `PGBM_SEED` says which; a failure names its seed.

use crate::support::batch::{Batch, NOBODY};
use crate::support::catalog::{functions, relations, Function};
use crate::support::rng::{self, Rng};
use pg_background_mgr_tests::env::forced_parallel;
use pg_background_mgr_tests::server_log::LogMark;
use pg_background_mgr_tests::{case, literal, wait_until, Cluster, Reply, Session};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Time limit of each statement. Only a wait may last as long.
const TIMEOUT_MS: u64 = 2000;

const TEXTS: &[&str] = &[
    "null",
    "''",
    "' '",
    "','",
    "';'",
    "'async'",
    "'sync'",
    "'SYNC '",
    "'select 1'",
    "'select 1, select 2'",
    "'select 1 / 0'",
    "'select pg_sleep(0.02)'",
    "'select from nowhere'",
    "'begin'",
    "'begin; select 1; commit; begin'",
    "'copy (select 1) to stdout'",
    "'copy t from stdin'",
    "'set role pg_monitor; select 1'",
    "'select generate_series(1, 3000), repeat(''x'', 300)'",
    "'select public.pg_background_launch(''select 1'')'",
    "'select * from public.pg_background_launch_num(''select 1, select 2'')'",
    "'notify a, ''b'''",
    "'listen a'",
    "'select pg_terminate_backend(pg_backend_pid())'",
    "'declare c cursor with hold for select 1; fetch c'",
    "repeat('select 1,', 40)",
    "repeat('select '','' , ', 500)",
    "repeat(',', 100000)",
    "repeat(' ;', 100000)",
    "repeat('x', 5000000)",
    "repeat('(', 20000)",
    "repeat('/*', 20000)",
    "repeat('$a$', 20001)",
    "repeat('''', 99999)",
    "repeat('\"', 50000) || 'select 1'",
    "(select string_agg(chr(i), '') from generate_series(1, 255) i)",
    "(select 'select ' || quote_literal(string_agg(chr(i), '')) from generate_series(1, 255) i)",
    "E'\\x01\\x7f\\t\\r\\n\\\\'",
    "E'\\'\"$$%s%n%1$s{}\\\\'",
    "'-- nothing'",
    "'[\"select 1\"]'",
    "'{\"query\": \"select 1\"}'",
    "'$1'",
    "'infinity'",
    "'-1'",
    "'public'",
    "'current_user'",
    "'pg_read_all_data\"; drop table t; --'",
];

const JSON: &[&str] = &[
    "null",
    "'null'",
    "'{}'",
    "'[]'",
    "'[[]]'",
    "'[null]'",
    "'1e1000'",
    "'[1, 2]'",
    "'\"select 1\"'",
    "'[\"select 1\"]'",
    "'[\"select 1\", \"\"]'",
    "'[{\"query\": \"select 1\", \"name\": null}]'",
    "'[{\"query\": \"select 1\", \"query\": \"select 2\", \"query\": \"select 1 / 0\"}]'",
    "'[{\"query\": \"select 1 / 0\", \"max_attempts\": 2147483647, \"retry_delay\": \"280000 years\"}]'",
    "'{\"max_attempts\": 3, \"retry_delay\": 0}'",
    "'{\"max_attempts\": 1e300, \"retry_delay\": -1e300}'",
    "'{\"max_attempts\": 0.5}'",
    "'{\"timeout\": \"infinity\"}'",
    "'{\"timeout\": \"-infinity\"}'",
    "'{\"timeout\": \"178000000 years\"}'",
    "'{\"timeout\": 1e308, \"retry_delay\": \"0.0000001 s\"}'",
    "'{\"timeout\": 0.001}'",
    "'{\"timeout\": \"\"}'",
    "'{\"name\": \"\", \"mode\": \"sequential\", \"on_error\": \"stop\"}'",
    "'{\"mode\": \"sequential\", \"mode\": \"parallel\", \"max_workers\": 1}'",
    "'{\"max_workers\": 0}'",
    "'{\"max_workers\": 99999999999999999999}'",
    "'{\"\": {\"\": [[[]]]}}'",
    "'{\"name\": \"\\u0001\\\"\\\\\"}'",
    "(repeat('[', 3000) || repeat(']', 3000))",
    "(repeat('{\"a\":', 3000) || '1' || repeat('}', 3000))",
    "('[' || repeat('\"\",', 50000) || '\"\"]')",
    "('{\"name\": \"' || repeat('x', 3000000) || '\"}')",
    "('[' || repeat('\"select 1\",', 30) || '\"select 2\"]')",
    "(select jsonb_object_agg(i, i) from generate_series(1, 20000) i)",
    "(select jsonb_object_agg(k, null) from unnest(array['name', 'mode', 'max_workers', 'on_error', 'timeout']) k)",
];

const ARRAYS: &[&str] = &[
    "null",
    "'{}'",
    "array[null]",
    "array['']",
    "array['select 1', null]",
    "array['select 1', 'select 1 / 0', 'select 3']",
    "array[['select 1', 'select 2'], ['select 3', 'select 4']]",
    "array[[['select 1']], [[null]]]",
    "'[-3:-2]={select 1,select 2}'",
    "'[2147483646:2147483646]={select 1}'",
    "array_fill('select 1'::text, array[30])",
    "array_fill(''::text, array[100000])",
    "array_fill(null::text, array[10, 10, 10])",
    "array[repeat('x', 3000000)]",
    "array['select pg_sleep(0.05)', 'select pg_sleep(0.05)', 'select pg_sleep(0.05)', 'select pg_sleep(0.05)']",
];

const INTERVALS: &[&str] = &[
    "null",
    "'0'",
    "'1 microsecond'",
    "'-1 microsecond'",
    "'0.1 s'",
    "'1 mon -30 days'",
    "'178000000 years'",
    "'-178000000 years'",
    "'2147483647 days'",
    "'178000000 years 2147483647 days 2562047788 hours'",
    "'infinity'",
    "'-infinity'",
];

const INTEGERS: &[&str] = &["null", "0", "1", "-1", "100", "101", "1000", "65536", "2147483647", "-2147483648"];
const LONG_INTEGERS: &[&str] = &["null", "0", "1", "-1", "9223372036854775807", "-9223372036854775808"];
const OIDS: &[&str] = &["null", "0", "1", "4294967295", "1259", "(select oid from pg_database limit 1)"];
const TIMES: &[&str] = &["null", "now()", "'infinity'", "'-infinity'", "'294276-12-31'", "'4714-11-24 BC'"];

/// Knowledge that sessions have of each other's jobs.
struct Jobs {
    /// Identifiers of the jobs of every role.
    uuids: Vec<String>,
}

struct User<'a> {
    cluster: &'a Cluster,
    role: &'static str,
    rng: Rng,
    session: Session,
    jobs: &'a Jobs,
    functions: Vec<Function>,
    relations: Vec<String>,
    /// Jobs that were launched and maybe read.
    pids: Vec<i32>,
}

/// The processor time that a process has used, in ticks of 10 ms.
fn ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
    let field = |number: usize| fields.get(number).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    field(11) + field(12)
}

impl<'a> User<'a> {
    fn new(cluster: &'a Cluster, number: u64, jobs: &'a Jobs) -> Self {
        let mut rng = Rng::new();
        // Each with statements of its own, also with a seed that was given.
        for _ in 0..number {
            rng.below(2);
        }
        let role = if number.is_multiple_of(2) { "postgres" } else { "plain" };
        let mut session = connect(cluster, role);
        let (functions, relations) = (functions(&mut session), relations(&mut session));
        User { cluster, role, rng, session, jobs, functions, relations, pids: Vec::new() }
    }

    fn value(&mut self, kind: &str) -> String {
        let pool = match kind {
            "text" | "character varying" => {
                return match self.rng.below(4) {
                    0 => literal(&self.uuid()),
                    _ => self.rng.pick(TEXTS).to_owned(),
                }
            }
            "uuid" => {
                return match self.rng.below(5) {
                    0 => "null".to_owned(),
                    _ => literal(&self.uuid()),
                }
            }
            "uuid[]" => return format!("array['{}', null, '{}', '{NOBODY}']", self.uuid(), self.uuid()),
            "integer" => return self.integer(),
            "\"any\"" => {
                let kind = self.rng.pick(&["text", "integer", "jsonb", "text[]", "interval", "bigint", "uuid", "oid"]);
                return format!("{}::{kind}", self.value(kind));
            }
            "name" => return format!("left({}, 70)", self.rng.pick(TEXTS)),
            "jsonb" | "json" => JSON,
            "text[]" => ARRAYS,
            "interval" => INTERVALS,
            "bigint" => LONG_INTEGERS,
            "oid" | "regclass" => OIDS,
            "boolean" => &["null", "true", "false"],
            "timestamp with time zone" => TIMES,
            _ => &["null"],
        };
        self.rng.pick(pool).to_owned()
    }

    fn uuid(&mut self) -> String {
        match self.rng.below(6) {
            0 => NOBODY.to_owned(),
            1 => "00000000-0000-0000-0000-000000000000".to_owned(),
            2 => "{FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF}".to_owned(),
            _ => self.rng.pick(&self.jobs.uuids),
        }
    }

    fn integer(&mut self) -> String {
        match self.rng.below(4) {
            0 if !self.pids.is_empty() => self.rng.pick(&self.pids).to_string(),
            1 => self.session.pid().to_string(),
            2 => "(select min(pid) from pg_stat_activity where backend_type = 'pg_background')".to_owned(),
            _ => self.rng.pick(INTEGERS).to_owned(),
        }
    }

    /// Arguments for a function, of which some that may be left out are.
    fn arguments(&mut self, function: &Function) -> Vec<String> {
        let left_out = self.rng.below(function.defaults as u64 + 1) as usize;
        let given = &function.types[..function.types.len() - left_out];
        given.iter().map(|kind| cast(&self.value(kind), kind)).collect()
    }

    fn column_list(&mut self) -> &'static str {
        self.rng.pick(&["as (a text)", "as (a int, b text)", "as (a jsonb)", "as (a int[], b point, c text)", "as t"])
    }

    /// A query, or a CALL, and how its function is declared.
    fn query(&mut self) -> (String, Option<Function>) {
        if self.rng.below(6) == 0 {
            let relation = self.rng.pick(&self.relations);
            let query = match self.rng.below(3) {
                0 => format!("select * from {relation}"),
                1 => format!("select count(*) from {relation}"),
                _ => format!("select r, (select count(*) from {relation}) from {relation} r order by 1 limit 3"),
            };
            return (query, None);
        }
        let function = self.rng.pick(&self.functions);
        let arguments = self.arguments(&function);
        let call = function.call(&arguments);
        let query = match (function.is_procedure, function.is_record, self.rng.below(3)) {
            (true, ..) => format!("call {call}"),
            (_, _, 0) => format!("select {call}"),
            (_, true, _) => format!("select * from {call} {}", self.column_list()),
            _ => format!("select * from {call}"),
        };
        (query, Some(function))
    }

    /// Returns a call as a statement, or as several that need what comes before.
    fn statement(&mut self) -> String {
        let (query, function) = self.query();
        let is_call = query.starts_with("call");
        match self.rng.below(14) {
            0 if is_call => format!("do $odd$ begin {query}; exception when others then {RAISE_AGAIN} end $odd$"),
            0 | 1 if !is_call => format!(
                "do $odd$ declare r record; begin for r in {query} loop null; end loop; \
                 exception when others then {RAISE_AGAIN} end $odd$"
            ),
            2 if !is_call => {
                let hold = self.rng.pick(&["", "with hold"]);
                let end = self.rng.pick(&["commit", "rollback"]);
                format!(
                    "begin; declare c cursor {hold} for {query}; fetch 2 from c; move 1 in c; {end}; fetch all from c"
                )
            }
            3 => match function {
                Some(function)
                    if !is_call && !function.types.is_empty() && !function.types.contains(&ANY.to_owned()) =>
                {
                    self.prepared(&function)
                }
                _ => query,
            },
            4 => format!("begin; savepoint s; {query}; rollback to s; {query}; release s; commit"),
            5 => format!("begin isolation level serializable read only; {query}; commit"),
            6 if !is_call => format!(
                "with recursive r (n) as (select 1 union all select n + 1 from r where n < 2) \
                 select * from r, lateral ({query}) as q"
            ),
            7 if !is_call => format!("copy ({query}) to stdout"),
            8 if !is_call => format!("explain (analyze, costs off) {query}"),
            9 => format!("begin; set local {} = on; {query}; commit", forced_parallel()),
            10 if !is_call => format!("create temp table odd on commit drop as {query}"),
            _ => query,
        }
    }

    fn prepared(&mut self, function: &Function) -> String {
        let parameters: Vec<String> = (1..=function.types.len()).map(|number| format!("${number}")).collect();
        let mut execute = || {
            let values: Vec<String> = function.types.iter().map(|kind| cast(&self.value(kind), kind)).collect();
            format!("execute odd ({})", values.join(", "))
        };
        let (first, second) = (execute(), execute());
        let statement = function.statement(&parameters);
        format!("prepare odd ({}) as {statement}; {first}; {second}", function.types.join(", "))
    }

    fn step(&mut self) {
        match self.rng.below(20) {
            0 => self.session = connect(self.cluster, self.role),
            1 => {
                self.session.run("discard all");
                prepare(&mut self.session);
            }
            2..4 => {
                let reply = self.session.ask("select public.pg_background_launch('select 1')");
                let pid: Option<i32> = reply.last_rows().and_then(|rows| rows.text_rows().first()?.parse().ok());
                self.pids.extend(pid);
            }
            _ => {
                let statement = self.statement();
                let before = ticks(self.session.pid());
                let reply = self.session.ask(&statement);
                self.judge(&statement, &reply, ticks(self.session.pid()) - before);
                self.session.run("rollback; deallocate all; close all");
            }
        }
    }

    #[track_caller]
    fn judge(&self, statement: &str, reply: &Reply, ticks: u64) {
        assert!(!reply.closed, "the server ended the session: {statement}");
        let Some(error) = &reply.error else { return };
        assert_eq!(error.severity(), "ERROR", "{error} from: {statement}");
        assert!(!error.sqlstate().starts_with("XX"), "{error}\n  from: {statement}");
        if error.sqlstate() == "57014" && error.message().contains("statement timeout") {
            assert!(ticks * 10 < TIMEOUT_MS / 2, "not a wait, it used {ticks} ticks: {statement}");
        }
    }
}

const ANY: &str = "\"any\"";

/// An internal error is not to be hidden by the block that caught it.
const RAISE_AGAIN: &str = "if sqlstate like 'XX%' then raise; end if;";

fn cast(value: &str, kind: &str) -> String {
    match kind {
        ANY => value.to_owned(),
        _ => format!("{value}::{kind}"),
    }
}

fn prepare(session: &mut Session) {
    session.run(&format!("set statement_timeout = {TIMEOUT_MS}; set client_min_messages = warning"));
}

#[track_caller]
fn connect(cluster: &Cluster, role: &str) -> Session {
    let mut session = cluster.client("odd").user(role).connect();
    prepare(&mut session);
    session
}

/// Terminates workers of the plain role.
fn terminate(cluster: &Cluster, is_over: &AtomicBool) {
    let (mut rng, mut session) = (Rng::new(), connect(cluster, "plain"));
    while !is_over.load(Ordering::Relaxed) {
        session.run(
            "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'pg_background' \
             and usename = current_user order by random() limit 1",
        );
        session.run(&format!("select pg_sleep({})", rng.pick(&["0.02", "0.1", "0.3"])));
    }
}

/// A cluster with a database, a plain role, and jobs of two roles that have ended.
fn cluster() -> (Cluster, Jobs) {
    let cluster = Cluster::start_new(&[("max_worker_processes", "14")]);
    let encoding = Rng::new().pick(&["UTF8", "SQL_ASCII"]);
    let mut admin = cluster.session("postgres");
    admin.run(&format!("create database odd template template0 encoding '{encoding}' lc_collate 'C' lc_ctype 'C'"));
    let mut admin = cluster.session("odd");
    admin.run("create extension pg_background_mgr; create role plain login; select pg_background_grant('plain')");
    let mut uuids = Vec::new();
    for role in ["postgres", "plain"] {
        let mut session = cluster.client("odd").user(role).connect();
        let batch = Batch::launch(&mut session, &["select 1", "select 1 / 0"]);
        batch.wait(&mut session);
        uuids.push(batch.parent);
        uuids.extend(batch.children);
    }
    (cluster, Jobs { uuids })
}

/// Sends statements of all sessions at once while workers are terminated.
fn send(cluster: &Cluster, jobs: &Jobs, sessions: u64, steps: u64) {
    let steps = rng::rounds(steps);
    let is_over = AtomicBool::new(false);
    let ends = thread::scope(|scope| {
        scope.spawn(|| terminate(cluster, &is_over));
        let users: Vec<_> = (0..sessions).map(|number| User::new(cluster, number, jobs)).collect();
        let send = |mut user: User| (0..steps).for_each(|_| user.step());
        let users: Vec<_> = users.into_iter().map(|user| scope.spawn(move || send(user))).collect();
        let ends: Vec<_> = users.into_iter().map(|user| user.join()).collect();
        is_over.store(true, Ordering::Relaxed);
        ends
    });
    ends.into_iter().for_each(|end| end.expect("no panic"));
}

/// No worker is stuck, and not one segment a job has stayed: what the queue has grown by may.
#[track_caller]
fn assert_at_rest(cluster: &Cluster, segments: usize) {
    cluster.wait_no_workers();
    assert!(cluster.segments().len() <= segments + 4, "{segments} segments before, now {:?}", cluster.segments());
}

/// Asserts that neither a process died nor an internal error was logged.
#[track_caller]
fn assert_quiet(cluster: &Cluster, mark: LogMark) {
    let is_bad = |line: &pg_background_mgr_tests::server_log::LogLine| {
        line.kind == "PANIC"
            || line.sqlstate.starts_with("XX")
            || (line.kind == "LOG" && (line.text.contains("terminated by signal") || line.text.contains("TRAP:")))
            || (line.kind == "LOG" && line.text.contains("server process") && line.text.contains("was terminated"))
    };
    let bad: Vec<_> = cluster.log_since(mark).into_iter().filter(is_bad).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

#[case(slow)]
fn odd_arguments_do_no_harm() {
    let (cluster, jobs) = cluster();
    let segments = cluster.segments().len();
    let mark = cluster.log_mark();
    send(&cluster, &jobs, 4, 120);
    // Jobs may wait for their next attempt for longer than anybody lives.
    let mut admin = cluster.session("odd");
    wait_until("no job is left", || {
        admin.run(
            "select pg_background_stop(uuid_parent, '0') from (select distinct uuid_parent from log_background \
             where status in ('queued', 'running')) as open",
        );
        admin.value("select count(*) from log_background where status in ('queued', 'running')") == "0"
    });
    Batch::launch(&mut admin, &["select 1", "select 2"]).succeed(&mut admin);
    assert_eq!(admin.job("select 42", "n int"), ["42"]);
    drop(admin);
    assert_at_rest(&cluster, segments);
    assert_quiet(&cluster, mark);
}

#[case(slow)]
fn odd_arguments_do_no_harm_on_a_standby() {
    let (primary, jobs) = cluster();
    primary.wait_no_workers();
    let standby = Cluster::start_standby(&primary);
    let segments = standby.segments().len();
    let mark = standby.log_mark();
    send(&standby, &jobs, 3, 60);
    let mut session = standby.session("odd");
    assert_eq!(session.job("select 42", "n int"), ["42"]);
    drop(session);
    assert_at_rest(&standby, segments);
    assert_quiet(&standby, mark);
}
