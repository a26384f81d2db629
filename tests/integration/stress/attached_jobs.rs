//! Sessions that launch, read and give up jobs at once, in random order, while others cancel and end the workers: each
//! result is right or an error that says what happened, and nothing is left.
//!
//! `PGBM_SEED` says in which order; a failure names its seed.

use crate::support::batch::signal_a_worker;
use crate::support::rng::{self, Rng};
use pg_background_mgr_tests::{case, literal, Cluster, Reply, Session};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const SESSIONS: u64 = 4;
const STEPS: u64 = 250;

/// Rows, or an SQLSTATE.
type End = Result<Vec<String>, String>;

fn end_of(reply: &Reply) -> End {
    match &reply.error {
        Some(error) => Err(error.sqlstate().to_string()),
        None => Ok(reply.last_rows().map(|rows| rows.text_rows()).unwrap_or_default()),
    }
}

/// Text of a job, and how it ends if it is let alone.
struct Work {
    text: String,
    columns: &'static str,
    end: End,
    /// True = it inserts its number into `did`, in one transaction with all that it does.
    has_effect: bool,
}

struct Job {
    pid: i32,
    number: u64,
    work: Work,
}

impl Job {
    fn reading(&self) -> String {
        format!("select * from public.pg_background_result({}) as ({})", self.pid, self.work.columns)
    }
}

struct User<'a> {
    cluster: &'a Cluster,
    rng: Rng,
    session: Session,
    jobs: Vec<Job>,
    /// Value that the session has set, and its jobs with it.
    work_mem: &'static str,
    last_number: u64,
    /// Jobs whose effect is there, and those whose is not.
    done: Vec<u64>,
    undone: Vec<u64>,
}

impl<'a> User<'a> {
    fn new(cluster: &'a Cluster, user: u64) -> Self {
        let mut rng = Rng::new();
        // Each in an order of its own, also with a seed that was given.
        for _ in 0..user {
            rng.below(2);
        }
        let session = cluster.session("postgres");
        let (jobs, done, undone) = (Vec::new(), Vec::new(), Vec::new());
        User { cluster, rng, session, jobs, work_mem: "4MB", last_number: user * 1_000_000, done, undone }
    }

    fn work(&mut self, number: u64) -> Work {
        let insert = format!("insert into did values ({number})");
        let one = |text: &str| Ok(vec![text.to_owned()]);
        let (text, columns, end) = match self.rng.below(10) {
            0 | 1 => (format!("{insert}; select {number}"), "n int", one(&number.to_string())),
            2 => {
                let time = self.rng.pick(&["0.001", "0.02", "0.05"]);
                let text = format!("{insert}; select {number} from pg_sleep({time})");
                (text, "n int", one(&number.to_string()))
            }
            3 => (format!("{insert}; select 1 / 0"), "n int", Err("22012".to_owned())),
            4 => {
                let launch = format!("pg_background_launch('select {number}')");
                let text = format!("{insert}; select n from pg_background_result({launch}) as (n int)");
                (text, "n int", one(&number.to_string()))
            }
            5 | 6 => {
                let rows = 1 + self.rng.below(20_000);
                let text = format!("select n, repeat('x', 60) from generate_series(1, {rows}) as n");
                (text, "n int, t text", Ok((1..=rows).map(|n| format!("{n}|{}", "x".repeat(60))).collect()))
            }
            7 => ("vacuum small".to_owned(), "t text", one("VACUUM")),
            8 => (
                "set work_mem = '7MB'; create temp table mine (a int); prepare mine as select 1; \
                 select pg_advisory_lock_shared(5); select current_setting('work_mem')"
                    .to_owned(),
                "t text",
                one("7MB"),
            ),
            // Nothing of the one before.
            _ => (
                "select current_setting('work_mem'), to_regclass('pg_temp.mine'), count(*), \
                 (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()) \
                 from pg_prepared_statements"
                    .to_owned(),
                "work_mem text, mine regclass, statements bigint, locks bigint",
                one(&format!("{}|∅|0|0", self.work_mem)),
            ),
        };
        let has_effect = text.starts_with(&insert);
        Work { text, columns, end, has_effect }
    }

    fn launch(&mut self) {
        self.last_number += 1;
        let number = self.last_number;
        let work = self.work(number);
        let launch = format!("select public.pg_background_launch({})", literal(&work.text));
        // What the caller undoes is not undone.
        let call = match self.rng.below(6) {
            0 => format!("begin; savepoint s; {launch}; rollback to s; commit"),
            _ => launch,
        };
        let reply = self.session.ask(&call);
        if let Some(error) = reply.error {
            assert_eq!(error.sqlstate(), "53000", "{}", error.message());
            self.session.run("rollback");
            self.undone.push(number);
        } else {
            let pid = reply.last_rows().expect("a row").text_rows()[0].parse().expect("a process id");
            assert!(self.jobs.iter().all(|job| job.pid != pid), "{pid} has a job that is not read");
            self.jobs.push(Job { pid, number, work });
        }
    }

    /// Takes one of the jobs that are not read.
    fn take(&mut self) -> Option<Job> {
        let count = self.jobs.len() as u64;
        (count > 0).then(|| self.jobs.remove(self.rng.below(count) as usize))
    }

    /// Judges what a job ended with.
    fn judge(&mut self, job: &Job, end: End) {
        let number = job.work.has_effect.then_some(job.number);
        match end {
            Ok(rows) => {
                assert_eq!(Ok(rows), job.work.end, "{}", job.work.text);
                self.done.extend(number);
            }
            // It was cancelled; a job of its own found no process.
            Err(error) if Err(&error) == job.work.end.as_ref() || error == "57014" || error == "53000" => {
                self.undone.extend(number);
            }
            // Its process was ended, maybe after its commit.
            Err(error) => assert_eq!(error, "57P01", "{}", job.work.text),
        }
    }

    fn read(&mut self, job: &Job) {
        let end = end_of(&self.session.ask(&job.reading()));
        self.judge(job, end);
    }

    /// Reads a job that was read before, maybe to its end.
    fn read_again(&mut self, job: &Job) {
        let end = end_of(&self.session.ask(&job.reading()));
        if end != Err("42704".to_owned()) {
            self.judge(job, end);
        }
    }

    fn read_in_part(&mut self, job: &Job) {
        self.session.ask(&format!("begin; declare some cursor for {}; fetch 1 from some", job.reading()));
        self.session.run("rollback");
        self.read_again(job);
    }

    fn read_with_columns_that_do_not_fit(&mut self, job: &Job) {
        let wrong = format!("select * from public.pg_background_result({}) as (p point, q point)", job.pid);
        let end = end_of(&self.session.ask(&wrong));
        match end.as_ref().expect_err("an error").as_str() {
            "42804" => self.read(job),
            _ => self.judge(job, end),
        }
    }

    fn read_and_cancel(&mut self, job: &Job) {
        self.session.send(&job.reading());
        self.session.canceller().cancel();
        let end = end_of(&self.session.finish(&job.reading()));
        // The request may come after the answer: it has come now.
        self.session.ask("select 1");
        // Of the reading, or of the job.
        if end == Err("57014".to_owned()) {
            self.read_again(job);
        } else {
            self.judge(job, end);
        }
    }

    fn change_setting(&mut self) {
        self.work_mem = self.rng.pick(&["4MB", "5MB", "6MB"]);
        self.session.run(&format!("set work_mem = '{}'", self.work_mem));
    }

    fn leave_and_come_back(&mut self) {
        self.jobs.clear();
        self.session = self.cluster.session("postgres");
        self.work_mem = "4MB";
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..50 => self.launch(),
            50..53 => self.change_setting(),
            53 => self.leave_and_come_back(),
            kind => {
                let Some(job) = self.take() else { return };
                match kind {
                    54..60 => self.read_in_part(&job),
                    60..66 => self.read_with_columns_that_do_not_fit(&job),
                    66..72 => self.read_and_cancel(&job),
                    72..78 => {
                        self.session.run(&format!("select public.pg_background_detach({})", job.pid));
                    }
                    _ => self.read(&job),
                }
            }
        }
    }

    /// Lives; gives the jobs whose effect must be there, and those whose must not.
    fn live(mut self) -> (Vec<u64>, Vec<u64>) {
        for _ in 0..STEPS {
            self.step();
        }
        while let Some(job) = self.take() {
            self.read(&job);
        }
        assert!(!self.done.is_empty());
        (self.done, self.undone)
    }
}

/// Cancels and ends workers, and has them stay or not.
fn disturb(cluster: &Cluster, is_over: &AtomicBool) {
    let (mut rng, mut admin) = (Rng::new(), cluster.session("postgres"));
    while !is_over.load(Ordering::Relaxed) {
        match rng.below(8) {
            0 | 1 => signal_a_worker(&mut admin, &mut rng),
            2 => {
                let timeout = rng.pick(&["0", "100ms", "10s"]);
                cluster.configure(&[("pg_background_mgr.worker_idle_timeout", timeout)]);
                cluster.reload();
            }
            _ => {
                admin.run(&format!("select pg_sleep({})", rng.pick(&["0.01", "0.1", "0.3"])));
            }
        }
    }
}

#[case(slow)]
fn each_result_is_right_whatever_happens_to_the_workers() {
    // Not enough for all.
    let cluster = Cluster::start_with_extension(&[("max_worker_processes", "10")]);
    let mut session = cluster.session("postgres");
    session.run("create table did (number bigint); create table small as select 1 as a");
    let before = cluster.baseline();
    for _ in 0..rng::rounds(1) {
        session.run("truncate did");
        let is_over = AtomicBool::new(false);
        let lives = thread::scope(|scope| {
            scope.spawn(|| disturb(&cluster, &is_over));
            let users: Vec<_> = (1..=SESSIONS).map(|user| User::new(&cluster, user)).collect();
            let lives: Vec<_> = users.into_iter().map(|user| scope.spawn(|| user.live())).collect();
            let ends: Vec<_> = lives.into_iter().map(|life| life.join()).collect();
            is_over.store(true, Ordering::Relaxed);
            ends
        });
        for life in lives {
            let (done, undone) = life.expect("no panic");
            let effects = |numbers| format!("select count(*) from did where number = any (array{numbers:?}::bigint[])");
            assert_eq!(session.number(&effects(&done)), done.len() as i64, "what succeeded has its effect, once");
            assert_eq!(session.number(&effects(&undone)), 0, "what failed has none: {undone:?}");
        }
        cluster.assert_sound(&before);
    }
}
