//! TensorRT-LLM's trtllm-serve, generation first
//! (docs/spec/engine-protocols.md#trtllm-generation-first): concurrent legs. The context engine
//! starts to compute when the generation engine has sent it the destination of the KV. `max_tokens`
//! stays unchanged, as in context first.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::{ConcurrentLegs, LegBody, Peer, ProtocolError, RendezvousInfo, trtllm, trtllm_auth};
use crate::{Edits, Scan};

/// Path at which a context engine reports its endpoint.
pub(super) const INFO_PATH: &str = "/server_info";

/// Returns both legs; the generation leg is sent first.
pub(super) fn legs(
    body: &Bytes,
    scan: &Scan,
    rendezvous: &RendezvousInfo<'_>,
    context: &Peer,
) -> ConcurrentLegs {
    let id = trtllm::request_id(rendezvous.id);
    let rank = context.rank.map_or_else(|| "null".to_owned(), |rank| rank.to_string());
    let params = format!(
        "{{\"request_type\":\"generation_only\",\"ctx_request_id\":{id},\"disagg_request_id\":{id},\
         \"schedule_style\":{},\"ctx_dp_rank\":{rank},\"ctx_info_endpoint\":{}}}",
        trtllm::LegOrder::Generation as u8,
        super::quoted(&context.name),
    );
    ConcurrentLegs {
        prefill: trtllm::context_body(body, scan, rendezvous.id, trtllm::LegOrder::Generation)
            .into(),
        decode: LegBody {
            body: Edits::new().set(trtllm::PARAMS, params.as_bytes()).apply(body, scan),
            header: trtllm_auth::header(params.as_bytes(), rendezvous.key),
        },
        decode_first: true,
    }
}

/// Parses a context engine's `/server_info`: its rank and transfer endpoint, the first of several.
///
/// # Errors
/// [`ProtocolError`] if no endpoint is reported (not started for generation first).
pub(super) fn read_peers(answer: &[u8]) -> Result<Vec<Peer>, ProtocolError> {
    #[derive(Deserialize)]
    struct ContextInfo {
        disaggregated_params: Option<ContextParams>,
    }
    #[derive(Deserialize)]
    struct ContextParams {
        ctx_dp_rank: Option<u32>,
        ctx_info_endpoint: Value,
    }
    let info: ContextInfo = serde_json::from_slice(answer)
        .map_err(|error| ProtocolError::Unreadable(error.to_string()))?;
    let params = info.disaggregated_params.ok_or(ProtocolError::NotParams)?;
    let endpoint = match &params.ctx_info_endpoint {
        Value::Array(several) => several.first(),
        one => Some(one),
    };
    let name = endpoint.and_then(Value::as_str).ok_or(ProtocolError::NotParams)?;
    Ok(vec![Peer { name: name.into(), rank: params.ctx_dp_rank }])
}
