//! Links resolve: every `docs/spec/FILE.md#anchor` cited in the tree names an existing anchor, and
//! every relative link of a document names an existing file and anchor.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const PREFIX: &str = "docs/spec/";

/// Returns all text files of the tree that may cite the specification.
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

/// Returns the citations of a text: document and anchor.
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

/// Returns the relative links of a Markdown text, without images of other sites.
fn links(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("](") {
        let rest = &text[at + 2..];
        let link = &rest[..rest.find(')').unwrap_or(0)];
        if !link.is_empty() && !link.contains("://") && !link.contains(' ') {
            found.push(link);
        }
    }
    found
}

/// Returns a heading's anchor as GitHub and mdBook form it.
fn slug(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_in_documents_resolve() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let of_root = ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"].map(|name| root.join(name));
    let all = sources(root).into_iter().chain(of_root);
    for path in all.filter(|path| path.extension().is_some_and(|kind| kind == "md")) {
        let text = fs::read_to_string(&path).unwrap();
        for link in links(&text) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{} links to {link}", path.display());
            if anchor.is_empty() || target.is_dir() {
                continue;
            }
            let text = fs::read_to_string(&target).unwrap();
            let named = text.contains(&format!("<a id=\"{anchor}\">"));
            let mut headings = text.lines().filter(|line| line.starts_with('#'));
            let headed = headings.any(|line| slug(line.trim_start_matches('#')) == anchor);
            assert!(named || headed, "{} links to {link}: no such anchor", path.display());
        }
    }
}
