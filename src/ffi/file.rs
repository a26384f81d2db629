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

/// Writes a file of a directory in the data directory, whole or not at all, in the place of one of the same name. The
/// directory is made if it is not there. When this returns the file is on disk. Both can be read by those who can read
/// the data directory: the server's processes have a umask for that (postmaster.c, `checkDataDir`).
pub fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = make_directory_of(path)?;
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(UNFINISHED);
    let unfinished = Path::new(&unfinished);
    let write = || {
        fs::write(unfinished, bytes)?;
        sync(unfinished)?;
        fs::rename(unfinished, path)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(unfinished);
    })?;
    sync(directory)
}

/// Creates an empty file of such a directory, in the place of one of the same name; it is not brought to disk.
pub fn create(path: &Path) -> io::Result<File> {
    make_directory_of(path)?;
    File::create(path)
}

fn make_directory_of(path: &Path) -> io::Result<&Path> {
    let directory = path.parent().unwrap_or(Path::new("."));
    match fs::create_dir(directory) {
        Ok(()) => sync(Path::new("."))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    Ok(directory)
}

/// Suffix of the names of files that [`put`] writes and has not finished.
pub const UNFINISHED: &str = ".tmp";
