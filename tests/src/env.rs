//! The environment of a run: the directory in which its clusters live, removed at the end, and the server's programs.
//!
//! Four things end a cluster: its own drop, [`close`] at the end of `main`, and for a test program that was killed the
//! keeper, a shell that waits for its standard input to end. It stops the servers in an orderly way, for one that
//! is killed leaves its shared memory behind.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{chown, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::unistd::{geteuid, User};
use tempfile::TempDir;

use crate::cluster::Cluster;

const BIN_VARIABLE: &str = "PGBM_PG_BIN";

const KEEPER: &str = r#"
root=$1
trap '' INT TERM HUP
cat > /dev/null
servers() {
    for link in /proc/[0-9]*/cwd; do
        case $(readlink "$link" 2> /dev/null) in
            "$root"/*) pid=${link#/proc/}; echo "${pid%/cwd}" ;;
        esac
    done
}
for pid in $(servers); do
    if [ "$(head -n 1 "/proc/$pid/cwd/postmaster.pid" 2> /dev/null)" = "$pid" ]; then kill -QUIT "$pid"; fi
done
tries=0
while [ -n "$(servers)" ] && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
for pid in $(servers); do kill -KILL "$pid" 2> /dev/null; done
rm -rf "$root"
"#;

/// State that all clusters of a run share.
#[derive(Debug)]
pub struct Env {
    root: PathBuf,
    bin: PathBuf,
    /// The account of the servers when the test program runs as root, which a server refuses to.
    account: Option<User>,
    /// The major version of the server.
    pub version: u32,
    clusters: AtomicU32,
    template: OnceLock<()>,
    shared: OnceLock<Cluster>,
    workers: OnceLock<Cluster>,
    /// Dropped at the end, and only there: the directory and the keeper.
    holders: Mutex<Option<(TempDir, Child)>>,
}

static ENV: OnceLock<Env> = OnceLock::new();

/// Makes the environment of this run, or says why nothing can be tested.
pub fn open() -> Result<(), String> {
    let env = Env::new()?;
    ENV.set(env).map_err(|_| "the environment is open already".to_owned())
}

/// Returns the environment of this run.
///
/// # Panics
/// Before [`open`].
pub fn env() -> &'static Env {
    ENV.get().expect("an open environment")
}

/// Stops what still runs and removes everything.
pub fn close() {
    let Some(env) = ENV.get() else { return };
    for cluster in [&env.shared, &env.workers].into_iter().filter_map(OnceLock::get) {
        cluster.destroy();
    }
    let holders = env.holders.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((directory, mut keeper)) = holders {
        // The keeper removes the directory; should it fail, the drop of `directory` does.
        drop(keeper.stdin.take());
        let _ = keeper.wait();
        drop(directory);
    }
}

impl Env {
    fn new() -> Result<Self, String> {
        let bin = std::env::var_os(BIN_VARIABLE)
            .map(PathBuf::from)
            .ok_or_else(|| format!("set {BIN_VARIABLE} to the directory that has postgres, initdb and psql"))?;
        for program in ["postgres", "initdb", "psql"] {
            if !bin.join(program).exists() {
                return Err(format!("{BIN_VARIABLE} is {}, and there is no {program} in it", bin.display()));
            }
        }
        let account = if geteuid().is_root() {
            let account = User::from_name("postgres").map_err(|error| error.to_string())?;
            Some(account.ok_or("run as root, the tests need an account named postgres for the servers")?)
        } else {
            None
        };
        let directory = tempfile::Builder::new().prefix("pgbm-").tempdir().map_err(|error| error.to_string())?;
        let root = directory.path().to_owned();
        if let Some(user) = &account {
            chown(&root, Some(user.uid.as_raw()), Some(user.gid.as_raw())).map_err(|error| error.to_string())?;
        }
        // A group of its own: an interrupt at the terminal must end the tests, not the one who cleans up after them.
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(&root)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cannot start sh: {error}"))?;
        let mut env = Env {
            root,
            bin,
            account,
            version: 0,
            clusters: AtomicU32::new(0),
            template: OnceLock::new(),
            shared: OnceLock::new(),
            workers: OnceLock::new(),
            holders: Mutex::new(Some((directory, keeper))),
        };
        let output = env.command("postgres").arg("--version").output();
        let told = match &output {
            Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout),
            failure => return Err(format!("postgres --version in {}: {failure:?}", env.bin.display())),
        };
        env.version = told
            .split(|letter: char| !letter.is_ascii_digit())
            .find_map(|word| word.parse().ok())
            .ok_or_else(|| format!("no version in: {told}"))?;
        Ok(env)
    }

    /// The cluster that most cases share, started at first use.
    pub fn shared(&self) -> &Cluster {
        // One case's long queue is not to take the processes of what others launch at once.
        self.shared.get_or_init(|| Cluster::start_shared(&[("pg_background_mgr.reserved_workers", "12")]))
    }

    /// The cluster that cases share which count on idle workers to stay: it has more of them than these cases use, and
    /// no other case's queue evicts them.
    pub fn shared_of_workers(&self) -> &Cluster {
        self.workers.get_or_init(|| Cluster::start_shared(&[("max_worker_processes", "80")]))
    }

    /// A command of the server's installation, run by the account of the servers, in an environment that holds only
    /// what it needs: a RUST_BACKTRACE in it would make every caught error slow.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        // Some installations borrow client programs from another one by links; those need the libraries of that one.
        let program = self.bin.join(program);
        let program = program.canonicalize().unwrap_or(program);
        let libraries = program.parent().unwrap_or(&self.bin).join("../lib");
        let mut command = Command::new(program);
        command.env_clear();
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command.env("LD_LIBRARY_PATH", libraries).env("LC_ALL", "C");
        command.current_dir(&self.root).stdin(Stdio::null());
        if let Some(user) = &self.account {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    /// Returns a command as [`command`](Self::command) does; `directory` is a file system of so many kilobytes for it,
    /// which nobody else sees. None = only root can make one.
    pub(crate) fn command_with_file_system(&self, program: &Path, directory: &Path, kilobytes: u32) -> Option<Command> {
        const SCRIPT: &str = "mount -t tmpfs -o size=$1k,uid=$2,gid=$3,mode=700 tmpfs \"$4\" || exit; \
                              user=$2 group=$3; shift 4; \
                              exec setpriv --reuid $user --regid $group --clear-groups \"$@\"";
        let user = self.account.as_ref()?;
        let inner = self.command(program);
        let mut command = Command::new("unshare");
        command.env_clear().current_dir(&self.root).stdin(Stdio::null());
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.args(["--mount", "sh", "-c", SCRIPT, "sh"]);
        command.args([kilobytes, user.uid.as_raw(), user.gid.as_raw()].map(|number| number.to_string()));
        command.arg(directory).arg(inner.get_program());
        Some(command)
    }

    /// Runs `command`; its output.
    ///
    /// # Panics
    /// Panics when it fails.
    pub fn must_run(&self, command: &mut Command) -> String {
        let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            panic!("{command:?}: {}\n{told}{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        told
    }

    /// A new directory for a cluster's files.
    pub(crate) fn new_cluster_directory(&self) -> PathBuf {
        let number = self.clusters.fetch_add(1, Ordering::Relaxed);
        self.new_directory(&number.to_string())
    }

    /// Fills `data` with a new cluster: a copy of one, for initdb takes a second and more.
    pub(crate) fn populate(&self, data: &Path) {
        let template = self.root.join("template");
        self.template.get_or_init(|| {
            let mut initdb = self.command("initdb");
            initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C"]);
            self.must_run(initdb.arg("--pgdata").arg(&template));
        });
        self.copy(&template, data);
    }

    /// Copies a directory that the servers own.
    pub(crate) fn copy(&self, from: &Path, to: &Path) {
        let mut copy = self.outside("cp");
        self.must_run(copy.args(["-a", "--reflink=auto"]).arg(from).arg(to));
    }

    /// Writes a file as the account of the servers.
    pub(crate) fn append(&self, path: &Path, text: &str) {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path).expect("a file of a cluster");
        file.write_all(text.as_bytes()).expect("a file of a cluster written");
        if let Some(user) = &self.account {
            chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("a file given to the servers");
        }
    }

    /// A command of the system, run by the account of the servers.
    pub(crate) fn outside(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root).stdin(Stdio::null());
        if let Some(user) = &self.account {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    fn new_directory(&self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        fs::create_dir(&path).expect("a directory for a cluster");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("a private directory");
        if let Some(user) = &self.account {
            chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("a directory given to the servers");
        }
        path
    }

    /// Returns whether the installation has a loadable library of this name.
    pub fn has_library(&self, name: &str) -> bool {
        let file = format!("{name}.so");
        let mut open = vec![self.bin.join("../lib")];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                if entry.file_name().to_str() == Some(&file) {
                    return true;
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    open.push(entry.path());
                }
            }
        }
        false
    }
}

/// The setting that has the server run every plan that it may in parallel workers.
#[must_use]
pub fn forced_parallel() -> &'static str {
    if env().version >= 16 {
        "debug_parallel_query"
    } else {
        "force_parallel_mode"
    }
}
