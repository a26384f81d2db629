//! Runs the scripts that build and install on servers and tools that are made up. Needs no server.

use std::fs;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A directory with programs that stand in for others, and with a server that has no more than directories.
struct Machine {
    directory: TempDir,
    /// Other directories of programs, behind its own.
    path: String,
}

/// The end of a script, and its output.
struct Outcome {
    success: bool,
    text: String,
}

impl Machine {
    /// Returns a machine that has clang, and whose package manager fails and leaves a note that it was called.
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = std::env::var("PATH").expect("a PATH");
        let machine = Machine { directory, path };
        for folder in ["bin", "lib", "share/extension", "include"] {
            fs::create_dir_all(machine.file(folder)).expect("a directory");
        }
        fs::write(machine.file("include/postgres.h"), "").expect("a file");
        machine.program("clang", "exit 0");
        machine.program("sudo", "exec \"$@\"");
        machine.program("apt-get", &format!("echo \"$*\" >> {}; exit 100", machine.file("apt-get").display()));
        let top = machine.directory.path().display();
        let pg_config = format!(
            "case $1 in --version) echo PostgreSQL 17.1 ;; --pkglibdir) echo {top}/lib ;; \
             --sharedir) echo {top}/share ;; --includedir-server) echo {top}/include ;; *) exit 1 ;; esac"
        );
        machine.program("pg_config", &pg_config);
        machine
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn program(&self, name: &str, text: &str) {
        let file = self.file("bin").join(name);
        fs::write(&file, format!("#!/bin/sh\n{text}\n")).expect("a program");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("a program made executable");
    }

    /// Takes programs away: those of this name, in all directories, and those that the machine itself has.
    fn without(&mut self, names: &[&str]) {
        let others = self.file("others");
        fs::create_dir(&others).expect("a directory");
        for folder in self.path.split(':') {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name();
                if !names.iter().any(|hidden| *hidden == name) {
                    // The first of a name counts, as in a PATH.
                    let _ = symlink(entry.path(), others.join(&name));
                }
            }
        }
        for name in names {
            let _ = fs::remove_file(self.file("bin").join(name));
        }
        self.path = others.display().to_string();
    }

    fn run(&self, script: &str, arguments: &[&str]) -> Outcome {
        let output = Command::new(root().join("dev").join(script))
            .args(arguments)
            .env("PATH", format!("{}:{}", self.file("bin").display(), self.path))
            .env("LIBCLANG_PATH", self.file("lib"))
            .env("PGBM_HOME", self.file("home"))
            .output()
            .expect("a script");
        let text = [output.stdout, output.stderr].map(|part| String::from_utf8_lossy(&part).into_owned()).concat();
        Outcome { success: output.status.success(), text }
    }

    fn run_for_server(&self, script: &str) -> Outcome {
        self.run(script, &["--pg-config", self.file("bin/pg_config").to_str().expect("a path in UTF-8")])
    }
}

impl Outcome {
    #[track_caller]
    fn succeeds(self, part: &str) {
        assert!(self.success && self.text.contains(part), "should succeed with {part:?}:\n{}", self.text);
    }

    #[track_caller]
    fn fails(self, part: &str) {
        assert!(!self.success && self.text.contains(part), "should fail with {part:?}:\n{}", self.text);
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn uninstall_removes_the_files_of_the_extension_and_no_others() {
    let machine = Machine::new();
    let own = [
        "lib/pg_background_mgr.so",
        "share/extension/pg_background_mgr.control",
        "share/extension/pg_background_mgr--0.1.0.sql",
        "share/extension/pg_background_mgr--0.1.0--0.2.0.sql",
    ];
    let others = [
        "lib/pg_background.so",
        "lib/pg_background_mgr_more.so",
        "share/extension/pg_background.control",
        "share/extension/pg_background--1.4.sql",
        "share/extension/pg_background_mgr_more.control",
        "share/extension/pg_background_mgr_more--1.0.sql",
    ];
    for file in own.iter().chain(&others) {
        fs::write(machine.file(file), "").expect("a file");
    }
    machine.run_for_server("uninstall").succeeds("Removed pg_background_mgr");
    for file in own {
        assert!(!machine.file(file).exists(), "{file} is still there");
    }
    for file in others {
        assert!(machine.file(file).exists(), "{file} is gone");
    }
    machine.run_for_server("uninstall").succeeds("is not installed");
}

#[test]
fn uninstall_without_a_server_says_so() {
    Machine::new()
        .run("uninstall", &["--pg-config", "/nowhere/pg_config"])
        .fails("no pg_config at '/nowhere/pg_config'");
    Machine::new().run("uninstall", &[]).fails("usage:");
}

#[test]
fn a_build_with_all_that_it_needs_asks_for_nothing() {
    let machine = Machine::new();
    machine.run_for_server("setup").succeeds("headers of PostgreSQL 17");
    for file in ["apt-get", "home"] {
        assert!(!machine.file(file).exists(), "{file} was made");
    }
}

#[test]
fn missing_headers_are_named_by_their_package() {
    let machine = Machine::new();
    fs::remove_file(machine.file("include/postgres.h")).expect("a file to remove");
    machine.run_for_server("setup").fails("postgresql-server-dev-17");
    machine.run_for_server("install").fails("postgresql-server-dev-17");
}

#[test]
fn an_old_toolchain_is_refused_before_the_build() {
    let machine = Machine::new();
    machine.program("rustc", "echo 'rustc 1.60.0 (7737e0b5c 2022-04-04)'");
    machine.run_for_server("setup").fails("Rust 1.60 is too old");
}

#[test]
fn a_missing_toolchain_is_named() {
    let mut machine = Machine::new();
    machine.without(&["cargo"]);
    machine.run_for_server("setup").fails("no cargo");
}

#[test]
fn missing_packages_are_named_where_there_is_no_apt_get() {
    let mut machine = Machine::new();
    machine.without(&["clang", "apt-get"]);
    machine.run_for_server("setup").fails("Debian's packages: clang\n");
}

#[test]
fn what_apt_get_cannot_install_is_named() {
    let mut machine = Machine::new();
    machine.without(&["clang"]);
    machine.run_for_server("setup").fails("could not install: clang\n");
}

#[test]
fn an_index_that_cannot_be_renewed_may_do() {
    let mut machine = Machine::new();
    machine.without(&["clang"]);
    machine.program("apt-get", "[ \"$1\" = install ]");
    machine.run_for_server("setup").succeeds("apt-get update failed");
}

/// The script of CREATE EXTENSION as cargo-pgrx writes it, of these files and a block that comes from elsewhere.
fn made_by_cargo_pgrx(files: &[&str], elsewhere: &str) -> String {
    let block = |text: &str| format!("/* <begin connected objects> */\n{text}\n/* </end connected objects> */\n\n");
    let mut script = block("/*\nThis file is auto generated by pgrx.\n\nThe order is not stable.\n*/");
    for (index, file) in files.iter().enumerate() {
        let text = fs::read_to_string(root().join("sql").join(file)).expect("a file of SQL");
        script += &block(&format!("-- src/lib.rs:{}\n-- requires:\n--   other\n\n{text}", index + 40));
    }
    script + &block(elsewhere)
}

#[track_caller]
fn compare(files: &[&str], elsewhere: &str) -> Outcome {
    let machine = Machine::new();
    let script = machine.file("made.sql");
    fs::write(&script, made_by_cargo_pgrx(files, elsewhere)).expect("a file");
    machine.run("extension-sql", &["--compare", script.to_str().expect("a path in UTF-8")])
}

#[test]
fn the_script_is_compared_with_that_of_cargo_pgrx() {
    const FILES: [&str; 3] = ["functions.sql", "manager.sql", "grants.sql"];
    let of_a_test = "-- src/pg_tests/rows.rs:80\nCREATE FUNCTION tests.one() RETURNS void LANGUAGE c AS 'x', 'y';";
    compare(&FILES, of_a_test).succeeds("");
    compare(&FILES, "-- src/api/mod.rs:7\nCREATE FUNCTION two() RETURNS void LANGUAGE c AS 'x', 'y';")
        .fails("CREATE FUNCTION two()");
    compare(&["manager.sql", "functions.sql", "grants.sql"], of_a_test).fails("another script");
    compare(&FILES[..2], of_a_test).fails("another script");
}
