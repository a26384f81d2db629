//! Attempt files: which attempt each worker runs, so that it is known after a crash which jobs had started.
//!
//! The log is told of several jobs at once that they are about to start, and may not be told at all. These files are
//! not flushed, so that they cost no time: they outlive the processes of the server, not the operating system. After
//! the crash of that it is not known whether a job had started.

use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use crate::ffi::{area, exit_hooks, file, session};
use crate::ids::{DatabaseId, Epoch, JobId, RoleId};
use crate::log::directory::{self, OrphanFiles};
use crate::log::file_format::{self, FileContent};
use crate::log::file_name::FileName;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// An attempt that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Uuid of its job.
    pub uuid: JobId,
    /// The role whose rights it has.
    pub owner: RoleId,
    /// `None` if version 0.1.0 began the attempt, as all that follows.
    pub pid: Option<i32>,
    pub started: Option<Timestamp>,
    /// Number of attempts of the job up to this one.
    pub attempts: Option<u32>,
}

/// Content of a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AttemptFile {
    pub epoch: Epoch,
    /// `None` if the worker runs none.
    pub attempt: Option<Attempt>,
}

impl FileContent for AttemptFile {
    const KIND: &'static [u8; 4] = b"atmp";
    const SUFFIX: &'static str = ".attempt";

    fn is_named(&self, name: &FileName) -> bool {
        self.epoch == name.epoch
    }

    /// Returns that the worker ran none: it died between making its file and writing it.
    fn of_empty(name: &FileName) -> Option<Self> {
        Some(AttemptFile { epoch: name.epoch, attempt: None })
    }
}

thread_local! {
    static OWN: ProcessCell<Option<(PathBuf, File)>> = const { process_cell(None) };
}

/// Writes that this worker runs an attempt from now on, or none.
pub fn set(attempt: Option<&Attempt>) {
    // A job is not to fail for it: after a crash it reads as one of which it is not known whether it had started.
    if let Err(error) = write(attempt) {
        let text = format!("could not write which job a worker of pg_background_mgr runs: {error}");
        crate::compat::process::log_line(text.as_bytes());
    }
}

fn write(attempt: Option<&Attempt>) -> io::Result<()> {
    let content = AttemptFile { epoch: area::epoch(), attempt: attempt.copied() };
    OWN.with_borrow_mut(|own| {
        if own.is_none() {
            if attempt.is_none() {
                return Ok(());
            }
            let mut name = [0; 16];
            name[12..].copy_from_slice(&session::pid().to_be_bytes());
            let path = FileName::new(content.epoch, session::database(), &name, AttemptFile::SUFFIX).path();
            *own = Some((path.clone(), file::create(&path)?));
            exit_hooks::before_exit(remove_own);
        }
        own.as_ref().map_or(Ok(()), |(_, file)| file.write_all_at(&file_format::encode(&content), 0))
    })
}

/// Removes the file of this process, which ends in order.
fn remove_own() {
    if exit_hooks::is_postmaster_gone() {
        return;
    }
    if let Some((path, _)) = OWN.with_borrow_mut(Option::take) {
        let _ = fs::remove_file(path);
    }
}

/// Returns the files of workers of this database whose servers have died since.
pub fn orphans(epoch: Epoch, database: DatabaseId) -> OrphanFiles<AttemptFile> {
    directory::read_orphans(epoch, database)
}
