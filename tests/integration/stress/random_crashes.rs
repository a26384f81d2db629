//! The log tells the truth after any death: servers that die at random moments under load.
//!
//! `PGBM_SEED` says which moments; a failure names its seed.

use crate::support::batch::{drain, Batch, FREEZE_LOG};
use crate::support::rng::{self, Rng};
use pg_background_mgr_tests::cluster::try_signal;
use pg_background_mgr_tests::wait::poll;
use pg_background_mgr_tests::{case, literal, wait_until, Cluster, Session, Signal, Stop, FOREVER};
use std::time::Duration;

#[derive(Debug, Clone, Copy)]
enum Death {
    Worker,
    Postmaster,
    Immediate,
}

const DEATHS: [Death; 3] = [Death::Worker, Death::Postmaster, Death::Immediate];

const JOBS: u64 = 150;
const SESSIONS: u64 = 3;

/// Jobs of all kinds, in JSON. Each is named after its number; what it does, it does once to the row of that number.
fn jobs(first: u64) -> String {
    let job = |number: u64| {
        let mut options = "";
        let text = match number % 13 {
            0 => format!("begin; insert into ran values ({number}); commit"),
            1 => format!("insert into ran values ({number}); select 1 / 0"),
            2 => "vacuum small".to_owned(),
            // Two transactions: the second says how the job has ended.
            3 => format!(
                "begin; insert into half values ({number}); commit; begin; insert into ran values ({number}); commit"
            ),
            4 => format!("insert into ran values ({number}); select pg_sleep(0.003)"),
            5 => format!("do $$ begin insert into ran values ({number}); end $$; select count(*) from ran"),
            6 => format!("call write({number})"),
            // What fails: at the commit, and in each attempt.
            7 => format!("insert into ran values ({number}); insert into checked values ({number})"),
            8 => {
                options = ", \"max_attempts\": 3, \"retry_delay\": 0.02";
                format!("insert into ran values ({number}); select 1 / 0")
            }
            9 => {
                options = ", \"timeout\": 0.01";
                format!("insert into ran values ({number}); select {FOREVER}")
            }
            // Mostly not in each.
            10 => {
                options = ", \"max_attempts\": 4";
                format!("insert into ran values ({number}); select 1 / (nextval('tries') % 2)")
            }
            _ => format!("insert into ran values ({number})"),
        };
        format!("{{\"query\": \"{text}\", \"name\": \"{number}\"{options}}}")
    };
    format!("[{}]", (first..first + JOBS).map(job).collect::<Vec<_>>().join(", "))
}

struct Run {
    cluster: Cluster,
    rng: Rng,
    next: u64,
}

impl Run {
    fn begin() -> Self {
        let rng = Rng::new();
        let cluster = Cluster::start_with_extension(&[("max_worker_processes", "8")]);
        let mut session = cluster.session("postgres");
        session.run(
            "create table checked_by (a int primary key); create table ran (a int); create table half (a int); \
             create table small as select 1 as a; \
             create procedure write(n int) language plpgsql as \
             $$ begin insert into half values (n); commit; insert into ran values (n); end $$; \
             create role weak login; grant insert, select on ran, half to weak; select pg_background_grant('weak'); \
             alter table small owner to weak; create sequence tries; grant usage on sequence tries to weak; \
             create table checked (a int references checked_by deferrable initially deferred); \
             grant insert on checked to weak",
        );
        drop(session);
        Run { cluster, rng, next: 0 }
    }

    /// Loads the server, kills it in the middle, starts it again; the batches whose launch was answered.
    fn crash(&mut self, death: Death) -> Vec<Batch> {
        let mut watcher = self.cluster.session("postgres");
        let mut sessions = Vec::new();
        let mut batches = Vec::new();
        // Some launches are in the middle of their call when it happens.
        let unanswered = self.rng.below(SESSIONS + 1);
        for number in 0..SESSIONS {
            let user = if number == 0 { "weak" } else { "postgres" };
            let mut session = self.cluster.client("postgres").user(user).connect();
            if number == 1 {
                session.run("set synchronous_commit = off");
            }
            let jobs = jobs(self.next);
            self.next += JOBS;
            if number < unanswered {
                session.send(&format!("select * from pg_background_launch_num({}::jsonb)", literal(&jobs)));
            } else {
                batches.push(Batch::launch_json(&mut session, &jobs));
            }
            sessions.push(session);
        }
        // Nobody writes the log from some moment on.
        let mut locker = self.cluster.session("postgres");
        let is_locked = self.rng.below(4) == 0;
        if is_locked {
            locker.run(FREEZE_LOG);
        }
        // Jobs are slower then.
        let moment = self.rng.below(if is_locked { 30 } else { JOBS * SESSIONS * 4 / 10 });
        // Somebody stops a batch meanwhile.
        if let (0, [batch, ..]) = (self.rng.below(3), batches.as_slice()) {
            locker.send(&format!("select pg_background_stop('{}', '0')", batch.parent));
        }
        let reached = || {
            let reply = watcher.ask("select count(*) from ran");
            let count = reply.last_rows().map(|rows| rows.text_rows()[0].parse::<u64>().expect("a number"));
            (count.unwrap_or_default() >= moment).then_some(())
        };
        // Jobs may have an end before it is reached.
        let _ = poll(Duration::from_secs(3), reached);
        match death {
            Death::Worker => {
                let query = "select pid from pg_stat_activity where backend_type = 'pg_background'";
                let workers = watcher.rows(query);
                let pick = self.rng.below(workers.len().max(1) as u64) as usize;
                let launcher = sessions[0].pid();
                let mut victim = workers.get(pick).map_or(launcher, |pid| pid.parse().expect("a process id"));
                wait_until("the end of the session", || {
                    // A worker may have gone by itself: a launcher's end is one of the server, too.
                    if try_signal(victim, Signal::SIGKILL).is_err() {
                        victim = launcher;
                    }
                    watcher.is_closed()
                });
                self.cluster.wait_ready();
            }
            Death::Postmaster => {
                self.cluster.signal_postmaster(Signal::SIGKILL);
                self.cluster.wait_stopped();
                self.cluster.start();
            }
            Death::Immediate => {
                self.cluster.stop(Stop::Immediate);
                self.cluster.start();
            }
        }
        batches
    }

    /// Asserts that the log tells the truth; `because` is for a failure.
    fn assert_true(&self, session: &mut Session, because: &str) {
        for (rule, query) in [
            (
                "nothing seems to run",
                "select uuid_child, status from log_background \
                 where status in ('queued', 'running')",
            ),
            (
                "what succeeded has its effect, once",
                "select name, count(a) from log_background left join ran on a::text = name \
                 where status = 'succeeded' and query <> 'vacuum small' group by name having count(a) <> 1",
            ),
            (
                "what is said not to have succeeded has none",
                "select name, status, message from log_background join ran on a::text = name \
                 where status <> 'succeeded'",
            ),
            (
                "there is no effect without a row",
                "select a from ran where not exists (select from log_background where name = a::text)",
            ),
            ("nothing ran twice", "select a, count(*) from ran group by a having count(*) > 1"),
            (
                "a launch is recorded whole or not at all",
                "select uuid_parent, count(*) from log_background group by uuid_parent having count(*) not in (1, 150)",
            ),
            ("each job has one row", "select name, count(*) from log_background group by name having count(*) > 1"),
            (
                "a failed job failed by itself",
                "select name, message from log_background where status = 'failed' and message <> 'division by zero' \
                 and message <> 'canceling job due to timeout' \
                 and message not like '%violates foreign key constraint%'",
            ),
            (
                "a lost job says so",
                "select name, message from log_background where status = 'lost' \
                 and message not like 'the server went down %'",
            ),
            (
                "a job that never started has done nothing",
                "select name from log_background join half on a::text = name \
                 where status = 'lost' and message = 'the server went down before the job started'",
            ),
            (
                "a stopped job says so",
                "select name, message from log_background where status = 'stopped' \
                 and message not like '%stopped by user \"postgres\"%'",
            ),
        ] {
            assert_eq!(session.rows(query), [""; 0], "{rule}: {because}");
        }
    }
}

#[case(slow)]
fn crashes_at_random_leave_no_lie() {
    let rounds = rng::rounds(40);
    let mut run = Run::begin();
    let mut lost = 0;
    for round in 0..rounds {
        let death = run.rng.pick(&DEATHS);
        let because = format!("round {round}, {death:?}");
        let batches = run.crash(death);
        // The first look is of somebody without rights.
        let mut weak = run.cluster.client("postgres").user("weak").connect();
        let open = "select count(*) from log_background where status in ('queued', 'running')";
        assert_eq!(weak.value(open), "0", "{because}");
        let mut session = run.cluster.session("postgres");
        run.assert_true(&mut session, &because);
        for batch in &batches {
            let count = format!("select count(*) from log_background where uuid_parent = '{}'", batch.parent);
            assert_eq!(session.value(&count), JOBS.to_string(), "an answered launch is durable: {because}");
        }
        // Nothing of it runs after all when there are jobs again.
        let number = run.next;
        run.next += 1;
        let jobs = format!("[{{\"query\": \"insert into ran values ({number})\", \"name\": \"{number}\"}}]");
        Batch::launch_json(&mut session, &jobs).succeed(&mut session);
        run.assert_true(&mut session, &because);
        // What is lost has had no effect and can be run again.
        lost += session.number("select count(*) from log_background where status = 'lost'");
        let open = "select count(*) from log_background where uuid_parent = '{}' and status <> 'succeeded'";
        for batch in &batches {
            if session.value(&open.replace("{}", &batch.parent)) != "0" {
                session.run(&format!("select * from pg_background_retry('{}'::uuid)", batch.parent));
            }
        }
        drain(&mut session);
        run.assert_true(&mut session, &format!("{because}, after a retry"));
        session.run("delete from log_background; truncate ran, half");
    }
    assert!(lost > 0, "no job ran or waited at any of these moments");
}
