//! The README: its SQL is typed into psql, and what it shows is what comes back.
//!
//! A block marked `sql` is run; if a block marked `text` follows, that is its output, else what it gives is not looked
//! at, but must be no error. Process IDs (four digits and more) count as equal, and so do the widths of columns that
//! depend on them. All blocks share one psql, in order.

use pg_background_mgr_tests::{case, Case, Db};
use std::fmt::Write;
use std::path::Path;

pub fn cases() -> Vec<Case> {
    vec![case!(the_readme_shows_what_happens)]
}

struct Block {
    sql: String,
    output: Option<String>,
}

fn blocks(readme: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = readme.lines();
    while let Some(line) = lines.next() {
        let Some(kind) = line.strip_prefix("```") else { continue };
        let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        match kind {
            "sql" => blocks.push(Block { sql: body.join("\n"), output: None }),
            "text" => blocks.last_mut().expect("a text block follows a sql block").output = Some(body.join("\n")),
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

fn the_readme_shows_what_happens(db: &Db) {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(&readme).expect("README.md");
    let blocks = blocks(&readme);
    assert!(blocks.len() > 5, "the README has lost its tour");
    let mut script = String::from("\\set QUIET on\n\\set VERBOSITY default\n\\pset pager off\n");
    for block in &blocks {
        writeln!(script, "{}\n\\warn end of block\n\\echo end of block", block.sql).expect("memory");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("readme.sql");
    std::fs::write(&file, script).expect("the script");
    let output = db.cluster.psql(&db.name, &["-f", file.to_str().expect("a path")]);
    let (answers, complaints) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let both = answers.split("end of block\n").zip(complaints.split("end of block\n"));
    let mut seen = 0;
    for (block, (answer, complaint)) in blocks.iter().zip(both) {
        // A block that shows an error shows it last.
        let got = format!("{answer}{complaint}");
        match &block.output {
            Some(expected) => assert_eq!(comparable(&got), comparable(expected), "{}\n{got}", block.sql),
            None => assert!(!complaint.contains("ERROR:"), "{}\n{got}", block.sql),
        }
        seen += 1;
    }
    assert_eq!(seen, blocks.len(), "{complaints}");
}
