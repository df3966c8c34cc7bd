//! Reported facts of an engine: version, models, disaggregation mode. Read from the paths that
//! [`EngineKind`] names. Facts that an engine does not report stay `None` or empty.

use serde::Deserialize;
use serde_json::Value;
use tidegate_engine::EngineKind;
use tidegate_types::Role;

/// Reported facts of one engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Version string.
    pub version: Option<String>,
    /// SGLang: current disaggregation mode (launch mode, or the mode after a role switch).
    pub mode: Option<DisaggregationMode>,
    /// Base models, sorted by name, without adapters (which come and go). Empty: not reported.
    pub models: Vec<ServedModel>,
    /// HTTP status of an engine that refuses to report without its API key.
    pub key_required: Option<u16>,
}

/// A base model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServedModel {
    /// Model name.
    pub id: String,
    /// Context length in tokens, if reported.
    pub max_model_len: Option<u64>,
}

/// SGLang's `disaggregation_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DisaggregationMode {
    /// One side of disaggregated requests.
    Half(Role),
    /// Colocated requests: "null".
    Colocated,
}

impl DisaggregationMode {
    /// SGLang's spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            DisaggregationMode::Half(role) => role.as_str(),
            DisaggregationMode::Colocated => "null",
        }
    }

    fn of(word: &str) -> Option<DisaggregationMode> {
        match word {
            "prefill" => Some(DisaggregationMode::Half(Role::Prefill)),
            "decode" => Some(DisaggregationMode::Half(Role::Decode)),
            "null" => Some(DisaggregationMode::Colocated),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Value>,
}

impl Facts {
    /// Reads the answers of [`EngineKind::about_path`] and of `/v1/models`; `None`: the engine has
    /// no such path.
    pub fn read(kind: EngineKind, about: Option<&[u8]>, models: Option<&[u8]>) -> Facts {
        let about: Value =
            about.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default();
        let member = if kind == EngineKind::Llamacpp { "build_info" } else { "version" };
        let version = about[member].as_str().filter(|version| !version.is_empty());
        Facts {
            version: version.map(str::to_owned),
            mode: if kind == EngineKind::Sglang { mode(&about) } else { None },
            models: models.map(served).unwrap_or_default(),
            key_required: None,
        }
    }
}

/// Returns the current mode. The launch arguments keep the initial mode, so they count only where
/// there are no internal states. Ranks with different modes are in the middle of a switch.
fn mode(about: &Value) -> Option<DisaggregationMode> {
    let word = |value: &Value| value["disaggregation_mode"].as_str().map(str::to_owned);
    let states = about["internal_states"].as_array().map(Vec::as_slice).unwrap_or_default();
    let reported: Vec<String> = states.iter().filter_map(word).collect();
    match reported.split_first() {
        Some((first, rest)) => {
            rest.iter().all(|other| other == first).then(|| DisaggregationMode::of(first))?
        }
        None => DisaggregationMode::of(&word(about)?),
    }
}

fn served(answer: &[u8]) -> Vec<ServedModel> {
    let list = serde_json::from_slice::<Models>(answer).map(|models| models.data);
    let base = |card: &Value| {
        let id = card["id"].as_str()?.to_owned();
        // vLLM and SGLang name an adapter's base model as its `parent`.
        card["parent"]
            .is_null()
            .then(|| ServedModel { id, max_model_len: card["max_model_len"].as_u64() })
    };
    let mut models: Vec<ServedModel> = list.unwrap_or_default().iter().filter_map(base).collect();
    models.sort();
    models.dedup();
    models
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        kind: EngineKind,
        about: &str,
        version: Option<&str>,
        mode: Option<DisaggregationMode>,
    ) {
        let facts = Facts::read(kind, Some(about.as_bytes()), None);
        assert_eq!((facts.version.as_deref(), facts.mode), (version, mode), "{about}");
    }

    #[test]
    fn each_engine_kind_reports_its_version() {
        check(EngineKind::Vllm, r#"{"version":"0.33.0"}"#, Some("0.33.0"), None);
        check(EngineKind::Trtllm, r#"{"version":"1.2.1"}"#, Some("1.2.1"), None);
        check(EngineKind::Ollama, r#"{"version":"0.12.3"}"#, Some("0.12.3"), None);
        check(EngineKind::Tgi, r#"{"model_id":"m","version":"3.3.6"}"#, Some("3.3.6"), None);
        check(EngineKind::Llamacpp, r#"{"build_info":"b6800-1a2b"}"#, Some("b6800-1a2b"), None);
        check(EngineKind::Vllm, "<html>", None, None);
        check(EngineKind::Plain, r#"{"version":7}"#, None, None);
    }

    #[test]
    fn sglangs_mode_is_that_of_its_internal_states() {
        let prefill = Some(DisaggregationMode::Half(Role::Prefill));
        let decode = Some(DisaggregationMode::Half(Role::Decode));
        let launched = r#""version":"0.5.23","disaggregation_mode":"prefill""#;
        for (states, expected) in [
            ("", prefill),
            (r#","internal_states":[{}]"#, prefill),
            (r#","internal_states":[{"disaggregation_mode":"decode"}]"#, decode),
            (
                r#","internal_states":[{"disaggregation_mode":"null"}]"#,
                Some(DisaggregationMode::Colocated),
            ),
            (
                r#","internal_states":[{"disaggregation_mode":"decode"},{"disaggregation_mode":"prefill"}]"#,
                None,
            ),
        ] {
            let about = format!("{{{launched}{states}}}");
            check(EngineKind::Sglang, &about, Some("0.5.23"), expected);
        }
        check(EngineKind::Sglang, "{}", None, None);
    }

    #[test]
    fn adapters_are_not_listed_as_models() {
        let list = br#"{"data":[{"id":"b","max_model_len":4096,"parent":null},{"id":"lora","parent":"b"},{"id":"a"}]}"#;
        let facts = Facts::read(EngineKind::Vllm, None, Some(list));
        let served = |id: &str, max_model_len| ServedModel { id: id.to_owned(), max_model_len };
        assert_eq!(facts.models, [served("a", None), served("b", Some(4096))]);
        assert_eq!(Facts::read(EngineKind::Vllm, None, Some(b"[]")), Facts::default());
    }
}
