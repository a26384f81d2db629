//! Names of the extension's files in the data directory.

use crate::ids::{DatabaseId, Epoch};
use std::fs;
use std::path::{Path, PathBuf};

/// Directory of the files, in the data directory, which is where every process of the server works.
pub const DIRECTORY: &str = "pg_background_mgr";

/// Name of a file: what must be known before it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileName {
    /// Epoch of the server that wrote it.
    pub epoch: Epoch,
    pub database: DatabaseId,
    /// Uuid of a job; of an attempt file, the process id of its worker.
    pub key: [u8; 16],
    /// End of the name: the kind.
    pub suffix: String,
}

impl FileName {
    pub fn new(epoch: Epoch, database: DatabaseId, key: &[u8; 16], suffix: &str) -> Self {
        FileName { epoch, database, key: *key, suffix: suffix.to_owned() }
    }

    /// Returns `None` if no file of the extension has such a name.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.splitn(3, '-');
        let epoch = Epoch::of_word(u64::from_str_radix(parts.next()?, 16).ok()?);
        let database = parts.next()?.parse().ok()?;
        let (key, suffix) = parts.next()?.split_at_checked(32)?;
        let key = u128::from_str_radix(key, 16).ok()?.to_be_bytes();
        Some(FileName { epoch, database, key, suffix: suffix.to_owned() })
    }

    /// Returns where the file is.
    pub fn path(&self) -> PathBuf {
        let FileName { epoch, database, key, suffix } = self;
        let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        Path::new(DIRECTORY).join(format!("{:016x}-{database}-{key}{suffix}", epoch.word()))
    }

    /// Removes the file, if it is there.
    pub fn remove(&self) {
        let _ = fs::remove_file(self.path());
    }
}
