//! vLLM with the MooncakeConnector (docs/spec/engine-protocols.md#vllm-mooncake): concurrent legs
//! matched by a transfer id. The prefill engine's bootstrap server reports its engine ids
//! beforehand. It must never name another rank's engine id than that of the rank that the prefill
//! leg is pinned to.

use bytes::Bytes;
use serde::Deserialize;
use std::collections::BTreeMap;

use super::{ConcurrentLegs, LegBody, Peer, ProtocolError, RendezvousInfo, vllm};
use crate::{Endpoint, Scan};

/// Path of the bootstrap server's query.
pub(super) const QUERY_PATH: &str = "/query";

/// Header that pins a request to one data-parallel rank.
const RANK: &str = "x-data-parallel-rank";

/// Returns both legs, for the prefill rank `peer`.
pub(super) fn legs(
    endpoint: Endpoint,
    body: &Bytes,
    scan: &Scan,
    rendezvous: &RendezvousInfo<'_>,
    peer: &Peer,
) -> ConcurrentLegs {
    let transfer = format!("xfer-{:016x}", rendezvous.id);
    let prefill = format!(
        "{{\"do_remote_prefill\":false,\"do_remote_decode\":true,\"transfer_id\":\"{transfer}\"}}"
    );
    let decode = format!(
        "{{\"do_remote_prefill\":true,\"do_remote_decode\":false,\"transfer_id\":\"{transfer}\",\
         \"remote_bootstrap_addr\":\"http://{}:{}\",\"remote_engine_id\":{}}}",
        rendezvous.host,
        rendezvous.port,
        super::quoted(&peer.name),
    );
    ConcurrentLegs {
        prefill: LegBody {
            body: vllm::prefill_body(endpoint, body, scan, Some(prefill.as_bytes())),
            header: peer.rank.map(|rank| (RANK, rank.to_string().into())),
        },
        decode: vllm::decode_body(body, scan, decode.as_bytes()).into(),
        decode_first: false,
    }
}

/// Parses the bootstrap server's answer: one engine id per rank. With one rank the leg needs no
/// pin.
///
/// # Errors
/// [`ProtocolError`] if the answer has no rank with an engine id.
pub(super) fn read_peers(answer: &[u8]) -> Result<Vec<Peer>, ProtocolError> {
    #[derive(Deserialize)]
    struct RankInfo {
        engine_id: Box<str>,
    }
    let ranks: BTreeMap<u32, RankInfo> = serde_json::from_slice(answer)
        .map_err(|error| ProtocolError::Unreadable(error.to_string()))?;
    let several = ranks.len() > 1;
    let peer =
        |(rank, of): (u32, RankInfo)| Peer { name: of.engine_id, rank: several.then_some(rank) };
    let peers: Vec<Peer> = ranks.into_iter().map(peer).collect();
    if peers.is_empty() { Err(ProtocolError::NotParams) } else { Ok(peers) }
}
