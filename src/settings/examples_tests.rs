//! The example files are valid, and config/gateway.toml documents every key, enum value and default of
//! the schema.

use std::collections::BTreeSet;
use toml::{Table, Value};

use crate::Settings;

const GATEWAY: &str = include_str!("../../config/gateway.toml");
const EXAMPLES: [(&str, &str); 3] = [
    ("gateway", GATEWAY),
    ("sidecar", include_str!("../../config/sidecar.toml")),
    ("demo", include_str!("../../config/demo.toml")),
];
/// Settings of the Kustomize manifests, and the workload that mounts them.
const MANIFESTS: [(&str, &str, &str); 4] = [
    (
        "base",
        include_str!("../../deploy/kustomize/base/tidegate.toml"),
        include_str!("../../deploy/kustomize/base/deployment.yaml"),
    ),
    (
        "pods",
        include_str!("../../deploy/kustomize/overlays/pods/tidegate.toml"),
        include_str!("../../deploy/kustomize/base/deployment.yaml"),
    ),
    (
        "role-labels",
        include_str!("../../deploy/kustomize/overlays/role-labels/tidegate.toml"),
        include_str!("../../deploy/kustomize/base/deployment.yaml"),
    ),
    (
        "sidecar",
        include_str!("../../deploy/kustomize/overlays/sidecar/tidegate.toml"),
        include_str!("../../deploy/kustomize/overlays/sidecar/pod.yaml"),
    ),
];
/// A key and enum value that is not in the schema.
const NOTHING: &str = "zz";

fn good(name: &str, text: &str) -> Settings {
    Settings::parse(text).unwrap_or_else(|problems| panic!("{name}: {problems:#?}"))
}

/// Returns config/gateway.toml with its commented examples enabled.
fn uncommented() -> String {
    let lines = GATEWAY.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with(' ') => setting,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns serde's error for a file; the names that it lists as expected are the schema.
fn complaint(tree: &Table) -> String {
    match Value::Table(tree.clone()).try_into::<Settings>() {
        Ok(_) => String::new(),
        Err(error) => error.message().to_owned(),
    }
}

/// Returns the names after "expected" if the error is about an unknown `what`.
fn words(complaint: &str, what: &str) -> Option<Vec<String>> {
    let rest = complaint.strip_prefix(&format!("unknown {what} `{NOTHING}`, expected "))?;
    Some(rest.split('`').skip(1).step_by(2).map(str::to_owned).collect())
}

/// Creates a file with `leaf` at `path` (`""` steps into a list).
fn tree(path: &[&str], leaf: Value) -> Table {
    let value = path.iter().skip(1).rev().fold(leaf, |inner, key| match *key {
        "" => Value::Array(vec![inner]),
        key => Value::Table(Table::from_iter([(key.to_owned(), inner)])),
    });
    match path.first() {
        Some(key) => Table::from_iter([((*key).to_owned(), value)]),
        None => Table::new(),
    }
}

/// Keys that still parse under an earlier name; serde lists them beside the present ones.
const OLD_NAMES: &[&str] =
    &["hopeless_share", "hopeless_patience", "room_seconds", "whole_below_tokens"];

/// Calls `key` with the path of every key of the schema, and `word` with every enum value.
fn walk(path: &[&str], key: &mut dyn FnMut(&[&str]), word: &mut dyn FnMut(&str)) {
    let inside = [path, &[NOTHING]].concat();
    if let Some(keys) = words(&complaint(&tree(&inside, Value::Integer(1))), "field") {
        for name in keys.iter().filter(|name| !OLD_NAMES.contains(&name.as_str())) {
            let path = [path, &[name.as_str()]].concat();
            key(&path);
            walk(&path, key, word);
        }
    } else if path.last().is_some_and(|last| !last.is_empty()) {
        let text = Value::String(NOTHING.to_owned());
        for variant in words(&complaint(&tree(path, text)), "variant").into_iter().flatten() {
            word(&variant);
        }
        walk(&[path, &[""]].concat(), key, word);
    }
}

#[test]
fn the_examples_are_valid() {
    for (name, text) in EXAMPLES {
        good(name, text);
    }
    good("gateway, uncommented", &uncommented());
}

#[test]
fn the_gateway_example_documents_every_key_and_enum_value() {
    let shown: Table = uncommented().parse().unwrap();
    let (mut keys, mut words) = (BTreeSet::new(), BTreeSet::new());
    walk(
        &[],
        &mut |path| {
            keys.insert(path.join(".").replace("..", "."));
        },
        &mut |word| {
            words.insert(word.to_owned());
        },
    );
    assert!(
        keys.len() > 60 && words.contains("kv_producer"),
        "the walk found too little: {keys:?}"
    );
    for key in keys {
        assert!(has(&shown, key.split('.')), "config/gateway.toml does not show {key}");
    }
    for word in words {
        assert!(GATEWAY.contains(&word), "config/gateway.toml does not mention {word}");
    }
}

/// Returns whether the key is in the tree, in any element of the lists on its path.
fn has<'k>(tree: &Table, mut path: impl Iterator<Item = &'k str> + Clone) -> bool {
    let Some(key) = path.next() else { return true };
    match tree.get(key) {
        None => false,
        Some(Value::Table(inner)) => has(inner, path),
        Some(Value::Array(list)) if list.iter().any(Value::is_table) => {
            list.iter().filter_map(Value::as_table).any(|inner| has(inner, path.clone()))
        }
        Some(_) => path.next().is_none(),
    }
}

/// Fails for a key that `validate` does not check.
#[test]
fn every_number_of_the_schema_has_bounds() {
    let absurd = |path: &[&str]| {
        // A machine may have more than 4 GiB.
        let is_memory = path.last().is_some_and(|key| key.ends_with("_bytes"));
        let many = if is_memory { i64::MAX } else { u32::MAX.into() };
        [Value::Integer(many), Value::Float(f64::NAN), Value::Float(-1.0)]
    };
    let mut numbers = BTreeSet::new();
    let mut bounded = |path: &[&str]| {
        for value in &absurd(path) {
            let file = tree(path, value.clone());
            if !complaint(&file).is_empty() {
                continue; // No number, or not of this kind.
            }
            let name = path.join(".").replace("..", "[0].");
            let problems = Settings::parse(&file.to_string()).unwrap_err();
            let reported = problems.iter().any(|problem| problem.to_string().starts_with(&name));
            assert!(reported, "{name} may be {value}: {problems:#?}");
            numbers.insert(name);
        }
    };
    walk(&[], &mut bounded, &mut |_| {});
    assert!(numbers.len() > 30, "the walk found too little: {numbers:?}");
}

#[test]
fn defaults_in_the_gateway_example_equal_those_of_the_schema() {
    let (shown, default) = (good("gateway", &uncommented()), Settings::default());
    assert_eq!(shown.slo(), default.slo());
    assert_eq!(shown.queue, default.queue);
    assert_eq!(shown.placement, default.placement);
    assert_eq!(shown.planner_params(), default.planner_params());
    assert_eq!(
        (shown.planner.enabled, shown.planner.interval),
        (default.planner.enabled, default.planner.interval)
    );
    assert_eq!(shown.retry, default.retry);
    assert_eq!(shown.log, default.log);
    assert_eq!(shown.probe, default.probe);
    assert_eq!(shown.prefix, default.prefix);
    assert_eq!(shown.signals, default.signals);
    let admin = crate::AdminSettings {
        state_file: None,
        hosts: Vec::new(),
        token: None,
        token_file: None,
        tls: None,
        ..shown.admin
    };
    assert_eq!(admin, default.admin);
    let upstream = crate::UpstreamSettings {
        ca_file: None,
        client_cert: None,
        client_key: None,
        ..shown.upstream
    };
    assert_eq!(upstream, default.upstream);
    let server = crate::ServerSettings {
        tls: None,
        cors: None,
        upgrade_socket: None,
        body_budget_bytes: None,
        trust_client_handoff: false,
        handoff_hosts: Vec::new(),
        ..shown.server
    };
    assert_eq!(server, default.server);
    let (shown, default) = (&shown.backends[1], crate::BackendSettings::default());
    assert_eq!(shown.streams_max, default.streams_max);
    assert_eq!(shown.kv_capacity_at_first(), default.kv_capacity_at_first());
    assert_eq!(
        (shown.prefill_prior, shown.decode_prior),
        (default.prefill_prior, default.decode_prior)
    );
    assert_eq!(shown.kv_role, default.kv_role);
}

#[test]
fn the_settings_of_the_manifests_are_valid() {
    for (name, toml, yaml) in MANIFESTS {
        let settings = good(name, toml);
        // The kubelet kills a pod at the end of its grace period.
        let grace = yaml.split("terminationGracePeriodSeconds: ").nth(1).unwrap();
        let grace: f64 = grace.lines().next().unwrap().parse().unwrap();
        let needed = settings.server.linger + settings.server.drain;
        assert!(needed.get() < grace, "{name}: {needed} do not fit into {grace} s");
        assert!(settings.admin.listen.ip().is_unspecified(), "{name}: no probe reaches it");
    }
}

#[test]
fn earlier_names_still_parse() {
    let backends = "[[backends]]\nname = \"a\"\nurl = \"http://127.0.0.1:1\"\n";
    let text = format!("[queue]\nhopeless_share = 0.07\nhopeless_patience = 0.25\n{backends}");
    let queue = crate::Settings::parse(&text).unwrap().queue;
    assert_eq!((queue.late_class_share, queue.trunk_reservation_share), (0.07, 0.25));
}
