//! Processes that get no more memory: an error of the job or of the call, never the end of the server.

use crate::support::batch::{array, Batch};
use crate::support::job_stage::settle;
use pg_background_mgr_tests::{case, literal, Cluster, ServerError, Session};

/// A server of which processes can be limited, and a session that is not and stays.
struct Limited {
    cluster: Cluster,
    control: Session,
    pid: String,
}

impl Limited {
    fn start() -> Self {
        let cluster = Cluster::start_with_extension(&[("shared_buffers", "16MB"), ("logging_collector", "off")]);
        let mut control = cluster.session("postgres");
        let pid = control.value("select pg_backend_pid()");
        Limited { cluster, control, pid }
    }

    /// Processes that start from now on get this much beside what they have.
    fn limit(&mut self, megabytes: usize) {
        self.cluster.limit_memory(&mut self.control, megabytes);
    }

    /// The server was never restarted, and runs jobs.
    fn assert_unharmed(&mut self) {
        assert_eq!(self.control.value("select pg_backend_pid()"), self.pid);
        let mut session = self.cluster.session("postgres");
        assert_eq!(session.job("select 7", "n int"), ["7"]);
        Batch::launch(&mut session, &["select 7"]).succeed(&mut session);
    }
}

#[track_caller]
fn assert_no_memory(error: &ServerError, what: &str) {
    assert_eq!(error.sqlstate(), "53200", "{what}: {error:?}");
}

/// Texts of this many bytes; the largest ones are below what the server can hold in one value.
const TEXTS: [&str; 3] = ["60000000", "200000000", "450000000"];

#[case(slow, oldest_and_newest)]
fn jobs_that_get_no_memory_fail() {
    let mut limited = Limited::start();
    limited.limit(300);
    let mut session = limited.cluster.session("postgres");
    for size in TEXTS {
        let jobs = [
            format!("select repeat('x', {size})"),
            format!("select repeat('x', {size}) from generate_series(1, 3)"),
            format!("copy (select repeat('x', {size})) to stdout"),
            format!("do $$ begin raise notice '%', repeat('x', {size}); end $$"),
            format!("do $$ begin raise exception '%', repeat('x', {size}); end $$"),
            format!("select 1; do $$ begin raise warning using message = 'x', detail = repeat('x', {size}); end $$"),
            format!("select row(repeat('x', {size}), 1)"),
            format!("select array[repeat('x', {size})], repeat('y', {size})"),
        ];
        for job in &jobs {
            session.run("set client_min_messages = error");
            let pid = session.launch(job);
            let reply =
                session.ask(&format!("select octet_length(t::text) from pg_background_result({pid}) as (t text)"));
            if let Some(error) = reply.error {
                if error.sqlstate() != "P0001" && error.sqlstate() != "42804" {
                    assert_no_memory(&error, job);
                }
            }
            limited.assert_unharmed();
        }
        let texts: Vec<&str> = jobs.iter().map(String::as_str).collect();
        let batch = Batch::launch(&mut session, &texts);
        batch.wait(&mut session);
        limited.assert_unharmed();
    }
    settle(&limited.cluster);
}

#[case(slow, oldest_and_newest)]
fn readers_that_get_no_memory_fail_and_can_read_again() {
    let mut limited = Limited::start();
    let mut session = limited.cluster.session("postgres");
    let process = session.pid();
    for job in [
        "select repeat('x', 150000000)",
        "copy (select repeat('x', 150000000)) to stdout",
        "select repeat('x', 1000000) from generate_series(1, 150)",
    ] {
        let pid = session.launch(job);
        let read = format!("select sum(octet_length(t)) from pg_background_result({pid}) as (t text)");
        limited.cluster.limit_memory_of(&mut limited.control, process, 100 * 1024);
        let error = session.ask(&read).error;
        limited.cluster.allow_memory_of(&mut limited.control, process);
        match error {
            Some(error) => {
                assert_no_memory(&error, job);
                assert_eq!(session.value(&read), "150000000", "{job}");
            }
            None => assert!(job.contains("generate_series"), "{job}"),
        }
        limited.assert_unharmed();
    }
}

#[case(slow, oldest_and_newest)]
fn launches_that_get_no_memory_fail() {
    let mut limited = Limited::start();
    limited.control.run("load 'pg_background_mgr'");
    limited.control.run("alter system set pg_background_mgr.queue_memory_limit = '1GB'");
    limited.cluster.reload();
    for megabytes in [100, 140, 180, 220, 300, 400] {
        limited.limit(megabytes);
        let long = "repeat('x', 60000000)";
        let query = format!("'select length(''' || {long} || ''')'");
        let launch_num = |arguments: &str| format!("select count(*) from pg_background_launch_num({arguments})");
        let calls = [
            format!("select pg_background_launch({query})"),
            launch_num(&format!("array[{query}]")),
            launch_num(&query),
            launch_num(&format!("'select 1;' || {query}, ';'")),
            launch_num(&format!("jsonb_build_array({query})")),
            launch_num("array(select 'select ' || g from generate_series(1, 200000) g)"),
            launch_num(
                "(select jsonb_agg(jsonb_build_object('query', 'select ' || g)) from generate_series(1, 100000) g)",
            ),
            launch_num(&format!("array['select 1'], p_options => jsonb_build_object('name', {long})")),
            format!("select set_config('my.setting', {long}, false), pg_background_launch('select 1')"),
            // Errors show the beginning of what they complain of.
            launch_num(&format!("array['select 1'], p_options => jsonb_build_object({long}, 1)")),
            launch_num(&format!("array['select 1'], p_exec_type => {long}")),
            format!("select count(*) from pg_background_monitor({long})"),
            format!("select count(*) from pg_background_stop({long})"),
            format!("select count(*) from pg_background_retry({long})"),
        ];
        for call in &calls {
            let mut session = limited.cluster.session("postgres");
            session.run("begin");
            if let Some(error) = session.ask(call).error {
                if !["53400", "22023", "22P02"].contains(&error.sqlstate().as_str()) {
                    assert_no_memory(&error, call);
                }
            }
            drop(session);
            limited.control.run(
                "select pg_background_stop(uuid_parent) from (select distinct uuid_parent from log_background \
                 where status = 'queued') as q",
            );
            assert_eq!(limited.control.value("select pg_backend_pid()"), limited.pid, "{call}");
        }
    }
    limited.assert_unharmed();
}

/// Takes nearly all memory of a session, and then calls what needs a little.
#[case(slow)]
fn small_pieces_that_find_no_memory_do_not_end_the_server() {
    let mut limited = Limited::start();
    for kilobytes in (0..2048).step_by(64) {
        let mut session = limited.cluster.session("postgres");
        let pid = session.launch("select g, repeat('y', 1000), row(g, g) from generate_series(1, 3000) g");
        let process = session.pid();
        limited.cluster.limit_memory_of(&mut limited.control, process, kilobytes);
        let calls = [
            format!("select count(*) from pg_background_result({pid}) as (n int, t text, r text)"),
            format!("select count(*) from pg_background_launch_num({})", array(&["select 1", "select 2"])),
            "select count(*) from pg_background_monitor()".to_owned(),
            format!("select pg_background_launch({})", literal("select 1")),
        ];
        for call in &calls {
            if let Some(error) = session.ask(call).error {
                assert!(["53200", "42704", "55000"].contains(&error.sqlstate().as_str()), "{call}: {error:?}");
            }
        }
        assert_eq!(limited.control.value("select pg_backend_pid()"), limited.pid);
    }
    limited.assert_unharmed();
}

#[case(slow)]
fn a_row_that_the_log_does_not_keep_needs_no_memory() {
    let mut limited = Limited::start();
    limited.limit(1200);
    let mut session = limited.cluster.session("postgres");
    let batch = Batch::launch(&mut session, &["select repeat('x', 300000000)"]);
    batch.succeed(&mut session);
    let log = "select result || ' ' || row_count from background_mgr.log";
    assert_eq!(session.value(&format!("{log} where uuid_child = '{}'", batch.children[0])), "[] 1");
    limited.assert_unharmed();
}

#[case(slow)]
fn single_user_mode_refuses_each_launch() {
    let cluster = Cluster::start_with_extension(&[]);
    let calls = [
        "select pg_background_launch('select 1')",
        "select background_launch('select 1')",
        "select pg_background_launch_num('select 1')",
        "select pg_background_launch_num(array['select 1'], p_monitor => false)",
    ];
    cluster.stop(pg_background_mgr_tests::Stop::Fast);
    let said = cluster.single_user("postgres", &calls.join("\n"));
    assert_eq!(said.matches("cannot launch background jobs in single-user mode").count(), calls.len(), "{said}");
    cluster.start();
    assert_eq!(cluster.session("postgres").job("select 7", "n int"), ["7"]);
}
