//! Metric names in alerts, dashboards and scalers: each exists in docs/reference/metrics.md with the
//! type that the query assumes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const PREFIXES: [&str; 2] = ["tidegate_", "gen_ai_"];
/// Series of a histogram.
const SUFFIXES: [&str; 3] = ["_bucket", "_sum", "_count"];

/// Type of each metric in the reference.
fn metrics(root: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(root.join("docs/reference/metrics.md")).unwrap();
    let row = |line: &str| {
        let mut cells = line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
        let (name, kind) = (cells.nth(1)?, cells.next()?);
        PREFIXES.iter().any(|prefix| name.starts_with(prefix)).then_some((name, kind))
    };
    text.lines().filter_map(row).collect()
}

/// Labels that the reference names.
fn labels(root: &Path) -> Vec<String> {
    let text = fs::read_to_string(root.join("docs/reference/metrics.md")).unwrap();
    let cells = text.lines().filter_map(|line| line.split('|').nth(3));
    let words = cells.flat_map(|cell| cell.split(','));
    words.map(|word| word.trim().trim_matches('`').to_owned()).collect()
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            continue;
        }
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

/// The identifiers of the text.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Returns the reason why a query cannot use the name.
fn problem(name: &str, known: &BTreeMap<String, String>) -> Option<String> {
    let series = SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix));
    match (known.get(name).map(String::as_str), series.and_then(|base| known.get(base))) {
        (Some("histogram"), _) => Some(format!("{name} is a histogram: query its buckets")),
        (Some(_), _) => None,
        (None, Some(kind)) if kind == "histogram" => None,
        (None, _) => Some(format!("{name} is not in docs/reference/metrics.md")),
    }
}

#[test]
fn every_metric_in_alerts_dashboards_and_scalers_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (known, labels) = (metrics(root), labels(root));
    assert!(known.len() > 40, "the reference was not read: {known:?}");
    let mut paths = Vec::new();
    files(&root.join("deploy"), &mut paths);
    let (mut problems, mut seen) = (Vec::new(), 0);
    // Scripts have no extension, and no queries.
    for path in paths.into_iter().filter(|path| path.extension().is_some()) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for word in words(&text) {
            if !PREFIXES.iter().any(|prefix| word.starts_with(prefix))
                || labels.iter().any(|label| label == word)
            {
                continue;
            }
            seen += 1;
            let found = problem(word, &known);
            problems.extend(found.map(|problem| format!("{}: {problem}", path.display())));
        }
    }
    assert!(seen > 100, "the queries were not read: {seen} names");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn an_unknown_metric_name_is_reported() {
    let known = [("tidegate_queue_seconds", "histogram"), ("tidegate_live_requests", "gauge")];
    let known = known.map(|(name, kind)| (name.to_owned(), kind.to_owned())).into();
    assert_eq!(problem("tidegate_live_requests", &known), None);
    assert_eq!(problem("tidegate_queue_seconds_bucket", &known), None);
    for wrong in ["tidegate_queue_seconds", "tidegate_live_requests_sum", "tidegate_gone"] {
        assert!(problem(wrong, &known).is_some(), "{wrong}");
    }
}
