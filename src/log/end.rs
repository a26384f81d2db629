//! End of a job, or of an attempt of it, as its row says it.

use crate::ids::JobId;
use crate::protocol::{decode, sqlstate, Outcome, Report, ERRCODE_INTERNAL_ERROR};
use crate::registry::{JobStatus, Reason, State};
use crate::scheduler::UnloggedJob;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// End of a job, or of an attempt of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct End {
    pub state: State,
    pub pid: Option<i32>,
    pub started: Option<Timestamp>,
    pub ended: Option<Timestamp>,
    pub attempts: u32,
    pub outcome: Outcome,
}

/// A final row, or what is known after an attempt that will be repeated.
pub struct FinalRow {
    pub uuid: JobId,
    pub end: End,
}

/// Returns the final row of a job that ended without writing it.
pub fn row_of(ended: &UnloggedJob) -> FinalRow {
    let outcome = outcome(ended.outcome.as_deref(), ended.state, || {
        stopped(ended.reason, ended.stop_requester.as_deref(), ended.attempts)
    });
    FinalRow {
        uuid: ended.uuid,
        end: End {
            state: ended.state,
            pid: ended.pid,
            started: ended.started.some(),
            ended: Some(ended.ended),
            attempts: ended.attempts,
            outcome,
        },
    }
}

/// Returns the outcome of a job that is in the registry.
pub fn outcome_of(job: &JobStatus) -> Outcome {
    outcome(job.outcome.as_deref(), job.state, || stopped(job.reason, job.stop_requester.as_deref(), job.attempts))
}

/// Returns the outcome that the registry has, or makes one.
fn outcome(stored: Option<&[u8]>, state: State, stopped: impl FnOnce() -> Outcome) -> Outcome {
    match (stored, state) {
        (Some(bytes), _) => decode(bytes).unwrap_or_else(|_| unreadable(state)),
        (None, State::Stopped) => stopped(),
        (None, _) => Outcome::default(),
    }
}

/// Returns the outcome of a job whose own one cannot be read. Only a fault of the extension can cause it.
fn unreadable(state: State) -> Outcome {
    Outcome::failed(&Report {
        sqlstate: ERRCODE_INTERNAL_ERROR,
        message: format!("could not read the outcome of a job that is {} in shared memory", state.name()).into_bytes(),
        ..Report::default()
    })
}

/// Returns the outcome of a job that was stopped, after so many attempts.
pub fn stopped(reason: Reason, requester: Option<&[u8]>, attempts: u32) -> Outcome {
    let by = requester.map_or(Vec::new(), |role| [b" by user \"", role, b"\""].concat());
    let before = if attempts == 0 { b" before it started".as_slice() } else { b" before its next attempt" };
    let message = match reason {
        Reason::OtherFailed => b"another job of the batch failed".to_vec(),
        Reason::Cancelled => [b"stopped".as_slice(), &by].concat(),
        Reason::None | Reason::Stopped => [b"the job was stopped".as_slice(), &by, before].concat(),
    };
    Outcome { sqlstate: sqlstate(b"57014"), message: Some(message), ..Outcome::default() }
}
