//! Is the job that this session waits for waiting for this session?
//!
//! The server's own deadlock check cannot see it: a session that waits for a worker's result waits for no lock. So
//! the session looks itself, each time that it has waited for `deadlock_timeout` (deadlock.c does the same for locks).

use crate::error::{Error, Text};
use crate::ffi::{area, lock, session, wait_graph};
use crate::job::registry;
use std::collections::HashMap;

/// How many processes a search looks at. A chain that long resolves from another end.
const SEARCH_LIMIT: usize = 1000;

/// How much of a statement a message shows, in bytes.
const STATEMENT_BYTES: usize = 256;

/// A job that is waited for.
pub struct Awaited<'a> {
    pub pid: i32,
    pub sql: &'a [u8],
}

/// Follows who waits for whom from the job on: for locks, as launchers for their own jobs, as followers for jobs of a batch.
///
/// # Errors
/// [`Error::Deadlock`] (40P01) if the way leads back to this process.
pub fn check(job: &Awaited) -> Result<(), Error> {
    let own = session::pid();
    let mut came_from = HashMap::from([(job.pid, None)]);
    let mut todo = vec![job.pid];
    while let Some(process) = todo.pop() {
        let followed = area::read(|memory| registry::awaited_by(memory, process));
        let waits_for = lock::blocking_pids(process)
            .into_iter()
            .chain(wait_graph::targets(process))
            .chain(followed.into_iter().map(|(pid, _)| pid));
        for next in waits_for.filter(|next| *next != process) {
            if next == own {
                return Err(Error::Deadlock { detail: explain(job, &came_from, process) });
            }
            if came_from.len() < SEARCH_LIMIT && !came_from.contains_key(&next) {
                came_from.insert(next, Some(process));
                todo.push(next);
            }
        }
    }
    Ok(())
}

/// The cycle in words, as the server's own message has it.
fn explain(job: &Awaited, came_from: &HashMap<i32, Option<i32>>, last: i32) -> Text {
    let own = session::pid();
    let statement = |text: &[u8]| Text::new(session::clip(text, STATEMENT_BYTES));
    let mut chain = vec![last];
    while let Some(Some(before)) = chain.last().and_then(|process| came_from.get(process)) {
        chain.push(*before);
    }
    chain.reverse();
    let mut lines = vec![format!("Process {own} waits for the result of background job {}.", job.pid)];
    for (process, next) in chain.iter().zip(chain.iter().skip(1).chain([&own])) {
        lines.push(format!("Process {process} waits for process {next}."));
    }
    lines.push(format!("Process {own}: {}", statement(&session::current_query().unwrap_or_default())));
    lines.push(format!("Process {}: {}", job.pid, statement(job.sql)));
    Text::join(&lines)
}
