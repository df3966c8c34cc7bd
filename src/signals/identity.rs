//! Identity of an unknown engine: kind, connector and launch flags, read from the answers to a few
//! GET requests that generate no tokens.

use serde_json::Value;
use tidegate_engine::EngineKind;

use crate::facts::Facts;

/// Paths whose answers identify an engine.
pub const PATHS: [&str; 7] =
    ["/v1/models", "/version", "/server_info", "/metrics", "/info", "/props", "/api/version"];

/// The bodies of an engine's successful answers, by path.
pub type Answers = std::collections::BTreeMap<&'static str, Vec<u8>>;

/// An engine's identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Server software.
    pub kind: EngineKind,
    /// Version, models and disaggregation mode.
    pub facts: Facts,
    /// The connector as in the settings; `None`: none was found.
    pub connector: Option<&'static str>,
    /// vLLM's `kv_role`, where it is reported (development mode).
    pub kv_role: Option<String>,
    /// SGLang's bootstrap port.
    pub bootstrap_port: Option<u16>,
    /// Whether SGLang was started with its role switch.
    pub role_switch: bool,
    /// Most concurrent streams, where it is reported.
    pub streams_max: Option<u32>,
}

/// Prefixes of metrics that only one of vLLM's connectors has.
const VLLM_METRICS: [(&str, &str); 2] = [("vllm:nixl_", "nixl"), ("vllm:mooncake_", "mooncake")];
/// vLLM's names of connectors, in development mode.
const VLLM_CONNECTORS: [(&str, &str); 7] = [
    ("NixlConnector", "nixl"),
    ("NixlPushConnector", "nixl_push"),
    ("MooncakeConnector", "mooncake"),
    ("OffloadingConnector", "offloading"),
    ("MooncakeStoreConnector", "shared_store"),
    ("LMCacheConnectorV1", "shared_store"),
    ("LMCacheMPConnector", "shared_store"),
];

/// Identifies an engine by its answers; without a match its kind is plain.
pub fn identify(answers: &Answers) -> Identity {
    let info = json(answers, "/server_info");
    let kind = kind(answers, &info);
    let about = kind.about_path().and_then(|path| answers.get(path)).map(Vec::as_slice);
    let models = answers.get("/v1/models").map(Vec::as_slice);
    let mut found = Identity { kind, ..Identity::default() };
    found.facts = Facts::read(kind, about, models);
    match kind {
        EngineKind::Vllm => {
            let metrics = text(answers, "/metrics");
            let by_metrics = VLLM_METRICS.iter().find(|(prefix, _)| metrics.contains(prefix));
            let named = member(&info, "kv_connector").and_then(Value::as_str);
            let by_name = VLLM_CONNECTORS.iter().find(|(name, _)| named == Some(*name));
            found.connector = by_name.or(by_metrics).map(|(_, connector)| *connector);
            found.kv_role = member(&info, "kv_role").and_then(Value::as_str).map(str::to_owned);
            found.streams_max = number(&info, "max_num_seqs");
        }
        EngineKind::Sglang => {
            let halved = found.facts.mode.is_some_and(|mode| mode.as_str() != "null");
            found.connector = halved.then_some("bootstrap");
            found.bootstrap_port = number(&info, "disaggregation_bootstrap_port")
                .and_then(|port| u16::try_from(port).ok());
            found.role_switch =
                member(&info, "enable_pd_role_switch").and_then(Value::as_bool).unwrap_or(false);
            found.streams_max = number(&info, "max_running_requests");
        }
        EngineKind::Trtllm => {
            let context = &info["disaggregated_params"];
            found.connector = context.is_object().then_some("transceiver");
        }
        _ => {}
    }
    found
}

fn kind(answers: &Answers, info: &Value) -> EngineKind {
    let models = json(answers, "/v1/models");
    let owner = models["data"][0]["owned_by"].as_str().unwrap_or("");
    let has = |path: &str, name: &str| !json(answers, path)[name].is_null();
    let metrics = text(answers, "/metrics");
    if !info["disaggregation_mode"].is_null() || !info["internal_states"].is_null() {
        EngineKind::Sglang
    } else if !info["disaggregated_params"].is_null() || owner.starts_with("tensorrt") {
        EngineKind::Trtllm
    } else if owner == "vllm" || metrics.contains("vllm:") {
        EngineKind::Vllm
    } else if owner == "sglang" {
        EngineKind::Sglang
    } else if has("/props", "build_info") || owner == "llamacpp" {
        EngineKind::Llamacpp
    } else if has("/info", "model_id") {
        EngineKind::Tgi
    } else if has("/api/version", "version") {
        EngineKind::Ollama
    } else {
        EngineKind::Plain
    }
}

fn json(answers: &Answers, path: &str) -> Value {
    answers.get(path).and_then(|body| serde_json::from_slice(body).ok()).unwrap_or_default()
}

fn text<'a>(answers: &'a Answers, path: &str) -> std::borrow::Cow<'a, str> {
    answers.get(path).map(|body| String::from_utf8_lossy(body)).unwrap_or_default()
}

/// The first member of this name, at any depth: engines nest their launch flags differently by
/// version.
fn member<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Object(members) => members
            .get(name)
            .filter(|found| !found.is_null())
            .or_else(|| members.values().find_map(|inner| member(inner, name))),
        Value::Array(items) => items.iter().find_map(|inner| member(inner, name)),
        _ => None,
    }
}

fn number(value: &Value, name: &str) -> Option<u32> {
    let number = member(value, name)?.as_u64().filter(|number| *number > 0)?;
    u32::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(answers: &[(&'static str, &str)]) -> Identity {
        identify(&answers.iter().map(|(path, body)| (*path, body.as_bytes().to_vec())).collect())
    }

    #[test]
    fn engines_are_identified_by_their_answers() {
        const MODELS: &str = r#"{"data":[{"id":"m","owned_by":"vllm","max_model_len":4096}]}"#;
        const VERSION: (&str, &str) = ("/version", r#"{"version":"0.32.0"}"#);
        for (answers, kind, connector) in [
            (&[][..], EngineKind::Plain, None),
            (&[("/v1/models", MODELS), VERSION], EngineKind::Vllm, None),
            (
                &[VERSION, ("/metrics", "vllm:nixl_num_failed_transfers_total{} 0.0")],
                EngineKind::Vllm,
                Some("nixl"),
            ),
            (
                &[
                    ("/v1/models", MODELS),
                    (
                        "/server_info",
                        r#"{"vllm_config":{"kv_transfer_config":{"kv_connector":"MooncakeConnector"}}}"#,
                    ),
                ],
                EngineKind::Vllm,
                Some("mooncake"),
            ),
            (
                &[("/server_info", r#"{"version":"1","disaggregation_mode":"prefill"}"#)],
                EngineKind::Sglang,
                Some("bootstrap"),
            ),
            (
                &[("/server_info", r#"{"version":"1","disaggregation_mode":"null"}"#)],
                EngineKind::Sglang,
                None,
            ),
            (
                &[VERSION, ("/server_info", r#"{"disaggregated_params":{"ctx_dp_rank":0}}"#)],
                EngineKind::Trtllm,
                Some("transceiver"),
            ),
            (&[("/props", r#"{"build_info":"b1"}"#)], EngineKind::Llamacpp, None),
            (&[("/info", r#"{"model_id":"m","version":"3"}"#)], EngineKind::Tgi, None),
            (&[("/api/version", r#"{"version":"0.9"}"#)], EngineKind::Ollama, None),
        ] {
            let identity = found(answers);
            assert_eq!((identity.kind, identity.connector), (kind, connector), "{answers:?}");
        }
    }

    #[test]
    fn launch_flags_are_read_at_any_depth() {
        let info = r#"{"version":"1","disaggregation_mode":"decode","args":{"enable_pd_role_switch":true},
            "disaggregation_bootstrap_port":8998,"max_running_requests":48}"#;
        let identity = found(&[("/server_info", info)]);
        assert_eq!(identity.bootstrap_port, Some(8998));
        assert_eq!((identity.role_switch, identity.streams_max), (true, Some(48)));
    }
}
