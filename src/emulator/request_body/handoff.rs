//! Hand-off parameters of a request body, by engine (docs/spec/engine-protocols.md#vllm-nixl).
//! Incomplete parameters are refused, or ignored where the engine ignores them: then nothing is
//! handed over, and the counters show it.

use serde::Deserialize;

use super::{BodyMembers, Remote, RequestedHandoff, boolean, given};
use crate::config::{EmulatedEngine, EmulatorConfig, SglangMode, VllmConnector};
use crate::error_response::ErrorResponse;
use crate::{mooncake, sglang, trtllm};

/// The hand-off of a request.
pub(super) fn of(
    config: &EmulatorConfig,
    kind: EmulatedEngine,
    members: &BodyMembers<'_>,
) -> Result<RequestedHandoff, ErrorResponse> {
    match kind {
        EmulatedEngine::Vllm => vllm(config.connector, members),
        EmulatedEngine::Sglang(mode) => room(mode, members),
        EmulatedEngine::Trtllm => disaggregated(members),
        EmulatedEngine::Plain => Ok(RequestedHandoff::None),
    }
}

/// Output length of a prefill leg: always one token with SGLang and TensorRT-LLM, the requested
/// length with vLLM.
pub(super) fn one_token(
    kind: EmulatedEngine,
    handoff: &RequestedHandoff,
    (output, finish): (u64, &'static str),
) -> (u64, &'static str) {
    match (kind, handoff) {
        (EmulatedEngine::Trtllm, RequestedHandoff::Offer(_) | RequestedHandoff::Meet(_))
            if output > 1 =>
        {
            (1, "not_finished")
        }
        (EmulatedEngine::Sglang(_), RequestedHandoff::Meet(_)) => (1, "length"),
        _ => (output, finish),
    }
}

fn room(mode: SglangMode, members: &BodyMembers<'_>) -> Result<RequestedHandoff, ErrorResponse> {
    if mode == SglangMode::Null {
        return Ok(RequestedHandoff::None);
    }
    let number = |name| given(members, name).and_then(|raw| raw.get().parse::<i64>().ok());
    let Some(room) = number("bootstrap_room").filter(|room| *room >= 0) else {
        let message =
            "Invalid request: Disaggregated request received without bootstrap room id".to_owned();
        return Err(ErrorResponse::bad(message, None));
    };
    let name = sglang::name(room);
    if mode == SglangMode::Prefill {
        return Ok(RequestedHandoff::Meet(name));
    }
    let host = given(members, "bootstrap_host");
    let host = host.and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
    let port = number("bootstrap_port").and_then(|port| u16::try_from(port).ok());
    let (Some(host), Some(port)) = (host, port) else {
        return Err(ErrorResponse::bad(
            "bootstrap_host and bootstrap_port are needed".to_owned(),
            None,
        ));
    };
    let host = host.trim_matches(['[', ']']).to_owned();
    // Any engine id: rooms are identified by address alone.
    let engine_id = String::new();
    Ok(RequestedHandoff::Consume(Box::new(Remote {
        engine_id,
        request_id: name,
        host,
        port,
        meets: true,
    })))
}

fn disaggregated(members: &BodyMembers<'_>) -> Result<RequestedHandoff, ErrorResponse> {
    #[derive(Deserialize)]
    struct DisaggregatedParams {
        request_type: String,
        disagg_request_id: Option<u64>,
        ctx_request_id: Option<u64>,
        encoded_opaque_state: Option<String>,
        ctx_info_endpoint: Option<String>,
        #[serde(default)]
        schedule_style: u8,
    }
    let Some(raw) = given(members, "disaggregated_params") else {
        return Ok(RequestedHandoff::None);
    };
    let bad = |problem: &str| {
        ErrorResponse::bad(format!("disaggregated_params: {problem}"), Some("disaggregated_params"))
    };
    let params: DisaggregatedParams =
        serde_json::from_str(raw.get()).map_err(|error| bad(&error.to_string()))?;
    let id = params.disagg_request_id.filter(|id| *id >= trtllm::ID_MIN);
    let id = id.ok_or_else(|| bad("disagg_request_id must be at least 2^40"))?;
    let generation_first = params.schedule_style == 1;
    match params.request_type.as_str() {
        "context_only" if generation_first => Ok(RequestedHandoff::Meet(trtllm::name(id))),
        "context_only" => Ok(RequestedHandoff::Offer(trtllm::name(id))),
        "generation_only" if generation_first => {
            let known = params.ctx_request_id == Some(id);
            let endpoint = params.ctx_info_endpoint.as_deref().filter(|_| known);
            let remote = endpoint.and_then(|endpoint| trtllm::at(endpoint, trtllm::name(id)));
            let remote = remote.ok_or_else(|| bad("the context's endpoint is not usable"))?;
            Ok(RequestedHandoff::Consume(Box::new(remote)))
        }
        "generation_only" => {
            let state = params.encoded_opaque_state.as_deref().and_then(trtllm::decode);
            let remote = state.filter(|remote| remote.request_id == trtllm::name(id));
            let remote = remote.filter(|_| params.ctx_request_id.is_some());
            let remote = remote.ok_or_else(|| bad("the context's state is not usable"))?;
            Ok(RequestedHandoff::Consume(Box::new(remote)))
        }
        _ => Err(bad("request_type is neither context_only nor generation_only")),
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct KvTransferParams {
    do_remote_decode: Option<bool>,
    do_remote_prefill: Option<bool>,
    remote_engine_id: Option<String>,
    remote_request_id: Option<String>,
    remote_host: Option<String>,
    remote_port: Option<u16>,
    transfer_mode: Option<String>,
    transfer_id: Option<String>,
    remote_bootstrap_addr: Option<String>,
    remote_decoder: Option<OffloadingPeer>,
    remote_prefiller: Option<OffloadingPeer>,
}

/// Returns the peer of an offloaded hand-off.
#[derive(Default, Deserialize)]
#[serde(default)]
struct OffloadingPeer {
    kv_request_id: Option<String>,
    remote_host: Option<String>,
    remote_port: Option<u16>,
}

fn vllm(
    connector: VllmConnector,
    members: &BodyMembers<'_>,
) -> Result<RequestedHandoff, ErrorResponse> {
    let Some(raw) = given(members, "kv_transfer_params") else { return Ok(RequestedHandoff::None) };
    let params: KvTransferParams = serde_json::from_str(raw.get()).map_err(|_| {
        let message = "Input should be a valid dictionary";
        ErrorResponse::wrong_type("kv_transfer_params", "dict_type", message, "...")
    })?;
    // vLLM logs incomplete parameters and computes the prompt itself.
    let handoff = match connector {
        VllmConnector::Nixl | VllmConnector::NixlPush => nixl(connector, params),
        VllmConnector::Mooncake => transfer(params).filter(|handoff| {
            matches!(handoff, RequestedHandoff::Consume(_))
                || ends_by_length(members).unwrap_or(false)
        }),
        VllmConnector::Offloading => offloaded(params),
        VllmConnector::SharedStore => None,
    };
    Ok(handoff.unwrap_or(RequestedHandoff::None))
}

fn nixl(connector: VllmConnector, params: KvTransferParams) -> Option<RequestedHandoff> {
    if params.do_remote_prefill == Some(true) {
        // The two engines identify each other's blocks by different means.
        if params.transfer_mode.is_some_and(|mode| mode != connector.as_str()) {
            return None;
        }
        return Some(RequestedHandoff::Consume(Box::new(Remote {
            engine_id: params.remote_engine_id?,
            request_id: params.remote_request_id?,
            host: params.remote_host?,
            port: params.remote_port?,
            meets: false,
        })));
    }
    (params.do_remote_decode == Some(true)).then_some(RequestedHandoff::Produce)
}

fn transfer(params: KvTransferParams) -> Option<RequestedHandoff> {
    let id = params.transfer_id.filter(|id| !id.is_empty())?;
    if params.do_remote_prefill == Some(true) {
        let (engine, bootstrap) = (params.remote_engine_id?, params.remote_bootstrap_addr?);
        return Some(RequestedHandoff::Consume(Box::new(mooncake::remote(
            engine, &id, &bootstrap,
        )?)));
    }
    (params.do_remote_decode == Some(true)).then_some(RequestedHandoff::Offer(id))
}

/// Mooncake hands over only answers that end by length: no end-of-text token or stop string may be
/// possible.
fn ends_by_length(members: &BodyMembers<'_>) -> Result<bool, ErrorResponse> {
    let goes_on = boolean(members, "ignore_eos")?.unwrap_or(false);
    let none = |member| given(members, member).is_none_or(|raw| raw.get() == "[]");
    Ok(goes_on && none("stop") && none("stop_token_ids"))
}

fn offloaded(params: KvTransferParams) -> Option<RequestedHandoff> {
    match (params.remote_decoder, params.remote_prefiller) {
        (Some(decoder), None) => decoder.kv_request_id.map(RequestedHandoff::Offer),
        (None, Some(prefiller)) => Some(RequestedHandoff::Consume(Box::new(Remote {
            // Any engine id: requests are identified by address alone.
            engine_id: String::new(),
            request_id: prefiller.kv_request_id?,
            host: prefiller.remote_host?,
            port: prefiller.remote_port?,
            meets: true,
        }))),
        _ => None,
    }
}
