//! Compares the pages with the source: links, names of files and functions, the glossary, the constants, the errors,
//! the words. Needs no server; tests/integration/support has the cases that compare pages with a server.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the files with this extension in a folder and those below it.
fn files_below(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(files_below(&path, extension));
        } else if path.extension().is_some_and(|own| own == extension) {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Returns all pages: those in the root, docs/ and benches/.
fn pages() -> Vec<PathBuf> {
    let in_root = fs::read_dir(root()).expect("the root").map(|entry| entry.expect("an entry").path());
    let mut pages: Vec<PathBuf> = in_root.filter(|path| path.extension().is_some_and(|own| own == "md")).collect();
    pages.extend(files_below(&root().join("docs"), "md"));
    pages.extend(files_below(&root().join("benches"), "md"));
    assert!(pages.len() > 20, "{pages:?}");
    pages
}

/// Returns the lines of a page with their numbers, without those of its blocks of code.
fn prose(page: &str) -> Vec<(usize, &str)> {
    let mut is_code = false;
    let mut lines = Vec::new();
    for (line, number) in page.lines().zip(1..) {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            lines.push((number, line));
        }
    }
    lines
}

/// Returns what stands between backticks in a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Returns the anchor that GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>().to_lowercase()
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    for file in pages() {
        let page = read(&file);
        for (number, line) in prose(&page) {
            for link in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                if link.contains("://") {
                    continue;
                }
                let (path, heading) = link.split_once('#').map_or((link, None), |(path, at)| (path, Some(at)));
                let target = if path.is_empty() { file.clone() } else { file.parent().expect("a folder").join(path) };
                let leads = target.exists()
                    && heading.is_none_or(|heading| {
                        let target = read(&target);
                        prose(&target).iter().any(|(_, line)| {
                            line.starts_with('#') && anchor(line.trim_start_matches('#').trim()) == heading
                        })
                    });
                if !leads {
                    broken.push(format!("{}:{number}: {link}", file.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Returns whether a source text defines this name.
fn defines(source: &str, name: &str) -> bool {
    let is_end = |c: char| !(c.is_alphanumeric() || c == '_');
    ["fn ", "struct ", "enum ", "const ", "static ", "type ", "trait ", "mod ", "macro_rules! "].iter().any(|kind| {
        source.match_indices(&format!("{kind}{name}")).any(|(at, found)| source[at + found.len()..].starts_with(is_end))
    })
}

/// Returns whether there is what a path such as `scheduler::claim::begin_job` names.
fn is_in_source(path: &str) -> bool {
    let parts: Vec<&str> = path.split("::").collect();
    let mut folder = root().join("src");
    for (index, part) in parts.iter().enumerate() {
        let rest = &parts[index + 1..];
        let file = [folder.join(format!("{part}.rs")), folder.join(part).join("mod.rs")];
        let file = file.iter().find(|file| file.exists());
        folder = folder.join(part);
        let is_further =
            rest.first().is_some_and(|next| folder.join(next).is_dir() || folder.join(format!("{next}.rs")).exists());
        match (file, rest) {
            _ if is_further => {}
            (Some(file), [.., name]) => return defines(&read(file), name),
            (Some(_), []) => return true,
            (None, _) => return false,
        }
    }
    false
}

/// The pages for developers name files and functions in backticks. A file's path begins in the root or in src/; the
/// server's own files end in `.c` and `.h`.
#[test]
fn pages_name_what_there_is() {
    let mut missing = Vec::new();
    let mut files = files_below(&root().join("docs/internals"), "md");
    files.push(root().join("CONTRIBUTING.md"));
    let sources: Vec<String> = files_below(&root().join("src"), "rs").iter().map(|file| read(file)).collect();
    let mut seen = 0;
    for file in files {
        let page = read(&file);
        for (number, line) in prose(&page) {
            for name in quoted(line) {
                let is_path = name.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
                    && [".rs", ".sql", ".md", ".lock", ".toml"].iter().any(|end| name.ends_with(end))
                    || ["src/", "tests/", "sql/", "dev/"].iter().any(|start| name.starts_with(start));
                let is_item =
                    name.contains("::") && name.chars().all(|c| c.is_ascii_alphanumeric() || "_:".contains(c));
                let is_there = match (is_path, is_item, name.rsplit_once("::")) {
                    (true, ..) => root().join(name).exists() || root().join("src").join(name).exists(),
                    (_, true, Some((_, item))) if name.starts_with(|c: char| c.is_uppercase()) => {
                        sources.iter().any(|source| defines(source, item))
                    }
                    // Of the harness: that of the registry is `registry::…`.
                    (_, true, _) => is_in_source(name),
                    _ => continue,
                };
                seen += 1;
                if !is_there {
                    missing.push(format!("{}:{number}: {name}", file.display()));
                }
            }
        }
    }
    assert!(seen > 200, "{seen} names");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn the_glossary_is_short_and_sorted() {
    let page = read(&root().join("docs/internals/glossary.md"));
    let words: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("| **")?.split("**").next()).collect();
    assert!(words.len() > 20 && words.len() <= 40, "{} words", words.len());
    assert!(words.is_sorted(), "{words:?}");
}

/// Returns the cells of a table's line.
fn cells(line: &str) -> Vec<&str> {
    line.trim().trim_matches('|').split('|').map(str::trim).collect()
}

/// Returns the value of an expression of integers and constants of the same file.
fn evaluate(expression: &str, source: &str) -> Option<u64> {
    let mut product = 1u64;
    for factor in expression.split('*') {
        let factor = factor.split(" as ").next()?.trim();
        let (base, shift) = factor.split_once("<<").map_or((factor, "0"), |(base, shift)| (base.trim(), shift.trim()));
        let value = match base.replace('_', "").parse() {
            Ok(value) => value,
            Err(_) => evaluate(&constants(source).into_iter().find(|constant| constant.name == base)?.value, source)?,
        };
        product = product.checked_mul(value << shift.parse::<u32>().ok()?)?;
    }
    Some(product)
}

struct Constant {
    name: String,
    kind: String,
    value: String,
}

/// Returns the constants of a source text that are written in one line.
fn constants(source: &str) -> Vec<Constant> {
    let parse = |line: &str| {
        let line = line.trim_start();
        let line = line.strip_prefix("pub(super) ").or(line.strip_prefix("pub ")).unwrap_or(line);
        let (name, rest) = line.strip_prefix("const ")?.split_once(": ")?;
        let (kind, value) = rest.split_once(" = ")?;
        let value = value.split(';').next()?;
        Some(Constant { name: name.to_owned(), kind: kind.to_owned(), value: value.to_owned() })
    };
    source.lines().filter_map(parse).collect()
}

/// Returns a duration of the source in microseconds.
fn duration(value: &str, source: &str) -> Option<u64> {
    let (unit, number) = value.strip_prefix("Duration::from_")?.strip_suffix(')')?.split_once('(')?;
    let factor = match unit {
        "micros" => 1,
        "millis" => 1000,
        "secs" => 1_000_000,
        _ => return None,
    };
    evaluate(number, source)?.checked_mul(factor)
}

/// Returns a value of the page: its number, and the same in bytes or microseconds if it has a unit.
fn page_value(value: &str) -> Option<(u64, u64)> {
    let (number, unit) = value.split_once(' ').unwrap_or((value, ""));
    let number: u64 = number.replace(',', "").parse().ok()?;
    let factor = match unit {
        "" | "bytes" | "µs" => 1,
        "ms" => 1000,
        "s" => 1_000_000,
        "kB" => 1024,
        "MB" => 1024 * 1024,
        _ => return None,
    };
    Some((number, number * factor))
}

/// Constants that nobody chose: layouts, marks and units.
const NOT_CHOSEN: [&str; 12] = [
    "LAYOUT",
    "VERSION",
    "HEADER_BYTES",
    "PAYLOAD_OFFSET",
    "DAY",
    "ERRCODE_INTERNAL_ERROR",
    "ALIGNMENT",
    "IMPORT_LOCK",
    "PROBE",
    "RELAUNCHED",
    "ALL",
    "NULL",
];

#[test]
fn the_page_of_constants_has_their_values() {
    let page = read(&root().join("docs/internals/constants.md"));
    let mut wrong = Vec::new();
    let mut listed = HashSet::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let [name, file, value, why] = cells(line)[..] else { panic!("four cells: {line}") };
        let (name, file) = (name.trim_matches('`'), file.trim_matches('`'));
        assert!(!why.is_empty(), "{line}");
        listed.insert((file.to_owned(), name.to_owned()));
        let source = fs::read_to_string(root().join("src").join(file)).unwrap_or_default();
        let Some(constant) = constants(&source).into_iter().find(|constant| constant.name == name) else {
            wrong.push(format!("{file} has no {name}"));
            continue;
        };
        let is_same = match (page_value(value), duration(&constant.value, &source)) {
            (Some((_, told)), Some(real)) => told == real,
            // Plain numbers: seconds where the server counts in them, else bytes or a count.
            (Some((number, told)), None) => {
                let real = evaluate(&constant.value, &source);
                real == Some(told) || value.ends_with(" s") && constant.kind == "i32" && real == Some(number)
            }
            (None, _) => false,
        };
        if !is_same {
            wrong.push(format!("{name} in {file} is {}, and not {value}", constant.value));
        }
    }
    assert!(listed.len() > 80, "{} constants", listed.len());
    let src = root().join("src");
    for path in files_below(&src, "rs") {
        let file = path.strip_prefix(&src).expect("below src").to_str().expect("a path").to_owned();
        let has_numbers_of_the_server =
            ["ffi/", "compat/", "pg_tests", "log/rows.rs"].iter().any(|start| file.starts_with(start));
        for constant in constants(&read(&path)) {
            let is_number = ["i32", "i64", "u16", "u32", "u64", "usize"].contains(&constant.kind.as_str());
            let is_chosen = constant.kind == "Duration"
                || is_number && !has_numbers_of_the_server && !NOT_CHOSEN.contains(&constant.name.as_str());
            if is_chosen && !listed.contains(&(file.clone(), constant.name.clone())) {
                wrong.push(format!("{} of {file} is not on the page", constant.name));
            }
        }
    }
    assert!(wrong.is_empty(), "docs/internals/constants.md:\n{}", wrong.join("\n"));
}

/// Returns the text of a string literal at the beginning of `source`, which follows its opening quote.
fn literal(source: &str) -> String {
    let mut text = String::new();
    let mut characters = source.chars();
    while let Some(character) = characters.next().filter(|character| *character != '"') {
        text.push(if character == '\\' { characters.next().expect("an escaped character") } else { character });
    }
    text
}

/// Returns the SQLSTATE and the message of each row of the table in src/error.rs; not of those that have another's.
fn own_errors(source: &str) -> Vec<(String, String)> {
    let table = source.split("\nerrors! {").nth(1).and_then(|rest| rest.split("\n}\n").next()).expect("the table");
    let row = |row: &str| {
        let (sqlstate, rest) = row.split_once('"').expect("an SQLSTATE");
        let message = rest.split_once('"').expect("a message").1;
        (sqlstate.to_owned(), literal(message))
    };
    table.split("=> b\"").skip(1).map(row).collect()
}

/// Returns the fixed parts of a message: what stands between its placeholders.
fn fixed_parts(message: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = message;
    while let Some((before, after)) = rest.split_once('{') {
        parts.push(before);
        rest = after.split_once('}').expect("the end of a placeholder").1;
    }
    parts.push(rest);
    parts
}

/// Returns whether a text of the page is this message, with anything in the places of its placeholders.
fn is_message(text: &str, message: &str) -> bool {
    let parts = fixed_parts(message);
    let (Some(mut rest), [_, others @ ..]) = (text.strip_prefix(parts[0]), &parts[..]) else { return false };
    let Some((last, between)) = others.split_last() else { return rest.is_empty() };
    for part in between {
        match rest.find(part) {
            Some(at) if at > 0 => rest = &rest[at + part.len()..],
            _ => return false,
        }
    }
    rest.len() > last.len() && rest.ends_with(last)
}

/// Returns whether a text is an SQLSTATE.
fn is_sqlstate(text: &str) -> bool {
    text.len() == 5
        && text.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
        && text.bytes().any(|byte| byte.is_ascii_digit())
}

/// Returns the SQLSTATE and the text of each message that docs/reference.md lists. Those of the server are in italics,
/// and left out.
fn listed_messages(page: &str) -> Vec<(String, String)> {
    let section = page.split("\n## Errors\n").nth(1).expect("a section of errors");
    let mut of_section = Vec::new();
    let mut listed = Vec::new();
    for line in section.lines() {
        if let Some(heading) = line.strip_prefix("### ") {
            let words = heading.split(|c: char| !c.is_alphanumeric()).filter(|word| is_sqlstate(word));
            of_section = words.map(str::to_owned).collect();
        } else if line.starts_with("| ") && !line.contains("| message |") {
            let cells = cells(line);
            let (sqlstate, messages) = match (&of_section[..], &cells[..]) {
                (_, [sqlstate, messages, _]) if is_sqlstate(sqlstate) => ((*sqlstate).to_owned(), *messages),
                ([sqlstate], [messages, _]) => (sqlstate.clone(), *messages),
                _ => panic!("of which SQLSTATE: {line}"),
            };
            let own = messages.split("; ").filter(|message| !message.starts_with('*'));
            listed.extend(own.map(|message| (sqlstate.clone(), message.to_owned())));
        }
    }
    listed
}

#[test]
fn the_reference_has_every_error() {
    // The message of one error is that of the error in it.
    let malformed = read(&root().join("src/protocol/mod.rs"));
    let inner = malformed.split("#[error(\"").nth(1).map(literal).expect("the message of Malformed");
    let message = |(sqlstate, message): (String, String)| match message.as_str() {
        "{cause}" => (sqlstate, inner.clone()),
        _ => (sqlstate, message),
    };
    let real: Vec<_> = own_errors(&read(&root().join("src/error.rs"))).into_iter().map(message).collect();
    let listed = listed_messages(&read(&root().join("docs/reference.md")));
    assert!(real.len() > 60 && listed.len() > 60, "{} and {} errors", real.len(), listed.len());
    let mut wrong = Vec::new();
    let mut known = BTreeSet::new();
    for (sqlstate, message) in &real {
        let of_it: Vec<_> =
            listed.iter().filter(|(told, text)| told == sqlstate && is_message(text, message)).collect();
        if of_it.is_empty() {
            wrong.push(format!("missing: {sqlstate} {message}"));
        }
        known.extend(of_it);
    }
    wrong.extend(listed.iter().filter(|entry| !known.contains(entry)).map(|(sqlstate, text)| {
        format!("no error of the extension (if it is the server's, write it in italics): {sqlstate} {text}")
    }));
    assert!(wrong.is_empty(), "docs/reference.md:\n{}", wrong.join("\n"));
}

/// Words that the code had before, and that are nobody else's.
const RETIRED: [&str; 11] =
    ["ahead", "backlog", "errand", "seat", "hungriest", "deaf", "deafen", "mortal", "manner", "widowed", "linger"];

#[test]
fn pages_are_in_plain_words() {
    let mut wrong = Vec::new();
    let mut files = files_below(&root().join("docs"), "md");
    files.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|file| root().join(file)));
    for file in files {
        let page = read(&file).replace("write-ahead", "WAL");
        for (number, line) in prose(&page) {
            let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            let retired = words.map(str::to_lowercase).find(|word| RETIRED.contains(&word.as_str()));
            let text = line.trim_start_matches(|c: char| " -*|>#0123456789.".contains(c));
            let sentences = text.split(". ").flat_map(|part| part.split("| "));
            let is_question = |sentence: &&str| {
                let first = sentence.trim_start_matches(['*', '"']).split(' ').next().unwrap_or_default();
                ["Who", "Whoever", "Whose", "What"].contains(&first) && !sentence.contains('?')
            };
            // A line may be the middle of a sentence: then it begins in lower case.
            if let Some(sentence) = sentences.into_iter().find(is_question) {
                wrong.push(format!("{}:{number}: {sentence}", file.display()));
            }
            if let Some(word) = retired {
                wrong.push(format!("{}:{number}: the word {word}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
