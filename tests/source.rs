//! Checks rules of the source that neither the compiler nor a line-by-line search knows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// The folders and files of `src`, from the top down: each imports only from those behind it.
const LAYERS: &[&[&str]] = &[
    &["api"],
    &["session", "worker"],
    &["channel", "log"],
    &["scheduler"],
    &["registry"],
    &["spec"],
    &["queries", "guc"],
    &["ffi"],
    &["compat"],
    &["error"],
    &["protocol", "sql_split"],
    &["ids", "time"],
];

/// Lines that a function may have.
const LONGEST_FUNCTION: usize = 60;
/// Lines that a file may have.
const LONGEST_FILE: usize = 600;

/// Words that the project had for things that have a name in PostgreSQL or in job queues, and that now name nothing.
const RETIRED: &[&str] = &[
    "abandoned_place",
    "ahead",
    "among",
    "audience",
    "backlog",
    "company",
    "deaf",
    "errand",
    "folded",
    "hungriest",
    "insists",
    "letter",
    "life",
    "linger",
    "look_late",
    "manner",
    "mortal",
    "newcomer",
    "noted",
    "patience",
    "place",
    "recorder",
    "room",
    "seat",
    "seeker",
    "sight",
    "spare",
    "standing",
    "stopper",
    "succession",
    "switch",
    "teller",
    "wear",
    "widowed",
];

struct Module {
    path: PathBuf,
    text: String,
    file: syn::File,
}

/// Returns the modules of `src`, by their names (`ffi::heap`; `` = lib.rs).
fn modules() -> BTreeMap<String, Module> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src");
    let mut found = BTreeMap::new();
    let mut directories = vec![source.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(&source).unwrap().with_extension("");
                let parts: Vec<&str> = relative.iter().map(|part| part.to_str().unwrap()).collect();
                let name = match parts.as_slice() {
                    ["lib"] => String::new(),
                    [folder @ .., "mod"] => folder.join("::"),
                    parts => parts.join("::"),
                };
                let text = fs::read_to_string(&path).unwrap();
                let file = syn::parse_file(&text).unwrap();
                found.insert(name, Module { path, text, file });
            }
        }
    }
    assert!(found.len() > 50, "the source is not where this test looks for it");
    found
}

/// Returns whether the module is built into the extension as users have it.
fn is_shipped(name: &str) -> bool {
    !name.starts_with("pg_tests") && !name.starts_with("bin") && !name.ends_with("tests")
}

/// Paths that a file names, as written.
#[derive(Default)]
struct Paths(Vec<Vec<String>>);

impl Paths {
    fn add_tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.add_tree(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) => self.0.push(with(&name.ident)),
            syn::UseTree::Rename(rename) => self.0.push(with(&rename.ident)),
            syn::UseTree::Glob(_) => self.0.push(before.to_vec()),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_tree(before, tree)),
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.0.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }
}

/// Returns the modules that each module imports from.
fn imports(modules: &BTreeMap<String, Module>) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut imports = BTreeMap::new();
    for (name, module) in modules.iter().filter(|(name, _)| is_shipped(name)) {
        let mut paths = Paths::default();
        paths.visit_file(&module.file);
        let targets = paths.0.into_iter().filter_map(|path| target(modules, name, &path));
        imports.insert(name.as_str(), targets.filter(|target| target != name).collect());
    }
    imports
}

/// Returns the module that a path in `module` leads to, or `None` if it leads out of the crate.
fn target<'a>(modules: &'a BTreeMap<String, Module>, module: &str, path: &[String]) -> Option<&'a str> {
    let mut base: Vec<&str> = match path.first()?.as_str() {
        "crate" => Vec::new(),
        "self" | "super" => module.split("::").filter(|part| !part.is_empty()).collect(),
        _ => return None,
    };
    for part in path {
        match part.as_str() {
            "super" => drop(base.pop()),
            "crate" | "self" => {}
            part => base.push(part),
        }
    }
    (1..=base.len())
        .rev()
        .find_map(|length| modules.get_key_value(&base[..length].join("::")))
        .map(|(name, _)| name.as_str())
}

fn layer(module: &str) -> Option<usize> {
    let folder = module.split("::").next()?;
    LAYERS.iter().position(|layer| layer.contains(&folder))
}

#[test]
fn imports_point_down() {
    let modules = modules();
    let mut wrong = Vec::new();
    for (module, targets) in imports(&modules) {
        for target in targets {
            let (Some(from), Some(to)) = (layer(module), layer(target)) else {
                if !module.is_empty() {
                    wrong.push(format!("{module} or {target} is in no layer"));
                }
                continue;
            };
            let is_same_folder = module.split("::").next() == target.split("::").next();
            if from > to || from == to && !is_same_folder {
                wrong.push(format!("{module} imports from {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_modules_import_from_each_other() {
    let modules = modules();
    let mut left = imports(&modules);
    left.remove("");
    // What imports from nothing that is left is in no circle.
    loop {
        let free: Vec<&str> = left
            .iter()
            .filter(|(_, targets)| !targets.iter().any(|target| left.contains_key(target)))
            .map(|(name, _)| *name)
            .collect();
        if free.is_empty() {
            break;
        }
        free.into_iter().for_each(|name| drop(left.remove(name)));
    }
    // Nor is what nothing that is left imports from.
    loop {
        let used: BTreeSet<&str> = left.values().flatten().copied().collect();
        let unused: Vec<&str> = left.keys().filter(|name| !used.contains(*name)).copied().collect();
        if unused.is_empty() {
            break;
        }
        unused.into_iter().for_each(|name| drop(left.remove(name)));
    }
    let circle: BTreeMap<&str, Vec<&str>> = left
        .iter()
        .map(|(name, targets)| (*name, targets.iter().filter(|target| left.contains_key(*target)).copied().collect()))
        .collect();
    assert!(circle.is_empty(), "{circle:#?}");
}

/// Functions, and the names that a file gives.
#[derive(Default)]
struct Names {
    functions: Vec<(String, usize, usize)>,
    names: Vec<(String, usize)>,
}

impl Names {
    fn add(&mut self, name: &syn::Ident) {
        self.names.push((name.to_string(), name.span().start().line));
    }

    fn add_function(&mut self, name: &syn::Ident, block: &syn::Block) {
        let (start, end) = (name.span().start().line, block.span().end().line);
        self.functions.push((name.to_string(), start, end + 1 - start));
        self.add(name);
    }
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.add_function(&item.sig.ident, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.add_function(&item.sig.ident, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.add(&item.ident);
        visit::visit_item_struct(self, item);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.add(&item.ident);
        visit::visit_item_enum(self, item);
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        field.ident.iter().for_each(|name| self.add(name));
        visit::visit_field(self, field);
    }

    fn visit_pat_ident(&mut self, pattern: &'ast syn::PatIdent) {
        self.add(&pattern.ident);
        visit::visit_pat_ident(self, pattern);
    }
}

fn names(module: &Module) -> Names {
    let mut names = Names::default();
    names.visit_file(&module.file);
    names
}

#[test]
fn functions_and_files_are_short() {
    let mut long = Vec::new();
    for (name, module) in modules().iter().filter(|(name, _)| is_shipped(name)) {
        let lines = module.text.lines().count();
        if lines > LONGEST_FILE {
            long.push(format!("{name}: {lines} lines"));
        }
        let functions = names(module).functions.into_iter().filter(|(_, _, lines)| *lines > LONGEST_FUNCTION);
        long.extend(functions.map(|(function, line, lines)| format!("{name}:{line}: {function}: {lines} lines")));
    }
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn retired_words_name_nothing() {
    let mut found = Vec::new();
    for module in modules().values() {
        for (name, line) in names(module).names {
            // CamelCase and snake_case as words.
            let mut words = String::new();
            for letter in name.chars() {
                if letter.is_uppercase() && words.ends_with(|before: char| before.is_lowercase()) {
                    words.push('_');
                }
                words.push(letter.to_ascii_lowercase());
            }
            let is_retired = |word: &str| words.split('_').any(|part| part == word) || words == word;
            if let Some(word) = RETIRED.iter().find(|word| is_retired(word)) {
                found.push(format!("{}:{line}: {name} ({word})", module.path.display()));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}
