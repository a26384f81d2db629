//! What the log could not be told in time, as files beside those of [`super::spool`].
//!
//! The registry knows it for as long as the server lives. After a crash such a file tells that a job was begun, or how
//! it ended: also of one whose work is committed without its row.

use super::attempt::{self, Attempt};
use super::registry::State;
use super::spool;
use crate::ffi::{area, file, session, transaction};
use crate::protocol::{to_bytes, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::{fs, io};

/// What the name of a note ends with.
pub(super) const NOTE: &str = ".note";

/// Of a job that was begun.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Note {
    pub epoch: i64,
    pub database: u32,
    pub attempt: Attempt,
    /// How it ended; with a transaction, if that was committed.
    end: Option<(End, Option<u64>)>,
}

/// How a job ended, or an attempt of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct End {
    pub state: State,
    pub pid: Option<i32>,
    pub started: Option<i64>,
    pub ended: Option<i64>,
    pub attempts: u32,
    pub outcome: Outcome,
}

impl Note {
    /// Says no more than that the attempt was begun.
    pub fn begun(epoch: i64, database: u32, attempt: Attempt) -> Self {
        Note { epoch, database, attempt, end: None }
    }

    /// Says how it ended: if `transaction` was committed, or in any case.
    pub fn with_end(self, end: End, transaction: Option<u64>) -> Self {
        Note { end: Some((end, transaction)), ..self }
    }

    /// Writes it down; when this returns it is on disk, and what the job has committed as well.
    pub fn write(&self) -> io::Result<()> {
        transaction::flush_commits();
        file::put(&spool::path(self.epoch, self.database, &self.attempt.uuid, NOTE), &to_bytes(self))
    }

    /// How the job ended, if that is known. Inside a transaction.
    pub fn end(&self) -> Option<&End> {
        let (end, transaction) = self.end.as_ref()?;
        transaction.is_none_or(transaction::was_committed).then_some(end)
    }
}

/// What a server that has died left of a job that it had begun.
#[derive(Debug, Clone)]
pub struct Trace {
    /// The last attempt that is known.
    pub attempt: Attempt,
    pub end: Option<End>,
}

/// By epoch and job.
type Traces = HashMap<(i64, [u8; 16]), (Attempt, Option<Note>)>;

/// What servers that have died left of jobs of this database; read when it is asked for first.
#[derive(Debug, Default)]
pub struct Left(Option<Traces>);

impl Left {
    /// What a server of this epoch left of a job. Inside a transaction.
    pub fn of(&mut self, epoch: i64, uuid: &[u8; 16]) -> Option<Trace> {
        let left = self.0.get_or_insert_with(|| {
            let (own, database) = (area::epoch(), session::database());
            let running = attempt::left_behind(own, database).into_iter();
            let mut left: Traces = running.map(|(epoch, attempt)| ((epoch, attempt.uuid), (attempt, None))).collect();
            for note in left_behind(own, database) {
                let of_job = left.entry((note.epoch, note.attempt.uuid)).or_insert((note.attempt, None));
                if of_job.0.attempts < note.attempt.attempts {
                    of_job.0 = note.attempt;
                }
                of_job.1 = Some(note);
            }
            left
        });
        let (attempt, note) = left.get(&(epoch, *uuid))?;
        Some(Trace { attempt: *attempt, end: note.as_ref().and_then(Note::end).cloned() })
    }
}

/// Forgets it: the log says more, on disk.
pub fn remove(epoch: i64, database: u32, uuid: &[u8; 16]) {
    // One that stays is of no interest once the row is final.
    let _ = fs::remove_file(spool::path(epoch, database, uuid, NOTE));
}

/// Notes for this database by servers that have died since.
pub fn left_behind(epoch: i64, database: u32) -> Vec<Note> {
    spool::files_left(epoch, database, NOTE)
}
