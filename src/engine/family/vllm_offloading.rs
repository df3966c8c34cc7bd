//! vLLM with the OffloadingConnector's P2P tier (docs/spec/engine-protocols.md#vllm-offloading):
//! concurrent legs matched by a request id at the prefill engine's side channel. It must never send
//! a leg both parameters: each names the other engine.

use bytes::Bytes;

use super::{ConcurrentLegs, RendezvousInfo, vllm};
use crate::{Endpoint, Scan};

/// Returns both legs.
pub(super) fn legs(
    endpoint: Endpoint,
    body: &Bytes,
    scan: &Scan,
    rendezvous: &RendezvousInfo<'_>,
) -> ConcurrentLegs {
    let id = format!("tidegate-{:016x}", rendezvous.id);
    // A host, not part of a URL: an IPv6 address without brackets.
    let host = super::quoted(rendezvous.host.trim_matches(['[', ']']));
    let prefill = format!("{{\"remote_decoder\":{{\"kv_request_id\":\"{id}\"}}}}");
    let decode = format!(
        "{{\"remote_prefiller\":{{\"kv_request_id\":\"{id}\",\"remote_host\":{host},\
         \"remote_port\":{}}}}}",
        rendezvous.port
    );
    ConcurrentLegs {
        prefill: vllm::prefill_body(endpoint, body, scan, Some(prefill.as_bytes())).into(),
        decode: vllm::decode_body(body, scan, decode.as_bytes()).into(),
        decode_first: false,
    }
}
