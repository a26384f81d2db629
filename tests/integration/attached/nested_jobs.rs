//! Jobs that launch jobs: how long a chain of them may be.

use crate::support::batch::drain;
use pg_background_mgr_tests::{case, wait_until, Cluster, Db, Session};

const LINKS: i64 = 1000;

/// Asserts that a chain goes on: each job launches its successor by `launch`, where `$1` is the text of that one, and
/// ends.
#[track_caller]
fn assert_chain(session: &mut Session, launch: &str) {
    // Committed before the first job looks for it.
    session.run(&format!(
        "create table links (a int); \
         create function link(n int) returns void language plpgsql as $$ begin \
         insert into links values (n); \
         if n < {LINKS} then perform {}; end if; end $$",
        launch.replace("$1", "format('select link(%s)', n + 1)")
    ));
    session.run("select link(1)");
    // A thousand jobs take their time on a machine that has other work: each hundred has the usual patience.
    for reached in (100..=LINKS).step_by(100) {
        wait_until("the next hundred links", || session.number("select count(*) from links") >= reached);
    }
    assert_eq!(session.number("select count(*) from links"), LINKS);
}

/// The chain is alone in its cluster: nobody else takes processes.
#[case]
fn a_chain_of_launches_goes_on() {
    let cluster = Cluster::start_with_extension(&[]);
    assert_chain(&mut cluster.session("postgres"), "pg_background_detach(pg_background_launch($1))");
}

#[case]
fn a_chain_in_the_queue_goes_on(db: &Db) {
    let mut session = db.session();
    assert_chain(&mut session, "pg_background_launch_num(array[$1])");
    drain(&mut session);
    assert_eq!(session.number("select count(*) from log_background where status <> 'succeeded'"), 0);
}

/// Two jobs that fail have each other launched again.
#[case]
fn a_chain_of_retries_goes_on(db: &Db) {
    let mut session = db.session();
    session.run(
        "create table links (a int); create table jobs (name text, job uuid); \
         create procedure link(other text) language plpgsql as $$ declare number int; begin \
         insert into links select count(*) + 1 from links returning a into number; commit; \
         while number < 40 loop \
           begin perform pg_background_retry(job) from jobs where name = other; exit; \
           exception when object_not_in_prerequisite_state then null; end; commit; \
         end loop; raise 'link'; end $$; \
         insert into jobs select 'a', uuid_child from pg_background_launch_num(array['selct']); \
         insert into jobs select 'b', uuid_child from pg_background_launch_num(array['call link(''a'')'])",
    );
    drain(&mut session);
    session.run(
        "delete from jobs where name = 'a'; \
         insert into jobs select 'a', uuid_child from pg_background_launch_num(array['call link(''b'')'])",
    );
    wait_until("the last link", || session.number("select count(*) from links") >= 40);
    drain(&mut session);
    assert_eq!(
        session.rows("select distinct message from log_background where query like 'call%'"),
        ["link"],
        "no link was refused"
    );
}

/// A job that has not ended counts, also if it has given up all locks of its session in between.
#[case]
fn a_job_that_lives_on_counts(db: &Db) {
    let mut session = db.session();
    session.run(
        "create table reached (depth int); \
         create procedure dig(depth int) language plpgsql as $$ declare tag text; begin \
         insert into reached values (depth); commit; perform pg_advisory_unlock_all(); \
         select * into tag from pg_background_result(pg_background_launch(format('call dig(%s)', depth + 1))) \
         as (tag text); end $$",
    );
    assert_eq!(session.job_error("call dig(1)").sqlstate(), "54000");
    assert_eq!(session.value("select max(depth) from reached"), "16");
    // Those that have gone leave room.
    assert_eq!(
        session.job("select * from pg_background_result(pg_background_launch('select 1')) as (n int)", "n int"),
        ["1"]
    );
}
