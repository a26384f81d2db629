//! Outcome files as version 0.1.0 wrote them, for a server that has gone down with it and comes up with a newer one.

use crate::ids::{DatabaseId, Epoch, JobId, RoleId};
use crate::log::attempt_file::Attempt;
use crate::log::end;
use crate::log::file_format::FileContent;
use crate::log::file_name::FileName;
use crate::protocol::Outcome;
use crate::registry::State;
use crate::time::Timestamp;
use serde::Deserialize;

#[derive(Deserialize)]
pub struct OutcomeFile {
    pub epoch: Epoch,
    pub database: DatabaseId,
    uuid: JobId,
    owner: RoleId,
    end: Option<(End, Option<u64>)>,
}

impl FileContent for OutcomeFile {
    const KIND: &'static [u8; 4] = b"note";
    const SUFFIX: &'static str = ".note";

    fn is_named(&self, name: &FileName) -> bool {
        (self.epoch, self.database, self.uuid.bytes()) == (name.epoch, name.database, name.key)
    }
}

#[derive(Deserialize)]
struct End {
    state: State,
    pid: Option<i32>,
    started: Option<Timestamp>,
    ended: Option<Timestamp>,
    attempts: u32,
    result: Option<Vec<u8>>,
    row_count: Option<i64>,
    command_tag: Option<Vec<u8>>,
    sqlstate: i32,
    message: Option<Vec<u8>>,
    detail: Option<Vec<u8>>,
    hint: Option<Vec<u8>>,
    context: Option<Vec<u8>>,
}

impl OutcomeFile {
    /// Returns what such a file says now: of which attempt, and its end with the transaction of that.
    pub fn convert(self) -> (Attempt, Option<(end::End, Option<u64>)>) {
        let ended = self.end.as_ref().map(|(end, _)| end);
        let attempt = Attempt {
            uuid: self.uuid,
            owner: self.owner,
            pid: ended.and_then(|end| end.pid),
            started: ended.and_then(|end| end.started),
            attempts: ended.map(|end| end.attempts),
        };
        (attempt, self.end.map(|(end, transaction)| (end.into(), transaction)))
    }
}

impl From<End> for end::End {
    fn from(end: End) -> Self {
        let End { state, pid, started, ended, attempts, .. } = end;
        let outcome = Outcome {
            result: end.result,
            row_count: end.row_count,
            is_truncated: false,
            command_tag: end.command_tag,
            sqlstate: end.sqlstate,
            message: end.message,
            detail: end.detail,
            hint: end.hint,
            context: end.context,
        };
        end::End { state, pid, started, ended, attempts, outcome }
    }
}
