//! Integration tests: real servers, seen from their clients.
//!
//! `PGBM_PG_BIN` names the directory of the server's programs; the extension is installed in that server.

use pg_background_mgr_tests::case;
use std::process::ExitCode;

// Compares a job with a client that sends the same text; no cases.
mod oracle;

// The test harness itself: what a run leaves behind, what a session shows.
mod harness;

// Statements, result sets and tags: what a text does, whoever runs it.
mod client_text;
// Implicit and explicit transactions of a job, and its independence from the caller's.
mod transactions;
// Commands that work only alone, outside a transaction block.
mod utility;
// Statement, lock and transaction timeouts.
mod timeouts;
// Surroundings: callers, roles, libraries, shared memory, a schema.
mod surroundings;
// Session settings, temp tables and other state of a session: carried over, left behind.
mod settings;
// pg_stat_activity, the server's log, statistics, progress, cancel and terminate.
mod observability;
// COPY in both directions.
mod copy;
// Reading results: with and without a column list, once, by the launcher only.
mod results;
// The caller's column list: mismatches, text, coercible types.
mod column_lists;
// Values of every type, also when what they came from has gone.
mod types;
// Row types that are altered before their values are read, and many columns of them.
mod row_types;
// Errors: complete, positioned on the job's text, logged once.
mod errors;
// Notices: at their level, in their order, in time.
mod notices;
// Databases and clients of different encodings.
mod encodings;
// Jobs whose rows nobody reads.
mod unread;
// Bounds of what results take that nobody reads.
mod unread_bounds;
// Waits that can never end.
mod deadlock;
// A read-only standby.
mod standby;
// The README does what it says.
mod readme;

// Chance, a lock that holds jobs up, and jobs held at each stage of their lives; no cases.
mod dice;
mod gate;
mod stage;
// The functions and views of the extension, as the catalogs have them; no cases.
mod functions;

// Whose rights a job has.
mod identity;
// Jobs of SECURITY DEFINER functions, and whose their results are.
mod definers;
// From where none may be launched.
mod restricted;
// What keeps a role from logging in keeps it from running jobs.
mod logins;
// Who may use the extension.
mod privileges;
// Objects of others that its own SQL could be taken in by.
mod shadows;
// How people use the classic interface: each usage that articles and courses show.
mod seeds;
// What a job leaves that no reset takes back.
mod warm_connections;
// Jobs that launch jobs.
mod chains;
// Arguments that make no sense.
mod bad_input;
// Results that are read again after what interrupted the first reading.
mod rereading;
// Not enough processes, segments, memory.
mod exhaustion;
// Processes that get no more memory, and a server without background workers.
mod memory;
// Workers that stay for the next job.
mod warm;
// What a job leaves in a worker that stays.
mod warm_reset;
// Commands that work only alone, and parallel plans, in workers that stay.
mod warm_commands;
// Workers that have nothing to do, and who wants what they have.
mod warm_aside;
// Deaths and cancels of workers that stay.
mod warm_faults;
// Workers whose results are given up, or unread.
mod warm_detached;
// Processes that are started before there is a job for them.
mod ahead;
// Launchers and workers that are cancelled, terminated, killed, gone.
mod faults;
// Servers that go down while there are jobs.
mod shutdown;
// Sessions, jobs and their ends at random.
mod disorder;

// Batches, and how to look at them; no cases.
mod manager;
// Many queries in one call: forms, arguments, and when it returns.
mod manager_launch;
// Whose rights and settings jobs have, and what their caller's transaction is to them.
mod manager_caller;
// Where a text is cut.
mod manager_split;
// Order, workers, errors, time limits and attempts of a batch.
mod manager_options;
// The cap, jobs within jobs, and from where none may be launched.
mod manager_cap;
// What the log says of a job, who changes it, and its size.
mod manager_log;
// That every job is in the log.
mod manager_logging;
// What the log could not be told before a crash.
mod manager_notes;
// Files that a server left, which cannot become rows at once.
mod manager_left;
// Following jobs.
mod manager_monitor;
// The views, and progress that jobs report.
mod manager_views;
// What is said of jobs while they run and end, seen at every moment and with old snapshots.
mod manager_states;
// Stopping jobs.
mod manager_stop;
// Running jobs again.
mod manager_retry;
// Jobs that are run again, and what happens meanwhile.
mod manager_again;
// Who sees and does what, also when that changes while jobs wait.
mod manager_rights;
// Roles that change while their jobs wait.
mod manager_roles;
// What others can do to the log, whatever they are granted and own.
mod manager_attack;
// One server for all: fair turns, full queues, what goes away under its jobs.
mod manager_server;
// The extension is updated under its jobs.
mod manager_update;
mod manager_version;
// What a job leaves in its process.
mod manager_reset;
// Deaths of the server.
mod manager_faults;
// Workers and launchers that go.
mod manager_gone;
// Memory that the queue shares, and too little of it.
mod shared_memory;
// Workers that wait.
mod manager_idle;
// A server that cannot fork.
mod manager_forks;
// Deaths at random.
mod manager_crash;
// Everything at random, in databases that come and go.
mod manager_disorder;
// Every function with arguments that make no sense, at random.
mod odd_arguments;
// Every function where it must not launch or must not tell.
mod every_function;
// Every setting of the server in a job, and who has those of the extension.
mod every_setting;
// Texts, servers and batches at the ends of what is possible.
mod limits;

fn main() -> ExitCode {
    case::run()
}
