//! The house stays as ARCHITECTURE.md says: read from the manifests and the sources.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A room and the rooms it may import.
const FLOORS: &[&[&str]] = &[
    &["terms"],
    &["cost", "ledger", "engine", "http1", "placement", "planner"],
    &["filters", "sim", "settings", "signals"],
    &["proxy", "emulator", "load"],
];

fn rooms() -> BTreeMap<String, Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut rooms = BTreeMap::new();
    for room in FLOORS.concat() {
        let folder = if room == "filters" { root.join(room) } else { root.join("src").join(room) };
        let text = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        let manifest: toml::Table = text.parse().unwrap();
        let imports = manifest["dependencies"].as_table().unwrap().keys();
        let inner = imports.filter_map(|name| name.strip_prefix("tidegate-")).map(str::to_owned);
        rooms.insert(room.to_owned(), inner.collect());
    }
    rooms
}

fn floor(room: &str) -> usize {
    FLOORS.iter().position(|rooms| rooms.contains(&room)).unwrap_or_else(|| panic!("{room}?"))
}

#[test]
fn imports_point_down() {
    for (room, imports) in rooms() {
        for import in imports {
            // Placement and the planner are built from costs.
            let beside =
                matches!((room.as_str(), import.as_str()), ("placement" | "planner", "cost"));
            assert!(
                floor(&import) < floor(&room) || beside,
                "{room} imports {import}, which is not below it"
            );
        }
    }
}

#[test]
fn the_pure_rooms_import_no_runtime() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pure =
        ["cost", "ledger", "engine", "http1", "placement", "planner", "sim", "settings", "signals"];
    for room in pure.into_iter().chain(["terms"]) {
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

#[test]
fn every_source_file_says_what_it_is_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("src"), root.join("filters")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                assert!(text.starts_with("//!"), "{} has no first word", path.display());
                let lines = text.lines().count();
                assert!(lines <= 600, "{} has {lines} lines", path.display());
            }
        }
    }
}
