//! vLLM with the MooncakeConnector (docs/spec/engine-protocols.md#vllm-mooncake): both legs at
//! once, met by a transfer
//! id; the prefill engine's bootstrap server tells its engine ids first. It must never name another
//! rank's engine id than the one that the prefill leg is pinned to.

use bytes::Bytes;
use serde::Deserialize;
use std::collections::BTreeMap;

use super::{ConcurrentLegs, LegBody, Peer, ProtocolError, RendezvousInfo, vllm};
use crate::{Endpoint, Scan};

/// What its bootstrap server is asked.
pub(super) const QUERY_PATH: &str = "/query";

/// Pins a request to one of several data-parallel ranks.
const RANK: &str = "x-data-parallel-rank";

/// Both legs, with the prefill engine's rank that `peer` is.
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

/// Reads the bootstrap server's answer: an engine id a rank. With one rank nothing need be pinned.
///
/// # Errors
/// It has no rank with an engine id.
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
