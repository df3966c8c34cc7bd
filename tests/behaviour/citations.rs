//! Names resolve: every `docs/spec/FILE.md#anchor` cited in the tree names an existing anchor, every
//! relative link of a document an existing file and anchor, and every setting, metric, source path,
//! test and make target that a document names exists.

use std::collections::{BTreeMap, BTreeSet};
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

/// Directories whose files documents name from the root.
const ROOTS: &[&str] =
    &["src", "filters", "tests", "docs", "benches", "config", "fuzz", "deploy", ".ci"];

/// Returns the documents whose names are checked, with their text: Markdown and the description of
/// the admin API. Excluded are the specifications,
/// which name the files of engines, the generated references, and the change log, which names what
/// was removed.
fn documents(root: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for folder in ["", "docs", "docs/kubernetes", "docs/decisions", "benches"] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let is_api = path.ends_with("docs/openapi.yaml");
            let is_document = is_api || path.extension().is_some_and(|kind| kind == "md");
            if is_document && !path.ends_with("CHANGELOG.md") {
                let mut text = fs::read_to_string(&path).unwrap();
                if is_api {
                    // Without the indentation, which marks code in Markdown.
                    text = text.lines().map(|line| format!("{}\n", line.trim_start())).collect();
                }
                found.push((path, text));
            }
        }
    }
    assert!(found.len() > 30, "only {} documents", found.len());
    found
}

/// Returns the spans of code in the prose of a text, without its blocks of code.
fn spans(text: &str) -> Vec<&str> {
    let mut is_block = false;
    let mut found = Vec::new();
    for line in text.lines() {
        is_block ^= line.starts_with("```");
        if !is_block && !line.starts_with("    ") {
            found.extend(line.split('`').skip(1).step_by(2));
        }
    }
    found
}

/// Returns the settings of the generated reference, as `section` and `section.key`.
fn settings(reference: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut section = "";
    for line in reference.lines() {
        if let Some(heading) = line.strip_prefix("## `") {
            section = heading.trim_matches(|c| "[]`".contains(c));
            found.insert(section.to_owned());
        } else if let Some(key) = line.strip_prefix("| `").and_then(|row| row.split('`').next()) {
            found.insert(format!("{section}.{key}"));
        }
    }
    found
}

/// Returns the setting that a span names: `section.key`, `[section]` or `[[section]] key`.
fn setting(span: &str, known: &BTreeSet<String>) -> Option<String> {
    let end = |text: &str| {
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.".contains(c);
        text.find(|c| !is_name(c)).unwrap_or(text.len())
    };
    let Some(rest) = span.strip_prefix('[') else {
        let name = &span[..end(span)];
        let section = name.split_once('.')?.0;
        let is_file = [".rs", ".toml"].iter().any(|kind| name.ends_with(kind));
        return (known.contains(section) && !is_file).then(|| name.to_owned());
    };
    let rest = rest.trim_start_matches('[');
    let (section, rest) = rest.split_at(end(rest));
    let rest = rest.trim_start_matches(']').trim_start();
    match &rest[..end(rest)] {
        _ if section.is_empty() => None,
        "" => Some(section.to_owned()),
        key => Some(format!("{section}.{key}")),
    }
}

#[test]
fn settings_named_in_documents_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let reference = root.join("docs/reference/configuration.md");
    let known = settings(&fs::read_to_string(reference).unwrap());
    let mut named = 0;
    for (path, text) in documents(root) {
        for name in spans(&text).into_iter().filter_map(|span| setting(span, &known)) {
            assert!(known.contains(&name), "{} names {name}: no such setting", path.display());
            named += 1;
        }
    }
    assert!(named > 100, "only {named} settings were found");
}

#[test]
fn settings_are_read() {
    let known = settings("## `[slo]`\n| `ttft_seconds` |\n## `[[backends]]`\n| `url` |\n");
    let read = |span| setting(span, &known);
    assert_eq!(read("[slo] ttft_seconds"), Some("slo.ttft_seconds".to_owned()));
    assert_eq!(read("[[backends]]"), Some("backends".to_owned()));
    assert_eq!(read("slo.late = 1"), Some("slo.late".to_owned()));
    assert_eq!(read("slo.rs"), None);
    assert_eq!(read("fleet.update"), None);
    assert!(known.contains("backends.url") && !known.contains("slo.late"));
}

#[test]
fn metrics_named_in_documents_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let reference = fs::read_to_string(root.join("docs/reference/metrics.md")).unwrap();
    let rows = reference.lines().filter_map(|line| line.strip_prefix("| `"));
    let known: BTreeSet<&str> = rows.filter_map(|row| row.split('`').next()).collect();
    let mut named = 0;
    for (path, text) in documents(root) {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        for word in words.filter(|w| w.starts_with("tidegate_") || w.starts_with("gen_ai_")) {
            assert!(known.contains(word), "{} names {word}: no such metric", path.display());
            named += 1;
        }
    }
    assert!(named > 30, "only {named} metrics were found");
}

/// Returns every file and directory below [`ROOTS`] and the files of the root, relative to it.
fn tree(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let is_listed = folder != root || ROOTS.contains(&name.as_str());
            if path.is_dir() && is_listed && !path.ends_with("target") {
                folders.push(path);
            }
            found.insert(name);
        }
    }
    found
}

/// Returns the paths that a span names, each with the test or type after `::`. Words in capitals are
/// placeholders.
fn paths(span: &str) -> Vec<(&str, Option<&str>)> {
    let mut found = Vec::new();
    if span.contains("://") {
        return found;
    }
    let is_word = |c: char| c.is_ascii_alphanumeric() || "_./-:".contains(c);
    for word in span.split(|c| !is_word(c)) {
        let (path, symbol) = word.split_once("::").unwrap_or((word, ""));
        let path = path.trim_end_matches([':', '/']);
        let first = path.split('/').next().unwrap_or_default();
        let is_rust = path.ends_with(".rs") && path.len() > 3;
        let is_rooted = path.contains('/') && ROOTS.contains(&first);
        if (is_rust || is_rooted) && !path.contains("FILE") {
            found.push((path, (!symbol.is_empty()).then_some(symbol)));
        }
    }
    found
}

#[test]
fn source_paths_named_in_documents_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tree = tree(root);
    let mut named = 0;
    for (document, text) in documents(root) {
        for (path, symbol) in spans(&text).into_iter().flat_map(paths) {
            let end = format!("/{path}");
            let same = tree.iter().filter(|file| **file == path || file.ends_with(&end));
            let same: Vec<&String> = same.collect();
            assert!(!same.is_empty(), "{} names {path}: no such file", document.display());
            named += 1;
            let Some(symbol) = symbol else { continue };
            let defines = |file: &&&String| {
                let text = fs::read_to_string(root.join(file)).unwrap();
                ["fn", "struct", "enum", "mod", "const"]
                    .iter()
                    .any(|kind| text.contains(&format!("{kind} {symbol}")))
            };
            let is_defined = same.iter().any(|file| defines(&file));
            assert!(is_defined, "{} names {path}::{symbol}", document.display());
        }
    }
    assert!(named > 100, "only {named} paths were found");
}

#[test]
fn paths_are_read() {
    assert_eq!(paths("src/types/role.rs"), [("src/types/role.rs", None)]);
    assert_eq!(paths("flips.rs::a_flip"), [("flips.rs", Some("a_flip"))]);
    assert_eq!(paths("tests/behaviour/{a,b}.rs"), [("tests/behaviour", None)]);
    assert_eq!(paths("docs/spec/FILE.md#anchor"), []);
    assert_eq!(paths("curl http://127.0.0.1/src/a.rs"), []);
}

#[test]
fn make_targets_named_in_documents_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let makefile = fs::read_to_string(root.join("Makefile")).unwrap();
    let mut named = 0;
    for (path, text) in documents(root) {
        for span in spans(&text) {
            let Some(rest) = span.strip_prefix("make ") else { continue };
            let target = rest.split(' ').next().unwrap();
            let is_defined = makefile.lines().any(|line| line.starts_with(&format!("{target}:")));
            assert!(is_defined, "{} names make {target}", path.display());
            named += 1;
        }
    }
    assert!(named > 10, "only {named} make targets were found");
}

#[test]
fn constants_that_the_benches_change_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tuning = fs::read_to_string(root.join("src/scheduler/tuning.rs")).unwrap();
    let script = fs::read_to_string(root.join("benches/constants/run")).unwrap();
    let changes = script.split("\"\"\"").find(|text| text.contains("=0")).unwrap();
    let names: Vec<&str> = changes.split_whitespace().filter_map(|c| c.split('=').next()).collect();
    assert!(names.len() > 20, "only {} changes were found", names.len());
    for name in names {
        assert!(tuning.contains(&format!("pub const {name}:")), "no constant {name}");
    }
}

#[test]
fn tests_named_in_the_conformance_table_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/kubernetes/sidecar.md")).unwrap();
    let rust = sources(root).into_iter().filter(|path| path.extension().is_some_and(|k| k == "rs"));
    let source: String = rust.map(|path| fs::read_to_string(path).unwrap()).collect();
    let defined: BTreeSet<&str> = source
        .lines()
        .filter_map(|line| line.split_once("fn ")?.1.split(['(', '<']).next())
        .collect();
    let mut named = 0;
    for row in document.lines().filter(|line| line.starts_with("| ")) {
        let cell = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        for test in spans(cell).into_iter().filter(|span| span.contains('_')) {
            assert!(defined.contains(test), "sidecar.md names {test}: no such test");
            named += 1;
        }
    }
    assert!(named > 15, "only {named} tests were found");
}

#[test]
fn no_text_has_conflict_markers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let marks = ["<", ">"].map(|mark| format!("{} ", mark.repeat(7)));
    for path in sources(root).into_iter().chain([root.join("CHANGELOG.md")]) {
        let text = fs::read_to_string(&path).unwrap();
        let mut lines = text.lines();
        let marked = lines.find(|line| marks.iter().any(|mark| line.starts_with(mark)));
        assert_eq!(marked, None, "{}", path.display());
    }
}
