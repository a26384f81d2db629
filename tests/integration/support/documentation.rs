//! The README and the pages of docs/: their SQL is typed into psql, and what they show is what comes back.
//!
//! A block marked `sql` is run; if a block marked `text` follows, that is its output, else what it gives is not looked
//! at, but must be no error. Process IDs (four digits and more) count as equal, and so do the widths of columns that
//! depend on them. All blocks of a file share one psql and one database, in order. Translations (README.es.md and
//! docs/es/) are not run: they have the blocks of the English page.

use pg_background_mgr_tests::{case, Db};
use std::fmt::Write;
use std::path::{Path, PathBuf};

struct Block {
    /// Line of the file that it begins in.
    line: usize,
    sql: String,
    output: Option<String>,
}

/// Something between lines of three backticks.
pub struct Fence<'a> {
    /// Line of the file that it begins in.
    line: usize,
    /// Its mark, such as `sql`.
    kind: &'a str,
    pub body: String,
}

pub fn fences(page: &str) -> Vec<Fence<'_>> {
    let mut fences = Vec::new();
    let mut lines = page.lines().zip(1..);
    while let Some((opening, line)) = lines.next() {
        let Some(kind) = opening.strip_prefix("```") else { continue };
        let body: Vec<&str> = lines.by_ref().map(|(text, _)| text).take_while(|text| *text != "```").collect();
        fences.push(Fence { line, kind, body: body.join("\n") });
    }
    fences
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for Fence { line, kind, body } in fences(page) {
        match (kind, blocks.last_mut()) {
            ("sql", _) => blocks.push(Block { line, sql: body, output: None }),
            ("text", Some(block)) => block.output = Some(body),
            _ => {}
        }
    }
    blocks
}

/// Process IDs as `N`, rules of one length, no spaces where they do not matter.
fn comparable(output: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for line in output.lines() {
        let mut words = Vec::new();
        for word in line.split_whitespace() {
            if word.starts_with("psql:") {
                continue; // the place in the script
            }
            if word.bytes().all(|byte| byte.is_ascii_digit()) && word.len() >= 4 {
                words.push("N".to_owned());
            } else if word.len() > 1 && word.bytes().all(|byte| b"-+".contains(&byte)) {
                words.push("-".to_owned());
            } else {
                words.push(word.to_owned());
            }
        }
        if !words.is_empty() {
            lines.push(words.join(" "));
        }
    }
    lines
}

/// Returns what is wrong with the blocks of one page.
fn complaints_about(page: &str, blocks: &[Block], db: &Db) -> Vec<String> {
    let mut script = String::from("\\set QUIET on\n\\set VERBOSITY default\n\\pset pager off\n");
    for block in blocks {
        writeln!(script, "{}\n\\warn end of block\n\\echo end of block", block.sql).expect("memory");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("page.sql");
    std::fs::write(&file, script).expect("the script");
    let output = db.cluster.psql(&db.name, &["-f", file.to_str().expect("a path")]);
    let (answers, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let both = answers.split("end of block\n").zip(errors.split("end of block\n"));
    let (mut complaints, mut seen) = (Vec::new(), 0);
    for ((block, number), (answer, error)) in blocks.iter().zip(1..).zip(both) {
        // A block that shows an error shows it last.
        let got = format!("{answer}{error}");
        let is_as_shown = match &block.output {
            Some(expected) => comparable(&got) == comparable(expected),
            None => !["ERROR:", "FATAL:", ": error: "].iter().any(|level| error.contains(level)),
        };
        if !is_as_shown {
            let shown = block.output.as_deref().unwrap_or("no error");
            let (line, sql) = (block.line, &block.sql);
            complaints
                .push(format!("{page}, block {number}, line {line}:\n{sql}\n-- got:\n{got}\n-- shown:\n{shown}\n"));
        }
        seen += 1;
    }
    if seen != blocks.len() {
        complaints.push(format!("{page}: psql ended after {seen} blocks: {errors}"));
    }
    complaints
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[case]
fn the_readme_shows_what_happens(db: &Db) {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let blocks = blocks(&readme);
    assert!(blocks.len() > 5, "the README has lost its tour");
    let complaints = complaints_about("README.md", &blocks, db);
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[case]
fn the_docs_show_what_happens(_: &Db) {
    let entries = std::fs::read_dir(root().join("docs")).expect("docs");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a file").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "md"));
    files.sort();
    let (mut complaints, mut recipes) = (Vec::new(), 0);
    for file in files {
        let name = file.file_name().and_then(|name| name.to_str()).expect("a name");
        let blocks = blocks(&std::fs::read_to_string(&file).expect("a page"));
        if blocks.is_empty() {
            continue;
        }
        if name == "cookbook.md" {
            recipes = blocks.len();
        }
        let db = Db::create();
        complaints.extend(complaints_about(&format!("docs/{name}"), &blocks, &db));
        db.close();
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    assert!(recipes >= 10, "docs/cookbook.md has lost its recipes");
}

/// Returns what the blocks of a translation have different from those of its original; both are files below the root.
fn differences(original: &str, translation: &str) -> Vec<String> {
    let read =
        |file: &str| std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let (ours, theirs) = (read(original), read(translation));
    let examples = |page| -> Vec<Fence> {
        fences(page).into_iter().filter(|fence| ["sql", "text"].contains(&fence.kind)).collect()
    };
    let (ours, theirs) = (examples(&ours), examples(&theirs));
    let mut differences = Vec::new();
    for ((our, their), number) in ours.iter().zip(&theirs).zip(1..) {
        if (our.kind, &our.body) != (their.kind, &their.body) {
            differences.push(format!(
                "{translation}, block {number}, line {}:\n{}\n{}\n-- {original}, line {}:\n{}\n{}\n",
                their.line, their.kind, their.body, our.line, our.kind, our.body
            ));
        }
    }
    if ours.len() != theirs.len() {
        differences.push(format!("{translation} has {} blocks, {original} has {}", theirs.len(), ours.len()));
    }
    differences
}

#[case]
fn translations_have_the_same_examples(_: &Db) {
    let mut differences_of_all = differences("README.md", "README.es.md");
    for entry in std::fs::read_dir(root().join("docs/es")).expect("docs/es") {
        let name = entry.expect("a file").file_name().into_string().expect("a name");
        differences_of_all.extend(differences(&format!("docs/{name}"), &format!("docs/es/{name}")));
    }
    assert!(differences_of_all.is_empty(), "{}", differences_of_all.join("\n"));
}
