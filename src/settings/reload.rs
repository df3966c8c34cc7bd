//! Another version of the settings for a running proxy: which settings change, and which take effect
//! at a restart only.

use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;

use crate::schema::{BackendSettings, Settings};

/// The settings that follow from another version of the file.
#[derive(Clone, Debug)]
pub struct Reloaded {
    /// The settings in force afterwards.
    pub settings: Settings,
    /// Names of the settings that change, sorted: `slo.ttft_seconds`, `backends[engine-1]`.
    pub changed: Vec<String>,
    /// Names of the settings that differ and keep their value until a restart, sorted.
    pub needs_restart: Vec<String>,
}

/// Declares the settings that a running proxy can change. All others need a restart.
macro_rules! reloadable {
    ($($name:literal: $section:ident $(. $field:ident)?,)*) => {
        /// Names of the settings that a running proxy can change.
        pub const RELOADABLE: &[&str] = &[$($name),*];

        /// `wanted` in the settings that can change, `in_force` in all others.
        fn merged(in_force: &Settings, wanted: Settings) -> Settings {
            let mut merged = in_force.clone();
            $(merged.$section$(.$field)? = wanted.$section$(.$field)?;)*
            merged.text_hash = wanted.text_hash;
            merged
        }
    };
}

reloadable! {
    "server.body_max_bytes": server.body_max_bytes,
    "server.body_budget_bytes": server.body_budget_bytes,
    "server.keepalive_seconds": server.keepalive,
    "server.keepalive_comment_seconds": server.keepalive_comment,
    "server.client_stall_seconds": server.client_stall,
    "server.connections_max": server.connections_max,
    "server.connections_per_address_max": server.connections_per_address_max,
    "server.half_close": server.half_close,
    "server.drain_seconds": server.drain,
    "server.linger_seconds": server.linger,
    "server.trust_client_handoff": server.trust_client_handoff,
    "server.handoff_hosts": server.handoff_hosts,
    "server.cors": server.cors,
    "admin.hosts": admin.hosts,
    "admin.token": admin.token,
    "admin.token_file": admin.token_file,
    "admin.flip_hold_seconds": admin.flip_hold,
    "slo": slo,
    "queue": queue,
    "placement": placement,
    "planner.enabled": planner.enabled,
    "planner.interval_seconds": planner.interval,
    "planner.dwell_seconds": planner.dwell,
    "planner.demand_window_seconds": planner.demand_window,
    "planner.switch_seconds": planner.switch,
    "retry": retry,
    "upstream.silence_seconds": upstream.silence,
    "auth": auth,
    "log.level": log.level,
    "outlier_ejection.pool_share_max": outlier_ejection.pool_share_max,
    "models": models,
    "backends": backends,
}

/// The settings after a reload of `wanted` while `in_force` apply.
pub fn reload(in_force: &Settings, wanted: Settings) -> Reloaded {
    let mut differing = BTreeSet::new();
    differences(&tree(in_force), &tree(&wanted), String::new(), &mut differing);
    differing.extend(secrets(in_force, &wanted));
    let given = |name: &String| in_force.on_command_line.contains(&name.as_str());
    let (changed, mut needs_restart): (Vec<String>, Vec<String>) = differing
        .into_iter()
        .filter(|name| !given(name))
        .partition(|name| RELOADABLE.iter().any(|known| is_within(name, known)));
    needs_restart.extend(discovered(in_force, &wanted));
    needs_restart.sort();
    Reloaded { settings: merged(in_force, wanted), changed, needs_restart }
}

/// The sections as JSON, without secrets.
fn tree(settings: &impl Serialize) -> Value {
    serde_json::to_value(settings).unwrap_or_default()
}

/// Whether `name` is the setting `known` or a part of it.
fn is_within(name: &str, known: &str) -> bool {
    name.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Collects the names of settings whose values differ.
fn differences(one: &Value, other: &Value, at: String, found: &mut BTreeSet<String>) {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            for key in keys {
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                let side = |side: &serde_json::Map<String, Value>| side.get(key).cloned();
                differences(&side(one).into(), &side(other).into(), at, found);
            }
        }
        (Value::Array(one), Value::Array(other)) if named(one) && named(other) => {
            let names: BTreeSet<&str> = one.iter().chain(other).filter_map(name_of).collect();
            for name in names {
                let find =
                    |all: &[Value]| all.iter().find(|entry| name_of(entry) == Some(name)).cloned();
                if find(one) != find(other) {
                    found.insert(format!("{at}[{name}]"));
                }
            }
        }
        _ if one != other => drop(found.insert(at)),
        _ => {}
    }
}

/// Whether all entries of a list have a name.
fn named(list: &[Value]) -> bool {
    list.iter().all(|entry| name_of(entry).is_some())
}

fn name_of(entry: &Value) -> Option<&str> {
    entry.get("name")?.as_str()
}

/// Names of the entries for discovered backends that differ: their watches begin at the start.
fn discovered(one: &Settings, other: &Settings) -> Vec<String> {
    let lacks = |all: &[BackendSettings], entry: &BackendSettings| !all.contains(entry);
    let mut names: BTreeSet<&str> = BTreeSet::new();
    names.extend(one.sources.iter().filter(|e| lacks(&other.sources, e)).map(|e| &*e.name));
    names.extend(other.sources.iter().filter(|e| lacks(&one.sources, e)).map(|e| &*e.name));
    names.into_iter().map(|name| format!("backends[{name}]")).collect()
}

/// Names of the settings whose secrets differ.
fn secrets(one: &Settings, other: &Settings) -> Vec<String> {
    let mut found = Vec::new();
    if one.admin.token != other.admin.token {
        found.push("admin.token".to_owned());
    }
    for key in &one.auth.keys {
        if other.auth.keys.iter().any(|known| known.name == key.name && known.key != key.key) {
            found.push(format!("auth.keys[{}]", key.name));
        }
    }
    for backend in &one.backends {
        if other.backends.iter().any(|known| known.name == backend.name && known != backend) {
            found.push(format!("backends[{}]", backend.name));
        }
    }
    found
}

/// FNV-1a hash of a text, 64 bits: the same in every build.
pub fn text_hash(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = r#"
        [admin]
        token = "0123456789abcdef"
        [[auth.keys]]
        name = "one"
        key = "0123456789abcdef"
        [[models]]
        name = "m"
        [[backends]]
        name = "a"
        url = "http://127.0.0.1:8000"
        api_key = "secret"
    "#;

    fn parsed(text: &str) -> Settings {
        Settings::parse(text).unwrap()
    }

    #[test]
    fn each_changed_setting_is_named_and_the_fixed_ones_keep_their_value() {
        let in_force = parsed(BASE);
        let text = BASE
            .replace("[admin]", "[server]\nthreads = 3\nbody_max_bytes = 9\n[admin]")
            .replace(
                "[[models]]",
                "[slo]\nttft_seconds = 0.5\n[log]\nformat = \"text\"\n[[models]]",
            )
            .replace("name = \"m\"", "name = \"m\"\naliases = [\"n\"]")
            .replace("8000", "8001");
        let reloaded = reload(&in_force, parsed(&text));
        let changed = ["backends[a]", "models[m]", "server.body_max_bytes", "slo.ttft_seconds"];
        assert_eq!(reloaded.changed, changed);
        assert_eq!(reloaded.needs_restart, ["log.format", "server.threads"]);
        let Settings { server, slo, models, .. } = &reloaded.settings;
        assert_eq!((server.threads, server.body_max_bytes), (0, 9));
        assert_eq!((slo.ttft.get(), models[0].aliases.len()), (0.5, 1));
        assert_ne!(reloaded.settings.text_hash, in_force.text_hash);
        let again = reload(&reloaded.settings, reloaded.settings.clone());
        assert!(again.changed.is_empty() && again.needs_restart.is_empty());
    }

    #[test]
    fn a_changed_secret_is_named_and_never_shown() {
        let in_force = parsed(BASE);
        let text = BASE.replace("0123456789abcdef", "fedcba9876543210").replace("secret", "other");
        let reloaded = reload(&in_force, parsed(&text));
        assert_eq!(reloaded.changed, ["admin.token", "auth.keys[one]", "backends[a]"]);
        let shown = tree(&in_force).to_string();
        assert!(!shown.contains("0123456789abcdef") && !shown.contains("secret\""), "{shown}");
    }

    #[test]
    fn every_reloadable_setting_exists_under_its_name() {
        let all = tree(&Settings::default());
        for name in RELOADABLE {
            let pointer = format!("/{}", name.replace('.', "/"));
            assert!(all.pointer(&pointer).is_some(), "{name}");
        }
    }

    #[test]
    fn a_setting_of_the_command_line_is_not_reported() {
        let mut in_force = parsed(BASE);
        in_force.on_command_line.push("server.listen");
        in_force.server.listen = vec!["127.0.0.1:9999".parse().unwrap()];
        let reloaded = reload(&in_force, parsed(BASE));
        assert!(reloaded.needs_restart.is_empty(), "{reloaded:?}");
        assert_eq!(reloaded.settings.server.listen, in_force.server.listen);
    }
}
