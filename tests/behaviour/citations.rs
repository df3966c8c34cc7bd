//! Citations of the specification resolve: every `docs/spec/FILE.md#anchor` in the tree names an
//! anchor that exists, and every document cited without an anchor exists.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const PREFIX: &str = "docs/spec/";

/// All text files of the tree that may cite the specification.
fn sources(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.join("ARCHITECTURE.md"), root.join("README.md")];
    let parts = ["src", "filters", "tests", "docs", "benches", "config", "fuzz", "deploy"];
    let mut folders: Vec<PathBuf> = parts.iter().map(|part| root.join(part)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if let Some("rs" | "md" | "toml" | "sh" | "yaml" | "py") =
                path.extension().and_then(|kind| kind.to_str())
            {
                found.push(path);
            }
        }
    }
    found
}

/// The citations of a text: document and anchor.
fn citations(text: &str) -> Vec<(String, Option<String>)> {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let mut found = Vec::new();
    for (at, _) in text.match_indices(PREFIX) {
        let rest = &text[at + PREFIX.len()..];
        let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
        let Some(after) = rest[end..].strip_prefix(".md") else { continue };
        let anchor = after.strip_prefix('#').map(|anchor| {
            let end = anchor.find(|c| !word(c)).unwrap_or(anchor.len());
            anchor[..end].to_owned()
        });
        found.push((rest[..end].to_owned(), anchor));
    }
    found
}

#[test]
fn cited_anchors_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents: BTreeMap<String, Option<String>> = BTreeMap::new();
    let mut cited = 0;
    for path in sources(root) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (document, anchor) in citations(&text) {
            let file = root.join(PREFIX).join(format!("{document}.md"));
            let text = documents
                .entry(document.clone())
                .or_insert_with(|| fs::read_to_string(&file).ok())
                .as_ref()
                .unwrap_or_else(|| panic!("{} cites {}", path.display(), file.display()));
            if let Some(anchor) = anchor {
                let defined = text.contains(&format!("<a id=\"{anchor}\">"));
                assert!(defined, "{} cites {document}.md#{anchor}: no such anchor", path.display());
                cited += 1;
            }
        }
    }
    assert!(cited > 20, "only {cited} citations were found");
}

#[test]
fn citations_are_read() {
    let text =
        "as docs/spec/engine-model.md#step-time, docs/spec/data-plane.md; docs/spec/README.md";
    let (model, plane) = ("engine-model".to_owned(), "data-plane".to_owned());
    assert_eq!(citations(text), [(model, Some("step-time".to_owned())), (plane, None)]);
}
