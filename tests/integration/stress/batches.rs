//! Many databases in disorder: everything that may happen to a server while jobs run, in random order, and what is
//! left.
//!
//! `PGBM_SEED` says in which order; a failure names its seed.

use crate::support::batch::{load, set_server, signal_a_worker, Batch, FREEZE_LOG, OF_THE_GONE, WORKERS};
use crate::support::rng::{self, Rng};
use pg_background_mgr_tests::{case, literal, wait_until, Cluster, Session, Stop, FOREVER};
use std::collections::HashMap;

/// Database that is dropped and made again.
const PASSING: &str = "passing";
const DATABASES: [&str; 3] = ["postgres", "other", PASSING];
/// The last one is dropped and made again.
const ROLES: [&str; 3] = ["postgres", "weak", "guest"];
const STEPS: u64 = 150;

type Step = fn(&mut Disorder);

/// State of one cluster, and the sessions that hold something in it.
struct Disorder {
    cluster: Cluster,
    rng: Rng,
    admin: Session,
    /// Sessions that lock the log of a database.
    lockers: Vec<(&'static str, Session)>,
    launched: Vec<(&'static str, Batch)>,
    /// Sessions that are in the middle of these calls.
    calling: Vec<(Session, String)>,
    next: u64,
    /// Jobs of an extension that was dropped have names up to this one, by database.
    forgotten: HashMap<&'static str, u64>,
    /// True = nobody is let into [`PASSING`].
    is_closed: bool,
}

const PREPARE: &str =
    "create extension pg_background_mgr; create table ran (name text); create table small as select 1 as a; \
     create sequence tries";

fn prepare(cluster: &Cluster, database: &str) {
    let mut session = cluster.session(database);
    session.run(PREPARE);
    prepare_roles(&mut session);
}

/// Grants what the roles need in a database.
fn prepare_roles(session: &mut Session) {
    session.run(
        "select pg_background_grant('weak'), pg_background_grant('guest'); grant insert, select on ran to weak, guest; \
         grant usage on sequence tries to weak, guest",
    );
}

impl Disorder {
    fn begin() -> Self {
        let rng = Rng::new();
        let cluster = Cluster::start_new(&[("max_worker_processes", "7")]);
        let mut admin = cluster.session("postgres");
        admin.run("create role weak login; create role guest login");
        for database in &DATABASES[1..] {
            admin.run(&format!("create database {database}"));
        }
        for database in DATABASES {
            prepare(&cluster, database);
        }
        load(&mut admin);
        Disorder {
            cluster,
            rng,
            admin,
            lockers: Vec::new(),
            launched: Vec::new(),
            calling: Vec::new(),
            next: 0,
            forgotten: HashMap::new(),
            is_closed: false,
        }
    }

    fn database(&mut self) -> &'static str {
        let [first, second, third] = DATABASES;
        self.rng.pick(&[first, first, second, if self.is_closed { second } else { third }])
    }

    /// Opens a session of a role that may not be let in by itself.
    fn session(&mut self, database: &str) -> Session {
        let mut session = self.cluster.session(database);
        session.run(&format!("set session authorization {}", self.rng.pick(&ROLES)));
        session
    }

    /// Jobs that insert their name, once, if they succeed.
    fn jobs(&mut self) -> String {
        let count = 1 + self.rng.below(12);
        let job = |_| {
            self.next += 1;
            let insert = format!("insert into ran values ('{}')", self.next);
            let (text, options) = match self.rng.below(11) {
                0 => (format!("{insert}; select 1 / 0"), ""),
                1 => (format!("{insert}; select 1 / 0"), ", \"max_attempts\": 3, \"retry_delay\": 0.05"),
                2 => (format!("{insert}; select 1 / (nextval('tries') % 2)"), ", \"max_attempts\": 4"),
                3 => (format!("{insert}; select pg_sleep(0.05)"), ""),
                4 => (format!("{insert}; select {FOREVER}"), ", \"timeout\": 0.1"),
                5 => (format!("begin; {insert}; commit"), ""),
                6 => (
                    // Its name is another one each time that the job runs.
                    format!(
                        "{insert}; select count(*) from (select '{}.' || nextval('tries') as name) as n, lateral \
                         pg_background_launch_num(jsonb_build_array(jsonb_build_object('query', \
                         format('insert into ran values (%L)', n.name), 'name', n.name)))",
                        self.next
                    ),
                    "",
                ),
                _ => (insert, ""),
            };
            format!("{{\"query\": \"{text}\", \"name\": \"{}\"{options}}}", self.next)
        };
        format!("[{}]", (0..count).map(job).collect::<Vec<_>>().join(", "))
    }

    fn launch(&mut self) {
        let (database, jobs) = (self.database(), self.jobs());
        let options = self.rng.pick(&["{}", r#"{"mode": "sequential"}"#, r#"{"max_workers": 2}"#]);
        let mut session = self.session(database);
        let call = format!("pg_background_launch_num({}::jsonb, p_options => {})", literal(&jobs), literal(options));
        self.launched.push((database, Batch::call(&mut session, &call)));
    }

    /// A launch that is cancelled, or whose transaction is rolled back.
    fn launch_in_vain(&mut self, before: &str, after: &str) {
        let (database, jobs) = (self.database(), self.jobs());
        let mut session = self.session(database);
        let before = before.replace("{}", &self.rng.below(12).to_string());
        session.run(&before);
        session.ask(&format!("select count(*) from pg_background_launch_num({}::jsonb)", literal(&jobs)));
        session.ask(after);
    }

    fn begin_call(&mut self) {
        let database = self.database();
        let jobs = self.jobs();
        let mut session = self.session(database);
        session.run("set statement_timeout = '5s'");
        let call = match self.rng.below(4) {
            0 => format!(
                "select count(*) from pg_background_launch_num({}::jsonb, p_exec_type => 'sync')",
                literal(&jobs)
            ),
            1 => "select pg_background_launch('select pg_sleep(0.1)') from generate_series(1, 2)".to_owned(),
            2 => "do $$ declare p int; begin for i in 1..30 loop p := pg_background_launch('select 1'); \
                  perform pg_background_result(p); end loop; end $$"
                .to_owned(),
            _ => {
                let here: Vec<_> = self.launched.iter().filter(|(launched, _)| *launched == database).collect();
                let Some((_, batch)) = here.last() else { return };
                format!("select count(*) from pg_background_monitor('{}'::uuid)", batch.parent)
            }
        };
        session.send(&call);
        self.calling.push((session, call));
    }

    fn end_call(&mut self) {
        if self.calling.is_empty() {
            return;
        }
        let index = self.rng.below(self.calling.len() as u64) as usize;
        let (mut session, call) = self.calling.remove(index);
        match self.rng.below(4) {
            // It leaves in the middle.
            0 => {}
            1 => {
                self.admin.run(&format!("select pg_terminate_backend({})", session.pid()));
            }
            kind => {
                if kind == 2 {
                    session.canceller().cancel();
                }
                session.finish(&call);
            }
        }
    }

    /// Keeps the server from forking for a while.
    fn refuse_forks(&mut self) {
        let (database, jobs) = (self.database(), self.jobs());
        let mut session = self.session(database);
        self.cluster.refuse_forks(&mut self.admin);
        if self.rng.below(2) == 0 {
            signal_a_worker(&mut self.admin, &mut self.rng);
        }
        let batch = Batch::call(&mut session, &format!("pg_background_launch_num({}::jsonb)", literal(&jobs)));
        if self.rng.below(2) == 0 {
            session.ask(&format!("select * from pg_background_monitor('{}', false, interval '1 s')", batch.parent));
        }
        self.launched.push((database, batch));
        self.cluster.allow_forks(&mut self.admin);
    }

    fn drop_extension(&mut self) {
        let database = self.database();
        let mut session = self.cluster.session(database);
        session.run("set lock_timeout = '500ms'");
        if session.ask("drop extension pg_background_mgr").error.is_some() {
            return;
        }
        self.forgotten.insert(database, self.next);
        self.launched.retain(|(launched, _)| *launched != database);
        session.run("create extension pg_background_mgr");
        prepare_roles(&mut session);
    }

    fn rename_database(&mut self) {
        self.lockers.retain(|(database, _)| *database != PASSING);
        if self.admin.ask(&format!("alter database {PASSING} rename to elsewhere")).error.is_none() {
            if self.rng.below(2) == 0 {
                let mut session = self.session("postgres");
                session.ask("select count(*) from pg_background_launch_num(array['select 1', 'select 2'])");
            }
            let back = format!("alter database elsewhere rename to {PASSING}");
            wait_until("the name again", || self.admin.ask(&back).error.is_none());
        }
    }

    fn drop_role(&mut self) {
        if self.is_closed {
            return;
        }
        for database in DATABASES {
            self.cluster.session(database).ask("set lock_timeout = '500ms'; drop owned by guest");
        }
        if self.admin.ask("drop role guest").error.is_none() {
            self.admin.run("create role guest login");
        }
        for database in DATABASES {
            prepare_roles(&mut self.cluster.session(database));
        }
    }

    /// Open jobs are not those of the copy.
    fn copy_database(&mut self) {
        if self.admin.ask("create database copy template other").error.is_none() {
            let open = "select count(*) from log_background where status in ('queued', 'running')";
            assert_eq!(self.cluster.session("copy").value(open), "0");
            wait_until("the end of the copy", || self.admin.ask("drop database copy").error.is_none());
        }
    }

    fn rewrite_log(&mut self) {
        let database = self.database();
        let sql = self.rng.pick(&[
            "vacuum full background_mgr.log",
            "reindex table background_mgr.log",
            "vacuum freeze background_mgr.log",
        ]);
        let mut session = self.cluster.session(database);
        session.run("set lock_timeout = '500ms'");
        session.ask(sql);
    }

    /// Makes a call that may be refused, in the state that the server is in.
    fn try_with_batch(&mut self, call: &str) {
        if self.launched.is_empty() {
            return;
        }
        let (database, batch) = self.rng.pick(&self.launched);
        if self.is_closed && database == PASSING {
            return;
        }
        let mut session = self.cluster.session(database);
        session.ask(&call.replace("{}", &format!("'{}'::uuid", batch.parent)));
    }

    fn lock(&mut self) {
        let database = self.database();
        if self.lockers.iter().all(|(locked, _)| *locked != database) {
            let mut locker = self.cluster.session(database);
            locker.run(FREEZE_LOG);
            self.lockers.push((database, locker));
        }
    }

    fn unlock(&mut self) {
        if !self.lockers.is_empty() {
            let index = self.rng.below(self.lockers.len() as u64) as usize;
            let (_, mut locker) = self.lockers.remove(index);
            locker.run("rollback");
        }
    }

    fn classic(&mut self) {
        let database = self.database();
        let mut session = self.session(database);
        let sql = self.rng.pick(&["select 1", "select pg_sleep(0.02)", "select 1 / 0", "vacuum small"]);
        // There may be no process.
        let reply = session.ask(&format!("select pg_background_launch({})", literal(sql)));
        let Some(pid) = reply.last_rows().and_then(|rows| rows.text_rows().first().cloned()) else { return };
        let end = if self.rng.below(2) == 0 { "result" } else { "detach" };
        session.ask(&format!("select pg_background_{end}({pid})"));
    }

    fn drop_database(&mut self) {
        self.lockers.retain(|(database, _)| *database != PASSING);
        // Its sessions may still be on their way out, and a job may run.
        if self.admin.ask(&format!("drop database {PASSING}")).error.is_none() {
            self.launched.retain(|(database, _)| *database != PASSING);
            self.admin.run(&format!("create database {PASSING}"));
            self.is_closed = false;
            prepare(&self.cluster, PASSING);
        }
    }

    fn close(&mut self, is_closed: bool) {
        self.is_closed = is_closed;
        self.admin.run(&format!("alter database {PASSING} allow_connections {}", !is_closed));
    }

    fn go_down(&mut self, how: Stop) {
        self.lockers.clear();
        self.calling.clear();
        self.cluster.stop(how);
        self.cluster.start();
        self.admin = self.cluster.session("postgres");
        load(&mut self.admin);
    }

    /// Something at random; the number says how often.
    const KINDS: [(u64, Step); 24] = [
        (14, Self::launch),
        (4, Self::lock),
        (6, Self::unlock),
        (4, |this| signal_a_worker(&mut this.admin, &mut this.rng)),
        (2, |this| this.try_with_batch("select pg_background_stop({})")),
        (4, |this| this.try_with_batch("select pg_background_retry({})")),
        (2, |this| this.try_with_batch("select * from pg_background_monitor({}, false, interval '50 ms')")),
        (4, Self::classic),
        (4, |this| {
            let (name, values) =
                this.rng.pick(&[("max_workers", &["1", "2", "4", "-1"][..]), ("worker_idle_timeout", &["0", "10s"])]);
            let value = this.rng.pick(values);
            set_server(&this.cluster, &mut this.admin, &format!("pg_background_mgr.{name}"), value);
        }),
        (2, Self::drop_database),
        (2, |this| {
            let change = this.rng.pick(&["nologin", "login", "connection limit 1", "connection limit -1"]);
            this.admin.run(&format!("alter role weak {change}"));
        }),
        (4, |this| {
            let is_closed = !this.is_closed && this.rng.below(2) == 0;
            this.close(is_closed);
        }),
        (1, |this| this.go_down(Stop::Immediate)),
        (1, |this| this.go_down(Stop::Fast)),
        (4, |this| this.launch_in_vain("set statement_timeout = '{}ms'", "")),
        (2, |this| this.launch_in_vain("begin", "rollback")),
        (6, Self::begin_call),
        (5, Self::end_call),
        (2, Self::drop_extension),
        (2, Self::rename_database),
        (2, Self::drop_role),
        (1, Self::copy_database),
        (2, Self::rewrite_log),
        (4, Self::refuse_forks),
    ];

    fn step(&mut self) {
        let mut rest = self.rng.below(Self::KINDS.iter().map(|(weight, _)| weight).sum());
        for (weight, step) in Self::KINDS {
            if rest < weight {
                return step(self);
            }
            rest -= weight;
        }
    }

    /// Lets everything come to its end, and looks what is there.
    fn settle(&mut self, round: u64) {
        let because = format!("round {round}");
        self.lockers.clear();
        self.calling.clear();
        self.close(false);
        self.admin.run("alter role weak login connection limit -1");
        set_server(&self.cluster, &mut self.admin, "pg_background_mgr.max_workers", "2");
        // One that has nothing to do forgets what is done.
        set_server(&self.cluster, &mut self.admin, "pg_background_mgr.worker_idle_timeout", "10s");
        for database in DATABASES {
            let forgotten = self.forgotten.get(database).copied().unwrap_or(0);
            let mut session = self.cluster.session(database);
            // Its worker sees to what a server that has died left, too.
            Batch::launch(&mut session, &["select 1"]).succeed(&mut session);
            // A job that runs meanwhile ends after the snapshot of a query below: also one whose row is still to come.
            let open = "select uuid_child from background_mgr.log written join log_background using (uuid_child) \
                        where written.status = 'queued' and log_background.status <> 'lost' \
                        union all select uuid_child from log_background where status in ('queued', 'running') \
                        union all select uuid_child from background_mgr.live(true)";
            wait_until(&format!("every row of {database} is final: {because}"), || session.rows(open).is_empty());
            for (rule, query) in [
                (
                    "what succeeded has its effect, once",
                    "select l.name, l.query, count(r.name) from log_background l left join ran r using (name) \
                     where status = 'succeeded' and l.name is not null group by l.name, l.query \
                     having count(r.name) <> 1",
                ),
                (
                    "what has not succeeded has none",
                    "select name, status, message from log_background join ran using (name) \
                     where status <> 'succeeded'",
                ),
                (
                    "there is no effect without a row",
                    &format!(
                        "select name from ran where not exists (select from log_background l where l.name = ran.name) \
                         and split_part(name, '.', 1)::bigint > {forgotten}"
                    ),
                ),
                (
                    "what is lost says so",
                    "select name, message from log_background where status = 'lost' \
                     and message not like 'the server went down %'",
                ),
            ] {
                assert_eq!(session.rows(query), [""; 0], "{rule}: {database}, {because}");
            }
            for (_, batch) in self.launched.iter().filter(|(launched, _)| *launched == database) {
                let count = format!("select count(*) from log_background where uuid_parent = '{}'", batch.parent);
                assert_eq!(session.number(&count), batch.children.len() as i64, "all are there: {because}");
            }
        }
        self.launched.clear();
        wait_until(&format!("nothing is kept of what is gone: {because}"), || self.admin.value(OF_THE_GONE) == "0");
        set_server(&self.cluster, &mut self.admin, "pg_background_mgr.worker_idle_timeout", "0");
        wait_until(&format!("no worker is left: {because}"), || self.admin.value(WORKERS) == "0");
    }
}

#[case(slow)]
fn disorder_leaves_nothing_undone() {
    let mut disorder = Disorder::begin();
    for round in 0..rng::rounds(2) {
        for _ in 0..STEPS {
            disorder.step();
        }
        disorder.settle(round);
    }
}
