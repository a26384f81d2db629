//! Directory of the extension's files in the data directory, and the files of dead servers in it.

use crate::ffi::report::{Log, LOG};
use crate::ffi::{area, file, report};
use crate::ids::{DatabaseId, Epoch, JobId};
use crate::log::file_format::{self, FileContent, Unreadable};
use crate::log::file_name::{FileName, DIRECTORY};
use crate::protocol::{sqlstate, Report};
use crate::registry;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::Path;

/// Files of a kind, of dead servers.
#[derive(Debug)]
pub struct OrphanFiles<T> {
    pub readable: Vec<(FileName, T)>,
    /// Files that stay where they are.
    pub unreadable: Vec<(FileName, Unreadable)>,
}

impl<T> OrphanFiles<T> {
    /// Returns the contents of those that can be read.
    pub fn contents(self) -> Vec<T> {
        self.readable.into_iter().map(|(_, content)| content).collect()
    }

    /// Tells the server's log of each file that cannot be read, once in the life of this server.
    pub fn report_unreadable(&self) {
        for (name, reason) in &self.unreadable {
            let path = name.path();
            let mut hasher = DefaultHasher::new();
            path.hash(&mut hasher);
            if area::write(|memory| registry::is_first_report(memory, hasher.finish())) {
                report::emit(&unreadable_file(&path, reason), Log::Here);
            }
        }
    }
}

fn unreadable_file(path: &Path, reason: &Unreadable) -> Report {
    let (code, hint) = match reason {
        Unreadable::Io(_) => (b"58030", "The file is kept, and read again when a worker starts."),
        Unreadable::Version(_) => {
            (b"0A000", "The file is kept. A version of pg_background_mgr that knows the format will read it.")
        }
        Unreadable::Short { .. } | Unreadable::Invalid => (
            b"XX001",
            "The file is kept. Put an intact copy in its place, or remove it: the log will not have what it says.",
        ),
    };
    Report {
        level: LOG,
        sqlstate: sqlstate(code),
        message: format!("could not read file \"{}\" of pg_background_mgr: {reason}", path.display()).into_bytes(),
        hint: Some(hint.into()),
        ..Report::default()
    }
}

/// Reads the files of a kind for this database that servers wrote which have died since. `epoch` is that of this one.
pub fn read_orphans<T: FileContent>(epoch: Epoch, database: DatabaseId) -> OrphanFiles<T> {
    let mut files = OrphanFiles { readable: Vec::new(), unreadable: Vec::new() };
    for name in names().filter(|name| name.epoch != epoch && name.database == database && name.suffix == T::SUFFIX) {
        let content = fs::read(name.path()).map_err(Unreadable::from);
        match content.and_then(|bytes| file_format::parse(&name, &bytes)) {
            Ok(content) => files.readable.push((name, content)),
            // Another worker has made rows of it.
            Err(Unreadable::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(reason) => files.unreadable.push((name, reason)),
        }
    }
    files
}

fn names() -> impl Iterator<Item = FileName> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten();
    entries.filter_map(|entry| FileName::parse(entry.ok()?.file_name().to_str()?))
}

/// Removes files of databases that are gone, and unfinished ones of servers that are gone.
pub fn remove_dropped_databases(epoch: Epoch, exists: impl Fn(DatabaseId) -> bool) {
    for name in names().filter(|name| name.epoch != epoch) {
        if name.suffix.ends_with(file::UNFINISHED) || !exists(name.database) {
            name.remove();
        }
    }
}

/// Removes the files of this server, of these kinds, for jobs of a database that it has nothing to write of any more:
/// the log that was to be told is gone.
pub fn remove_unknown(epoch: Epoch, database: DatabaseId, suffixes: &[&str]) {
    for suffix in suffixes {
        for name in names().filter(|name| name.epoch == epoch && name.database == database && name.suffix == *suffix) {
            let batch = JobId::of_bytes(name.key).batch();
            // Under the lock, for it could be launched again in that moment.
            area::read(|memory| {
                if !registry::is_pending(memory, batch) {
                    name.remove();
                }
            });
        }
    }
}
