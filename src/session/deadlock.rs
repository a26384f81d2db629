//! Deadlock check between a session and the jobs that it waits for.
//!
//! The server's own deadlock check cannot find such a cycle: a session that waits for a worker's result waits for no
//! lock. So the session checks by itself, each time that it has waited for `deadlock_timeout` (deadlock.c does the same
//! for locks).

use crate::error::{DbText, Error};
use crate::ffi::{area, lock, session, wait_graph};
use crate::registry;
use std::collections::HashMap;
use std::time::Duration;

/// Maximum number of processes in a search. A longer chain is resolved from another end.
const SEARCH_LIMIT: usize = 1000;

/// Maximum bytes of a statement in a message.
const STATEMENT_BYTES: usize = 256;

/// Job that is waited for.
pub struct Awaited<'a> {
    pub pid: i32,
    pub sql: &'a [u8],
}

/// Time that a session waits for another one to find the same cycle, and to be its victim.
pub const VICTIM_TIMEOUT: Duration = Duration::from_millis(100);

/// Step of a search from one process to the next.
#[derive(Clone, Copy)]
struct Step {
    from: i32,
    /// The process waits for a job, not for a lock: it runs this check, too.
    searches: bool,
}

/// Searches for a cycle of waits that begins with the job: waits for locks, waits of launchers for their own jobs, and
/// waits of followers for jobs of a batch. Returns `true` if a cycle leads back to this process, but another process of
/// the cycle is the victim. If that is still so after [`VICTIM_TIMEOUT`], the caller checks again with
/// `is_victim_fallback`, which makes this process the victim.
///
/// # Errors
/// [`Error::Deadlock`] (40P01) if a cycle leads back to this process, and it is the victim.
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
                // One victim is enough: the process with the lowest number.
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

/// Returns the steps from the job on, up to the one that leads back.
fn chain(came_from: &HashMap<i32, Option<Step>>, last: Step) -> Vec<Step> {
    let before = |step: &Step| came_from.get(&step.from).copied().flatten();
    let mut chain: Vec<Step> = std::iter::successors(Some(last), before).collect();
    chain.reverse();
    chain
}

/// Returns the cycle in words, like the server's own message.
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
