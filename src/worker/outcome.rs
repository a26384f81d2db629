//! Outcome of a queued job, from the end of the job until its row tells of it.

use crate::ffi::{session, transaction};
use crate::protocol::{sqlstate, Outcome, Report};
use crate::registry::State;

/// End of a job whose worker is still busy with it.
pub struct PendingOutcome {
    pub state: State,
    pub outcome: Outcome,
    /// The job ends so if this transaction is committed.
    pub commits: Option<u32>,
}

impl PendingOutcome {
    /// Returns how the job ended; if a transaction decides it, only when that was committed.
    pub fn decided(self) -> Option<(State, Outcome)> {
        self.commits.is_none_or(transaction::is_committed).then_some((self.state, self.outcome))
    }
}

/// Returns the outcome of a job that failed. Whoever reads the log reads all of it: no text is longer than so many
/// bytes.
pub fn failed(report: &Report) -> Outcome {
    const TEXT_BYTES: usize = 64 * 1024;
    let mut outcome = Outcome::failed(report);
    let Outcome { message, detail, hint, context, is_truncated, .. } = &mut outcome;
    for text in [message, detail, hint, context].into_iter().flatten() {
        let whole = session::clip(text, TEXT_BYTES).len();
        *is_truncated |= whole < text.len();
        text.truncate(whole);
    }
    outcome
}

/// Returns whether a job was cancelled or terminated.
pub fn is_interrupt(report: &Report) -> bool {
    [sqlstate(b"57014"), sqlstate(b"57P01")].contains(&report.sqlstate)
}
