//! Built-in engine profiles: prior costs and capacities by model and hardware. A profile fills in keys
//! that its backend leaves out. Priors matter for the first requests only: costs are fitted to
//! observations.

use toml::{Table, Value};

use crate::parse::tables_of;

/// A profile as a configuration fragment.
struct ProfilePreset {
    name: &'static str,
    toml: &'static str,
}

/// The physics of docs/spec/engine-model.md#constants and its neighbours, as
/// `tidegate_sim::Profile` has them: a test
/// compares.
const PROFILES: [ProfilePreset; 6] = [
    ProfilePreset {
        name: "llama70b-h100x4",
        toml: "streams_max = 256
               kv_capacity_tokens = 430_000
               [prefill_prior]
               base_seconds = 2e-3
               per_token_seconds = 71.98e-6
               per_attention_seconds = 1.33e-9
               [decode_prior]
               base_seconds = 15.1e-3
               per_stream_seconds = 72e-6
               free_streams = 181
               per_kv_token_seconds = 30.6e-9",
    },
    ProfilePreset {
        name: "llama70b-a100x4",
        toml: "streams_max = 256
               kv_capacity_tokens = 430_000
               [prefill_prior]
               base_seconds = 2e-3
               per_token_seconds = 225.98e-6
               per_attention_seconds = 4.2e-9
               [decode_prior]
               base_seconds = 23.6e-3
               per_stream_seconds = 228e-6
               free_streams = 94
               per_kv_token_seconds = 50.2e-9",
    },
    ProfilePreset {
        name: "llama8b-h100",
        toml: "streams_max = 256
               kv_capacity_tokens = 300_000
               [prefill_prior]
               base_seconds = 1.5e-3
               per_token_seconds = 32.73e-6
               per_attention_seconds = 1.06e-9
               [decode_prior]
               base_seconds = 7.5e-3
               per_stream_seconds = 33e-6
               free_streams = 181
               per_kv_token_seconds = 48.9e-9",
    },
    ProfilePreset {
        name: "fast",
        toml: "streams_max = 256
               kv_capacity_tokens = 430_000
               [prefill_prior]
               base_seconds = 0.2e-3
               per_token_seconds = 7.2e-6
               per_attention_seconds = 0.133e-9
               [decode_prior]
               base_seconds = 1.5e-3
               per_stream_seconds = 7.2e-6
               free_streams = 180
               per_kv_token_seconds = 3.06e-9",
    },
    ProfilePreset {
        name: "qwen3-32b-h20",
        toml: "streams_max = 256
               kv_capacity_tokens = 60_000
               [prefill_prior]
               base_seconds = 2e-3
               per_token_seconds = 651e-6
               per_attention_seconds = 20.8e-9
               [decode_prior]
               base_seconds = 22.5e-3
               per_stream_seconds = 800e-6
               free_streams = 25
               per_kv_token_seconds = 81.9e-9",
    },
    ProfilePreset {
        name: "dynamo-mocker",
        toml: "streams_max = 256
               kv_capacity_tokens = 1_048_576
               [prefill_prior]
               base_seconds = 16.5e-3
               per_token_seconds = 15.18e-6
               per_attention_seconds = 0.842e-9
               [decode_prior]
               base_seconds = 6.63e-3
               per_stream_seconds = 1e-9
               free_streams = 0
               per_kv_token_seconds = 40.3e-9",
    },
];

/// Returns the names of all profiles.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    PROFILES.iter().map(|profile| profile.name)
}

/// Fills in each backend's absent keys from its profile. An unknown profile adds no keys.
pub(crate) fn complete(tree: &mut Table) {
    for backend in tables_of(tree, "backends") {
        let name = backend.get("profile").and_then(Value::as_str);
        let profile = PROFILES.iter().find(|profile| Some(profile.name) == name);
        if let Some(known) = profile.and_then(|profile| profile.toml.parse().ok()) {
            add(backend, known);
        }
    }
}

fn add(given: &mut Table, known: Table) {
    for (key, known) in known {
        match (given.get_mut(&key), known) {
            (None, known) => {
                given.insert(key, known);
            }
            (Some(Value::Table(given)), Value::Table(known)) => add(given, known),
            (Some(_), _) => {}
        }
    }
}
