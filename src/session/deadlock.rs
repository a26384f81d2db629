//! Check whether the job that this session waits for is waiting for this session.
//!
//! The server's own deadlock check cannot see it: a session that waits for a worker's result waits for no lock. So
//! the session looks itself, each time that it has waited for `deadlock_timeout` (deadlock.c does the same for locks).

use crate::error::{DbText, Error};
use crate::ffi::{area, lock, session, wait_graph};
use crate::registry;
use std::collections::HashMap;
use std::time::Duration;

/// Number of processes that a search looks at, at most. A chain that long resolves from another end.
const SEARCH_LIMIT: usize = 1000;

/// Bytes of a statement that a message shows, at most.
const STATEMENT_BYTES: usize = 256;

/// A job that is waited for.
pub struct Awaited<'a> {
    pub pid: i32,
    pub sql: &'a [u8],
}

/// Time that a session waits for another one to find the same cycle, and to give way.
pub const VICTIM_TIMEOUT: Duration = Duration::from_millis(100);

/// Tells how the search came to a process.
#[derive(Clone, Copy)]
struct Step {
    from: i32,
    /// The process before waits for a job, not for a lock: it searches, too.
    searches: bool,
}

/// Follows who waits for whom from the job on: for locks, as launchers for their own jobs, as followers for jobs of a
/// batch. True = the way leads back to this process, but another one of the cycle is to be told; if it has not given
/// way after [`VICTIM_TIMEOUT`], this one `insists`.
///
/// # Errors
/// [`Error::Deadlock`] (40P01) if the way leads back to this process.
pub fn check(job: &Awaited, is_victim_fallback: bool) -> Result<bool, Error> {
    let own = session::pid();
    let mut came_from = HashMap::from([(job.pid, None)]);
    let mut todo = vec![job.pid];
    while let Some(process) = todo.pop() {
        let followed = area::read(|memory| registry::awaited_by(memory, process));
        let awaited = wait_graph::targets(process).chain(followed.into_iter().map(|(pid, _)| pid));
        let blocking = lock::blocking_pids(process).into_iter().map(|pid| (pid, false));
        let waits_for = blocking.chain(awaited.map(|pid| (pid, true)));
        for (next, searches) in waits_for.filter(|(next, _)| *next != process) {
            let step = Step { from: process, searches };
            if next == own {
                let chain = chain(&came_from, step);
                // One is enough: the one with the lowest number.
                if !is_victim_fallback && chain.iter().any(|step| step.searches && step.from < own) {
                    return Ok(true);
                }
                return Err(Error::Deadlock { detail: explain(job, &chain) });
            }
            if came_from.len() < SEARCH_LIMIT && !came_from.contains_key(&next) {
                came_from.insert(next, Some(step));
                todo.push(next);
            }
        }
    }
    Ok(false)
}

/// The steps from the job on, to the one that leads back.
fn chain(came_from: &HashMap<i32, Option<Step>>, last: Step) -> Vec<Step> {
    let before = |step: &Step| came_from.get(&step.from).copied().flatten();
    let mut chain: Vec<Step> = std::iter::successors(Some(last), before).collect();
    chain.reverse();
    chain
}

/// The cycle in words, as the server's own message has it.
fn explain(job: &Awaited, chain: &[Step]) -> DbText {
    let own = session::pid();
    let statement = |text: &[u8]| DbText::new(session::clip(text, STATEMENT_BYTES));
    let mut lines = vec![format!("Process {own} waits for the result of background job {}.", job.pid)];
    let followings = chain.iter().skip(1).map(|step| step.from).chain([own]);
    for (step, next) in chain.iter().zip(followings) {
        lines.push(format!("Process {} waits for process {next}.", step.from));
    }
    lines.push(format!("Process {own}: {}", statement(&session::current_query().unwrap_or_default())));
    lines.push(format!("Process {}: {}", job.pid, statement(job.sql)));
    DbText::join(&lines)
}
