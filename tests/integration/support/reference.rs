//! docs/reference.md against the catalog: every function with its arguments, every view with its columns, every
//! setting with its values. The errors are compared in tests/documentation.rs.

use crate::support::batch::load;
use crate::support::catalog::members;
use crate::support::documentation::{fences, root};
use pg_background_mgr_tests::{case, Cluster, Db, Session};
use std::collections::BTreeSet;

fn page() -> String {
    std::fs::read_to_string(root().join("docs/reference.md")).expect("docs/reference.md")
}

/// Returns the sections of a part of the page: their headings, and what follows them.
fn sections<'a>(page: &'a str, part: &str) -> Vec<(&'a str, &'a str)> {
    let start = page.split(&format!("\n## {part}\n")).nth(1).unwrap_or_else(|| panic!("a part of {part}"));
    let part = start.split("\n## ").next().unwrap_or_default();
    part.split("\n### ").skip(1).filter_map(|section| section.split_once('\n')).collect()
}

/// Returns the rows of the tables in a text, without their headings.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines: Vec<&str> = text.lines().collect();
    let is_table = |line: &str| line.starts_with('|');
    let mut rows = Vec::new();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| is_table(line)) {
        let is_heading = lines.get(index + 1).is_some_and(|next| next.starts_with("|---"));
        if !is_heading && !line.starts_with("|---") {
            let cells = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')).expect("a row of a table");
            rows.push(cells.split('|').map(str::trim).collect());
        }
    }
    rows
}

/// The names of types on the page, and those of `format_type`.
const TYPES: [(&str, &str); 4] =
    [("int4", "integer"), ("int8", "bigint"), ("bool", "boolean"), ("timestamptz", "timestamp with time zone")];

/// Returns a declaration with the page's names of types, single spaces and no casts.
fn normalized(declaration: &str) -> String {
    let mut text = declaration.split_whitespace().collect::<Vec<_>>().join(" ").replace("TABLE (", "TABLE(");
    for (short, long) in TYPES {
        text = text.replace(&format!(" {long}"), &format!(" {short}"));
    }
    // As the server writes this interval.
    text = text.replace("'00:00:05'", "'5s'");
    let casts = ["::text", "::jsonb", "::interval"];
    casts.iter().fold(text, |text, cast| text.replace(cast, ""))
}

/// Returns the declarations in the page's blocks: several functions of one block share its RETURNS.
fn listed_functions(page: &str) -> BTreeSet<String> {
    let mut listed = BTreeSet::new();
    for (name, section) in sections(page, "Functions") {
        let fences = fences(section);
        let block = fences.first().unwrap_or_else(|| panic!("a declaration of {name}"));
        let (calls, result) = block.body.rsplit_once("RETURNS ").unwrap_or_else(|| panic!("RETURNS: {}", block.body));
        for call in format!("\n{calls}").split(&format!("\n{name}(")).skip(1) {
            listed.insert(normalized(&format!("{name}({} RETURNS {result}", call.trim_end())));
        }
    }
    listed
}

#[track_caller]
fn assert_same(what: &str, listed: &BTreeSet<String>, real: &BTreeSet<String>) {
    let list = |set: Vec<&String>| set.into_iter().map(|line| format!("\n  {line}")).collect::<String>();
    let (missing, unknown) = (list(real.difference(listed).collect()), list(listed.difference(real).collect()));
    assert!(listed == real, "{what}\nnot in docs/reference.md:{missing}\nonly in docs/reference.md:{unknown}");
}

/// The schema of what users call and read; the rest of the extension is in another one.
const INTERFACE: &str = "(select pronamespace from pg_proc where proname = 'pg_background_launch')";

#[case]
fn the_reference_has_every_function(db: &Db) {
    let mut session = db.session();
    let declared = session.rows(&format!(
        "select format('%s(%s) RETURNS %s', m.proname, pg_get_function_arguments(m.oid), \
         pg_get_function_result(m.oid)) from {} where m.pronamespace = {INTERFACE}",
        members("pg_proc")
    ));
    assert!(declared.len() > 10, "{declared:?}");
    let real = declared.iter().map(|declaration| normalized(declaration)).collect();
    assert_same("functions", &listed_functions(&page()), &real);
}

#[case]
fn the_reference_has_every_column(db: &Db) {
    let mut session = db.session();
    let columns = session.rows(&format!(
        "select format('%s.%s %s', m.relname, a.attname, format_type(a.atttypid, a.atttypmod)) from {} \
         join pg_attribute a on a.attrelid = m.oid and a.attnum > 0 and not a.attisdropped \
         where m.relkind in ('r', 'v', 'm') and m.relnamespace = {INTERFACE}",
        members("pg_class")
    ));
    assert!(columns.len() > 20, "{columns:?}");
    let real = columns.iter().map(|column| normalized(column)).collect();
    let page = page();
    let mut listed = BTreeSet::new();
    for (view, section) in sections(&page, "Views") {
        for row in rows(section) {
            let [names, kind, text] = row[..] else { panic!("three cells: {row:?}") };
            assert!(!text.is_empty(), "{row:?}");
            let names = names.split(", ").map(|name| name.trim_matches('`'));
            listed.extend(names.map(|name| normalized(&format!("{view}.{name} {kind}"))));
        }
    }
    assert_same("columns", &listed, &real);
}

/// Returns a setting of the page as the server has it: a number in the setting's unit.
fn in_unit(value: &str, unit: &str) -> String {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match (&value[digits.len()..], unit) {
        ("", _) => 1,
        ("s", "ms") => 1000,
        ("MB", "kB") => 1024,
        (own, unit) if own == unit => 1,
        (own, unit) => panic!("{own} in {unit}"),
    };
    (digits.parse::<i64>().expect("a number") * factor).to_string()
}

/// Returns the settings of the extension, as the table of the page has them.
#[track_caller]
fn settings(session: &mut Session) -> BTreeSet<String> {
    load(session);
    let settings = session.rows(
        "select format('%s = %s, %s to %s %s, %s', substr(name, length('pg_background_mgr.') + 1), boot_val, min_val, \
         max_val, unit, case context when 'superuser' then 'also by SET' else 'configuration' end) \
         from pg_settings where name like 'pg\\_background\\_mgr.%'",
    );
    assert!(settings.len() > 5, "{settings:?}");
    settings.into_iter().collect()
}

#[case]
fn the_reference_has_every_setting() {
    let cluster = Cluster::start_with_extension(&[]);
    let real = settings(&mut cluster.session("postgres"));
    let page = page();
    let sections = sections(&page, "Settings");
    let table = page.split("\n## Settings\n").nth(1).and_then(|part| part.split("\n### ").next()).expect("settings");
    let mut listed = BTreeSet::new();
    for row in rows(table) {
        let [link, default, range, unit, by_set] = row[..] else { panic!("five cells: {row:?}") };
        let name = link.split('`').nth(1).expect("a name");
        assert!(sections.iter().any(|(heading, _)| *heading == name), "a section of {name}");
        let default = in_unit(default, unit);
        let context = if by_set.starts_with("yes") { "also by SET" } else { "configuration" };
        listed.insert(format!("{name} = {default}, {range} {unit}, {context}"));
    }
    assert_same("settings", &listed, &real);
}
