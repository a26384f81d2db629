//! A server's installation beside the real one, to which a test can add files.

use crate::env::env;
use crate::session::Session;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Links to an installation, with a server program and a directory of extensions of its own. Removed when it is
/// dropped.
#[derive(Debug)]
pub struct Installation {
    root: PathBuf,
    bin: PathBuf,
    extensions: PathBuf,
}

impl Drop for Installation {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

impl Installation {
    /// Returns a copy of the installation of the server that the session is connected to.
    #[track_caller]
    pub fn beside(session: &mut Session) -> Self {
        let mut directory =
            |name| PathBuf::from(session.value(&format!("select setting from pg_config where name = '{name}'")));
        let (bin, extensions) = (directory("BINDIR"), directory("SHAREDIR").join("extension"));
        let common: PathBuf =
            bin.components().zip(extensions.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
        let root = env().new_cluster_directory();
        // A server finds its files by its own place, so the way from one to the other must be the same.
        link(&common, &root, &[&bin, &extensions]);
        let own = |path: &Path| root.join(path.strip_prefix(&common).expect("a path below"));
        let (own_bin, extensions) = (own(&bin), own(&extensions));
        let program = own_bin.join("postgres");
        fs::remove_file(&program).expect("a link to the server program");
        fs::copy(bin.join("postgres"), &program).expect("a copy of the server program");
        Installation { root, bin: own_bin, extensions }
    }

    /// The directory of the server program.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// The files that make extensions.
    pub fn extensions(&self) -> &Path {
        &self.extensions
    }
}

/// Fills a directory with links, except for these directories and those that lead to them.
fn link(from: &Path, to: &Path, own: &[&Path]) {
    for entry in fs::read_dir(from).expect("a directory of the server").flatten() {
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if own.iter().any(|own| own.starts_with(&path)) {
            fs::create_dir(&copy).expect("a directory");
            link(&path, &copy, own);
        } else {
            symlink(&path, &copy).expect("a link");
        }
    }
}
