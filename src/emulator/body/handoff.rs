//! What a body says of a hand-off, by engine (engine_protocols.md §2, §4.1, §5.1). What is
//! incomplete is refused, or ignored where the engine ignores it.

use serde::Deserialize;

use super::{Handoff, Members, Remote, given};
use crate::config::{DisaggregationMode, EngineKind};
use crate::refusal::Refusal;
use crate::{sglang, trtllm};

/// The hand-off of a request.
pub(super) fn of(kind: EngineKind, members: &Members<'_>) -> Result<Handoff, Refusal> {
    match kind {
        EngineKind::Vllm => nixl(members),
        EngineKind::Sglang(mode) => room(mode, members),
        EngineKind::Trtllm => disaggregated(members),
        EngineKind::Plain => Ok(Handoff::None),
    }
}

/// What a prefill for somebody else makes: with SGLang and TensorRT-LLM one token whatever the
/// request says, with vLLM what it says.
pub(super) fn one_token(
    kind: EngineKind,
    handoff: &Handoff,
    (output, finish): (u64, &'static str),
) -> (u64, &'static str) {
    match (kind, handoff) {
        (EngineKind::Trtllm, Handoff::Offer(_)) if output > 1 => (1, "not_finished"),
        (EngineKind::Sglang(_), Handoff::Offer(_)) => (1, "length"),
        _ => (output, finish),
    }
}

fn room(mode: DisaggregationMode, members: &Members<'_>) -> Result<Handoff, Refusal> {
    if mode == DisaggregationMode::Null {
        return Ok(Handoff::None);
    }
    let number = |name| given(members, name).and_then(|raw| raw.get().parse::<i64>().ok());
    let Some(room) = number("bootstrap_room").filter(|room| *room >= 0) else {
        let message =
            "Invalid request: Disaggregated request received without bootstrap room id".to_owned();
        return Err(Refusal::bad(message, None));
    };
    let name = sglang::name(room);
    if mode == DisaggregationMode::Prefill {
        return Ok(Handoff::Offer(name));
    }
    let host = given(members, "bootstrap_host");
    let host = host.and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
    let port = number("bootstrap_port").and_then(|port| u16::try_from(port).ok());
    let (Some(host), Some(port)) = (host, port) else {
        return Err(Refusal::bad("bootstrap_host and bootstrap_port are needed".to_owned(), None));
    };
    let host = host.trim_matches(['[', ']']).to_owned();
    // Whoever is there: rooms are met by address alone.
    let engine_id = String::new();
    Ok(Handoff::Consume(Box::new(Remote { engine_id, request_id: name, host, port })))
}

fn disaggregated(members: &Members<'_>) -> Result<Handoff, Refusal> {
    #[derive(Deserialize)]
    struct Params {
        request_type: String,
        disagg_request_id: Option<u64>,
        ctx_request_id: Option<u64>,
        encoded_opaque_state: Option<String>,
    }
    let Some(raw) = given(members, "disaggregated_params") else { return Ok(Handoff::None) };
    let bad = |problem: &str| {
        Refusal::bad(format!("disaggregated_params: {problem}"), Some("disaggregated_params"))
    };
    let params: Params =
        serde_json::from_str(raw.get()).map_err(|error| bad(&error.to_string()))?;
    let id = params.disagg_request_id.filter(|id| *id >= trtllm::ID_MIN);
    let id = id.ok_or_else(|| bad("disagg_request_id must be at least 2^40"))?;
    match params.request_type.as_str() {
        "context_only" => Ok(Handoff::Offer(trtllm::name(id))),
        "generation_only" => {
            let state = params.encoded_opaque_state.as_deref().and_then(trtllm::decode);
            let remote = state.filter(|remote| remote.request_id == trtllm::name(id));
            let remote = remote.filter(|_| params.ctx_request_id.is_some());
            let remote = remote.ok_or_else(|| bad("the context's state is not usable"))?;
            Ok(Handoff::Consume(Box::new(remote)))
        }
        _ => Err(bad("request_type is neither context_only nor generation_only")),
    }
}

fn nixl(members: &Members<'_>) -> Result<Handoff, Refusal> {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Params {
        do_remote_decode: Option<bool>,
        do_remote_prefill: Option<bool>,
        remote_engine_id: Option<String>,
        remote_request_id: Option<String>,
        remote_host: Option<String>,
        remote_port: Option<u16>,
    }
    let Some(raw) = given(members, "kv_transfer_params") else { return Ok(Handoff::None) };
    let params: Params = serde_json::from_str(raw.get()).map_err(|_| {
        let message = "Input should be a valid dictionary";
        Refusal::wrong_type("kv_transfer_params", "dict_type", message, "...")
    })?;
    if params.do_remote_prefill == Some(true) {
        let remote = (
            params.remote_engine_id,
            params.remote_request_id,
            params.remote_host,
            params.remote_port,
        );
        // Incomplete ones are logged by vLLM and the prompt is computed here.
        let (Some(engine_id), Some(request_id), Some(host), Some(port)) = remote else {
            return Ok(Handoff::None);
        };
        return Ok(Handoff::Consume(Box::new(Remote { engine_id, request_id, host, port })));
    }
    let produce = params.do_remote_decode == Some(true);
    Ok(if produce { Handoff::Produce } else { Handoff::None })
}
