//! Which module uses which: held against the table in `docs/architecture.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

type Uses = BTreeMap<String, BTreeSet<String>>;

/// The table between the markers: a module in the first column, what it may use in the second.
fn table(text: &str) -> Uses {
    let (_, rest) = text.split_once("<!-- layers -->").expect("the table's first marker");
    let (table, _) = rest.split_once("<!-- /layers -->").expect("its second marker");
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').collect();
        let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        (names(cells[1])[0].clone(), names(cells[2]).into_iter().collect())
    })
    .collect()
}

/// The names of a path's first segment: one, or those in braces.
fn first_segments(path: &str) -> Vec<&str> {
    let end = |text: &str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    match path.strip_prefix('{') {
        Some(group) => group
            .split(['}', ';'])
            .next()
            .unwrap_or("")
            .split(',')
            .map(|name| &name.trim()[..end(name.trim())])
            .collect(),
        None => vec![&path[..end(path)]],
    }
}

/// The modules that the root takes its public names from, as `pub use module::…` in `lib.rs` says.
fn root_names(lib: &str) -> BTreeMap<&str, &str> {
    let lines = lib.lines().filter_map(|line| line.strip_prefix("pub use "));
    let names = lines.filter_map(|line| {
        let (module, _) = line.split_once("::")?;
        let (_, last) = line.rsplit_once("::")?;
        Some((module, last.trim_matches(['{', '}', ';'])))
    });
    names.flat_map(|(module, list)| list.split(',').map(move |name| (name.trim(), module))).collect()
}

/// What a file names of other modules, its tests and comments left out.
fn uses_of(text: &str, modules: &BTreeSet<String>, root: &BTreeMap<&str, &str>) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or("");
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let paths = lines.flat_map(|line| line.split("crate::").skip(1));
    let names = paths.flat_map(first_segments).filter(|name| !name.is_empty());
    names
        .filter_map(|name| if modules.contains(name) { Some(name) } else { root.get(name).copied() })
        .map(str::to_owned)
        .collect()
}

fn visit(dir: &Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder of the crate") {
        let path = entry.expect("its entry").path();
        if path.is_dir() {
            visit(&path, files);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn modules_use_what_the_architecture_says() {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let src = crate_dir.join("src");
    let wanted = table(&fs::read_to_string(crate_dir.join("docs/architecture.md")).expect("the page"));
    let lib = fs::read_to_string(src.join("lib.rs")).expect("the root");
    let modules: BTreeSet<String> =
        lib.lines().filter_map(|line| line.split_once("mod ")?.1.strip_suffix(';')).map(str::to_owned).collect();
    let root = root_names(&lib);
    let mut files = Vec::new();
    visit(&src, &mut files);
    let mut found: Uses = modules.iter().map(|module| (module.clone(), BTreeSet::new())).collect();
    for file in files {
        let within = file.strip_prefix(&src).expect("below src");
        let name = file.file_stem().and_then(|name| name.to_str()).unwrap_or("");
        let first = within.iter().next().and_then(|part| part.to_str()).unwrap_or("");
        let module = first.trim_end_matches(".rs");
        if name.ends_with("tests") || !modules.contains(module) {
            continue;
        }
        let text = fs::read_to_string(&file).expect("a source file");
        if text.contains("\n#![cfg(test)]\n") {
            continue;
        }
        let mut uses = uses_of(&text, &modules, &root);
        uses.remove(module);
        found.get_mut(module).expect("known").extend(uses);
    }
    for (module, uses) in &found {
        let allowed = wanted.get(module).unwrap_or_else(|| panic!("docs/architecture.md has no row for `{module}`"));
        let (new, gone): (Vec<_>, Vec<_>) = (uses.difference(allowed).collect(), allowed.difference(uses).collect());
        assert!(new.is_empty(), "`{module}` uses {new:?}: if that has to be, say so in docs/architecture.md");
        assert!(gone.is_empty(), "`{module}` does not use {gone:?} any more: take it out of docs/architecture.md");
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "rows of modules that are gone");
}

#[test]
fn uses_are_read_from_code_alone() {
    let modules = ["error", "plan"].map(str::to_owned).into();
    let root = root_names("pub use error::{Error, Result};\npub use plan::State;\n");
    let text = "//! crate::plan\nuse crate::{Error, ErrorKind};\n    fn f() -> crate::Result<()> {\n#[cfg(test)]\nmod tests {\nuse crate::plan;";
    assert_eq!(uses_of(text, &modules, &root), BTreeSet::from(["error".to_owned()]));
    assert_eq!(uses_of("let x = crate::plan::State {};", &modules, &root), BTreeSet::from(["plan".to_owned()]));
    assert_eq!(uses_of("-> crate::State", &modules, &root), BTreeSet::from(["plan".to_owned()]));
}
