//! Runs the seeds under plain `cargo test`.

fn replay(name: &str, check: impl Fn(&[u8])) {
    let folder = format!("{}/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut seeds = 0;
    for entry in std::fs::read_dir(folder).expect("the corpus is in the tree") {
        check(&std::fs::read(entry.expect("a folder entry").path()).expect("a seed"));
        seeds += 1;
    }
    assert!(seeds > 0);
}

#[test]
fn streams() {
    replay("sse", tidegate_fuzz::sse);
}

#[test]
fn bodies() {
    replay("edits", tidegate_fuzz::edits);
}

#[test]
fn redaction() {
    replay("redaction", tidegate_fuzz::redaction);
}

#[test]
fn kv_events() {
    replay("kv_events", tidegate_fuzz::kv_events);
}

#[test]
fn metrics() {
    replay("metrics", tidegate_fuzz::metrics);
}

#[test]
fn messages() {
    replay("http1", tidegate_fuzz::http1);
}

#[test]
fn answers() {
    replay("answers", tidegate_fuzz::answers);
}

#[test]
fn handoffs() {
    replay("handoffs", tidegate_fuzz::handoffs);
}

#[test]
fn retry_after() {
    replay("retry_after", tidegate_fuzz::retry_after);
}

#[test]
fn forms() {
    replay("form", tidegate_fuzz::form);
}
