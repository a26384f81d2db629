//! Files of our own in the data directory (fd.c).

use pgrx::pg_sys;
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Brings a file or a directory to disk, unless the server does without (`fsync`).
pub fn sync(path: &Path) -> io::Result<()> {
    // SAFETY: a setting of the server.
    if unsafe { pg_sys::enableFsync } {
        File::open(path)?.sync_all()
    } else {
        Ok(())
    }
}

/// Only the server's account may look into it.
pub fn make_private(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
}
