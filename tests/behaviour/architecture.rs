//! The dependency rules of ARCHITECTURE.md, checked against the manifests and the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The crates, lowest first. A crate may import only crates of earlier lines.
const LAYERS: &[&[&str]] = &[
    &["types", "page"],
    &["scheduler", "engine", "http1"],
    &["filters", "sim", "settings", "signals"],
    &["kubernetes"],
    &["proxy", "emulator", "load"],
];

fn rooms() -> BTreeMap<String, Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut rooms = BTreeMap::new();
    for room in LAYERS.concat() {
        let folder = if room == "filters" { root.join(room) } else { root.join("src").join(room) };
        let text = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        let manifest: toml::Table = text.parse().unwrap();
        let imports = manifest["dependencies"].as_table().unwrap().keys();
        let inner = imports.filter_map(|name| name.strip_prefix("tidegate-")).map(str::to_owned);
        rooms.insert(room.to_owned(), inner.collect());
    }
    rooms
}

fn layer(room: &str) -> usize {
    LAYERS.iter().position(|rooms| rooms.contains(&room)).unwrap_or_else(|| panic!("{room}?"))
}

#[test]
fn imports_point_down() {
    for (room, imports) in rooms() {
        for import in imports {
            assert!(
                layer(&import) < layer(&room),
                "{room} imports {import}, which is not below it"
            );
        }
    }
}

#[test]
fn the_pure_rooms_import_no_runtime() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for room in ["types", "scheduler", "engine", "http1", "sim", "settings", "signals"] {
        let text = fs::read_to_string(root.join("src").join(room).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = text.parse().unwrap();
        let imports = manifest["dependencies"].as_table().unwrap();
        for shell in ["tokio", "hyper", "pingora-core", "rand", "fastrand"] {
            assert!(!imports.contains_key(shell), "{room} imports {shell}");
        }
        let lib = fs::read_to_string(root.join("src").join(room).join("lib.rs")).unwrap();
        assert!(lib.contains("deny(clippy::disallowed_methods"), "{room}/lib.rs is not fenced");
    }
}

/// A module of the scheduler and the modules of the scheduler that it may import.
const SCHEDULER: &[(&str, &[&str])] = &[
    ("inflight", &[]),
    ("cost", &[]),
    ("learn", &["cost", "inflight"]),
    ("placement", &["cost"]),
    ("planner", &["cost"]),
    ("dispatch", &["cost", "inflight", "placement"]),
];

#[test]
fn placement_and_planner_import_costs_and_not_each_other() {
    let scheduler = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/scheduler");
    for (module, allowed) in SCHEDULER {
        for path in sources(&scheduler.join(module)) {
            let text = fs::read_to_string(&path).unwrap();
            for (other, _) in SCHEDULER {
                assert!(
                    other == module
                        || allowed.contains(other)
                        || !text.contains(&format!("crate::{other}")),
                    "{} imports {other}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn every_source_file_has_a_module_doc() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in [sources(&root.join("src")), sources(&root.join("filters"))].concat() {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//!"), "{} has no module doc", path.display());
        let lines = text.lines().count();
        assert!(lines <= 500, "{} has {lines} lines", path.display());
    }
}

/// Type names that more than one file may define. Other names are unique in the workspace, so that a
/// name means one thing.
const SHARED_NAMES: &[&str] = &[
    // The arguments of each subcommand.
    "Args",
    // The tokenizer of a model, with and without the cargo feature `tokenizer`.
    "ModelTokenizer",
    // The parameters of placement, and those of the planner.
    "Params",
];

#[test]
fn type_names_are_unique() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
    for path in [sources(&root.join("src")), sources(&root.join("filters"))].concat() {
        let text = fs::read_to_string(&path).unwrap();
        for line in text.lines() {
            let mut words = line.split_whitespace().skip_while(|word| word.starts_with("pub"));
            let is_type =
                words.next().is_some_and(|word| ["struct", "enum", "trait"].contains(&word));
            if let (true, Some(name)) = (is_type, words.next()) {
                let end = name.find(|c: char| !c.is_alphanumeric());
                let name = &name[..end.unwrap_or(name.len())];
                names.entry(name.to_owned()).or_default().insert(path.clone());
            }
        }
    }
    assert!(names.len() > 500, "types were found");
    names.retain(|name, paths| paths.len() > 1 && !SHARED_NAMES.contains(&name.as_str()));
    assert!(names.is_empty(), "names with several meanings: {names:?}");
}

/// Returns the Rust files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// The rooms of the proxy (directories of `src/proxy`), lowest first, and the rooms that each may
/// import. A room may import lower rooms only, and the table lists no import that does not exist.
const PROXY_ROOMS: &[(&str, &[&str])] = &[
    ("runtime", &[]),
    ("tls", &["runtime"]),
    ("upstream", &["runtime", "tls"]),
    ("backends", &["runtime", "upstream"]),
    ("telemetry", &["backends", "runtime", "upstream"]),
    ("signals", &["backends", "runtime", "telemetry"]),
    ("dispatch", &["backends", "runtime", "signals", "telemetry", "upstream"]),
    ("request", &["backends", "dispatch", "runtime", "telemetry", "upstream"]),
    ("listener", &["dispatch", "request", "runtime", "tls", "upstream"]),
    ("control", &["backends", "dispatch", "runtime", "signals", "telemetry", "upstream"]),
    (
        "process",
        &[
            "backends",
            "control",
            "dispatch",
            "listener",
            "runtime",
            "signals",
            "telemetry",
            "tls",
            "upstream",
        ],
    ),
];

#[test]
fn the_rooms_of_the_proxy_import_what_the_table_allows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/proxy");
    for entry in fs::read_dir(&root).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let is_listed = PROXY_ROOMS.iter().any(|(room, _)| *room == name);
        assert!(is_listed || ["lib.rs", "Cargo.toml"].contains(&&*name), "{name} is in no room");
    }
    for (floor, (room, allowed)) in PROXY_ROOMS.iter().enumerate() {
        for import in *allowed {
            let is_lower = PROXY_ROOMS[..floor].iter().any(|(lower, _)| lower == import);
            assert!(is_lower, "{import} is not below {room}");
        }
        let mut imports = BTreeSet::new();
        for path in sources(&root.join(room)) {
            let text = fs::read_to_string(&path).unwrap();
            // Tests may build a whole proxy.
            let code = text.split("#[cfg(test)]").next().unwrap();
            for import in code.split("crate::").skip(1) {
                let end = import.find(|c: char| !c.is_ascii_lowercase() && c != '_');
                let import = &import[..end.unwrap_or(import.len())];
                let is_allowed = import == *room || allowed.contains(&import);
                assert!(is_allowed, "{} imports {import}", path.display());
                imports.insert(import.to_owned());
            }
        }
        for import in *allowed {
            assert!(imports.contains(*import), "{room} does not import {import}");
        }
    }
}

#[test]
fn the_modules_of_a_proxy_room_form_no_cycle() {
    for (room, _) in PROXY_ROOMS {
        let mut imports = imports_within(room);
        // Removes modules without imports until none is left; the rest forms a cycle.
        loop {
            let before = imports.len();
            let left: BTreeSet<String> = imports.keys().cloned().collect();
            imports.retain(|_, of| of.iter().any(|other| left.contains(other)));
            if imports.len() == before {
                break;
            }
        }
        assert!(imports.is_empty(), "cycle in {room}: {imports:?}");
    }
}

/// Returns the modules of a room with the modules of the same room that each imports.
fn imports_within(room: &str) -> BTreeMap<String, BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/proxy").join(room);
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let prefix = format!("crate::{room}::");
    for path in sources(&root) {
        let first = path.strip_prefix(&root).unwrap().iter().next().unwrap().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        if module == "mod" || path.ends_with("tests.rs") {
            continue;
        }
        let of = imports.entry(module.to_owned()).or_default();
        for import in code.split(prefix.as_str()).skip(1) {
            let end = import.find(|c: char| !c.is_ascii_lowercase() && c != '_');
            of.insert(import[..end.unwrap_or(import.len())].to_owned());
        }
        of.remove(module);
    }
    imports
}

#[test]
fn the_repository_reads_nothing_outside_itself() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders: Vec<_> =
        ["src", "filters", "benches", "tests", "deploy", "docs"].map(|name| root.join(name)).into();
    // Concatenated, so that this file does not match itself.
    let outside = ["..", "shared"].join("/");
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                assert!(!text.contains(&outside), "{} names {outside}", path.display());
            }
        }
    }
}
