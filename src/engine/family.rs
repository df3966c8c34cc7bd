//! Engine families: converts a request into one or two legs, and a prefill answer into the decode
//! leg. Closed set; each family's file holds only what differs. Legs are values; the proxy sends
//! them.

mod sglang;
mod trtllm;
mod trtllm_auth;
mod trtllm_generation_first;
mod vllm;
mod vllm_mooncake;
mod vllm_nixl;
mod vllm_offloading;

use crate::{Endpoint, Scan, Usage, whole_answer};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use tidegate_types::Seconds;

/// KV transfer protocol of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// vLLM with the NIXL connector, pull or push: prefill, then decode.
    VllmNixl,
    /// As [`Family::VllmNixl`], with a role that the engine enforces ([`crate::pd_role`]).
    VllmPdRole,
    /// vLLM with the MooncakeConnector: concurrent legs, matched by a transfer id.
    VllmMooncake,
    /// vLLM with the OffloadingConnector's P2P tier: concurrent legs, matched at a side channel.
    VllmOffloading,
    /// vLLM with a KV store shared by all engines: prefill, then decode, which finds the KV by
    /// hash.
    VllmSharedStore,
    /// SGLang in prefill or decode mode: concurrent legs, matched by a bootstrap room.
    SglangPd,
    /// TensorRT-LLM with a cache transceiver: context, then generation.
    TrtLlm,
    /// TensorRT-LLM, generation leg first: concurrent legs.
    TrtLlmGenerationFirst,
    /// No hand-off: any engine with OpenAI's API.
    Plain,
}

/// The first leg or legs of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Legs {
    /// One colocated leg with the client's body.
    Colocated,
    /// A prefill leg, whose answer ([`Family::read_prefill`]) yields the decode leg
    /// ([`Family::decode_leg`]).
    PrefillFirst {
        /// Body of the prefill leg.
        prefill: Bytes,
    },
    /// Two concurrent legs; the decode leg's answer goes to the client.
    Concurrent(ConcurrentLegs),
}

/// Two legs that run concurrently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConcurrentLegs {
    /// For the prefill backend.
    pub prefill: LegBody,
    /// For the decode backend.
    pub decode: LegBody,
    /// The prefill engine waits for the decode engine, so that the decode leg is sent first.
    pub decode_first: bool,
}

/// Body and additional header of a leg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegBody {
    /// Request body.
    pub body: Bytes,
    /// Name in lower case, and value.
    pub header: Option<(&'static str, Box<str>)>,
}

impl From<Bytes> for LegBody {
    fn from(body: Bytes) -> LegBody {
        LegBody { body, header: None }
    }
}

/// Data by which the two engines of a request find each other.
#[derive(Clone, Copy, Debug)]
pub struct RendezvousInfo<'a> {
    /// Host of the prefill backend; IPv6 in brackets.
    pub host: &'a str,
    /// Port of its bootstrap server or side channel; ignored by families without one.
    pub port: u16,
    /// Random id, new for every attempt.
    pub id: u64,
    /// The prefill rank to use, for families with a [`Family::peer_query`].
    pub peer: Option<&'a Peer>,
    /// Shared key of engines that require a signature.
    pub key: Option<&'a [u8]>,
}

/// Query that a prefill engine must answer before its first hand-off. The answer is valid until a
/// leg fails: a restarted engine has a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerQuery {
    /// Path, for GET.
    pub path: &'static str,
    /// Sent to the bootstrap port instead of the backend's own.
    pub at_bootstrap: bool,
}

/// One data-parallel rank of a prefill engine, from the answer to its [`PeerQuery`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Engine id, or the endpoint for transfers.
    pub name: Box<str>,
    /// Rank number, if the legs must name it.
    pub rank: Option<u32>,
}

/// Result of a prefill leg.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handoff {
    /// Hand-off parameters for the decode backend: raw JSON, forwarded byte for byte. `None`:
    /// nothing to transfer; the decode backend computes the prefill itself.
    pub params: Option<Bytes>,
    /// The prompt's token ids as a JSON array, if the decode backend accepts them.
    pub prompt_ids: Option<Bytes>,
    /// Usage reported by the prefill.
    pub usage: Option<Usage>,
    /// The model finished with its first token: the answer for the client. There is no decode leg.
    pub finished: Option<Bytes>,
}

/// A prefill answer (HTTP 200) without a usable hand-off. The request may be retried or run
/// colocated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Not a JSON object.
    #[error("the prefill answer cannot be read: {0}")]
    Unreadable(String),
    /// An error object in spite of the status.
    #[error("the prefill answer is an error: {0}")]
    EngineError(String),
    /// The hand-off parameters violate the family's protocol.
    #[error("the prefill answer's hand-off parameters are not usable")]
    NotParams,
}

/// Members of a prefill answer that are read.
#[derive(Deserialize)]
struct PrefillAnswer<'a> {
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    kv_transfer_params: Option<&'a RawValue>,
    usage: Option<crate::usage::UsageWire>,
}

impl Family {
    /// All families.
    pub const ALL: [Family; 9] = [
        Family::VllmNixl,
        Family::VllmPdRole,
        Family::VllmMooncake,
        Family::VllmOffloading,
        Family::VllmSharedStore,
        Family::SglangPd,
        Family::TrtLlm,
        Family::TrtLlmGenerationFirst,
        Family::Plain,
    ];

    /// Name in settings, admin API and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Family::VllmNixl => "vllm_nixl",
            Family::VllmPdRole => "vllm_pd_role",
            Family::VllmMooncake => "vllm_mooncake",
            Family::VllmOffloading => "vllm_offloading",
            Family::VllmSharedStore => "vllm_shared_store",
            Family::SglangPd => "sglang_pd",
            Family::TrtLlm => "trtllm",
            Family::TrtLlmGenerationFirst => "trtllm_generation_first",
            Family::Plain => "plain",
        }
    }

    /// Returns whether its backends can hand over to each other.
    pub const fn can_split(&self) -> bool {
        !matches!(self, Family::Plain)
    }

    /// Returns whether requests of this endpoint can be split.
    pub const fn splits(&self, endpoint: Endpoint) -> bool {
        match self {
            // Tested with vLLM 0.32: each of these endpoints transfers KV
            // (docs/spec/engine-protocols.md#vllm-prefill-leg).
            Family::VllmNixl => endpoint.can_split() && !matches!(endpoint, Endpoint::Generate),
            Family::SglangPd => endpoint.is_completion() || matches!(endpoint, Endpoint::Generate),
            Family::VllmPdRole
            | Family::VllmMooncake
            | Family::VllmOffloading
            | Family::VllmSharedStore
            | Family::TrtLlm
            | Family::TrtLlmGenerationFirst => endpoint.is_completion(),
            Family::Plain => false,
        }
    }

    /// Returns whether its backends serve colocated requests. SGLang in a disaggregation mode
    /// answers 400 to them; vLLM with an enforced role requires one direction.
    pub const fn serves_colocated(&self) -> bool {
        !matches!(self, Family::SglangPd | Family::VllmPdRole)
    }

    /// Returns whether its backends hand over as vLLM's NIXL connector does.
    pub const fn is_nixl(&self) -> bool {
        matches!(self, Family::VllmNixl | Family::VllmPdRole)
    }

    /// Returns the query that a prefill backend must answer before its first concurrent legs.
    pub const fn peer_query(&self) -> Option<PeerQuery> {
        match self {
            Family::VllmMooncake => {
                Some(PeerQuery { path: vllm_mooncake::QUERY_PATH, at_bootstrap: true })
            }
            Family::TrtLlmGenerationFirst => {
                Some(PeerQuery { path: trtllm_generation_first::INFO_PATH, at_bootstrap: false })
            }
            _ => None,
        }
    }

    /// Parses the answer to [`Family::peer_query`]; the result is not empty.
    ///
    /// # Errors
    /// [`ProtocolError`] if the answer names no rank.
    pub fn read_peers(&self, answer: &[u8]) -> Result<Vec<Peer>, ProtocolError> {
        match self {
            Family::VllmMooncake => vllm_mooncake::read_peers(answer),
            Family::TrtLlmGenerationFirst => trtllm_generation_first::read_peers(answer),
            _ => Err(ProtocolError::NotParams),
        }
    }

    /// Returns whether the decode engine reports all transferred tokens as cached. The client then
    /// receives the prefill engine's count instead.
    pub const fn reports_transfer_as_cached(&self) -> bool {
        matches!(
            self,
            Family::VllmNixl
                | Family::VllmPdRole
                | Family::VllmMooncake
                | Family::VllmOffloading
                | Family::VllmSharedStore
        )
    }

    /// Returns the legs of a request. It is [`Legs::Colocated`] if the family, the endpoint or the
    /// request ([`crate::ColocatedReason`]) rules out a split. Whether a split pays is the placement's
    /// decision.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use tidegate_engine::{Endpoint, Family, Legs, RendezvousInfo, scan};
    ///
    /// let body = Bytes::from(r#"{"model":"m","prompt":"Hello","max_tokens":64}"#);
    /// let scan = scan(Endpoint::Completions, &body)?;
    /// let info = RendezvousInfo { host: "prefill-0", port: 8998, id: 7, peer: None, key: None };
    /// let Legs::Concurrent(legs) = Family::SglangPd.legs(Endpoint::Completions, &body, &scan, &info)
    /// else {
    ///     unreachable!()
    /// };
    /// assert_eq!(legs.prefill.body, legs.decode.body);
    /// assert!(legs.prefill.body.ends_with(br#""bootstrap_room":3}"#));
    /// # Ok::<(), tidegate_engine::JsonBodyError>(())
    /// ```
    pub fn legs(
        &self,
        endpoint: Endpoint,
        body: &Bytes,
        scan: &Scan,
        rendezvous: &RendezvousInfo<'_>,
    ) -> Legs {
        // A family that serves no colocated requests always splits: both legs get the same body.
        let whole = scan.colocated.is_some() && self.serves_colocated();
        if !self.splits(endpoint) || whole {
            return Legs::Colocated;
        }
        let prefill = |params| vllm::prefill_body(endpoint, body, scan, params);
        match (self, rendezvous.peer) {
            (Family::VllmNixl | Family::VllmPdRole, _) => {
                Legs::PrefillFirst { prefill: prefill(Some(vllm_nixl::KEEP_BLOCKS)) }
            }
            (Family::VllmSharedStore, _) => Legs::PrefillFirst { prefill: prefill(None) },
            (Family::VllmMooncake, Some(peer)) => {
                Legs::Concurrent(vllm_mooncake::legs(endpoint, body, scan, rendezvous, peer))
            }
            (Family::VllmOffloading, _) => {
                Legs::Concurrent(vllm_offloading::legs(endpoint, body, scan, rendezvous))
            }
            (Family::SglangPd, _) => Legs::Concurrent(sglang::legs(body, scan, rendezvous)),
            (Family::TrtLlm, _) => {
                let first = trtllm::LegOrder::Context;
                Legs::PrefillFirst {
                    prefill: trtllm::context_body(body, scan, rendezvous.id, first),
                }
            }
            (Family::TrtLlmGenerationFirst, Some(peer)) => {
                Legs::Concurrent(trtllm_generation_first::legs(body, scan, rendezvous, peer))
            }
            // No peer to name, or no hand-off at all.
            (Family::VllmMooncake | Family::TrtLlmGenerationFirst, None) | (Family::Plain, _) => {
                Legs::Colocated
            }
        }
    }

    /// Parses the answer of a prefill leg (HTTP 200, whole body).
    ///
    /// # Errors
    /// [`ProtocolError`] if the answer is not JSON, is an error, or has unusable hand-off
    /// parameters.
    pub fn read_prefill(&self, answer: &[u8]) -> Result<Handoff, ProtocolError> {
        let read = serde_json::from_slice::<PrefillAnswer>(answer)
            .map_err(|error| ProtocolError::Unreadable(error.to_string()))?;
        if let Some(error) = given(read.error) {
            return Err(ProtocolError::EngineError(message_of(error).into_owned()));
        }
        let usage = read.usage.and_then(crate::usage::UsageWire::read);
        if *self == Family::TrtLlm {
            return trtllm::read_context(answer, usage);
        }
        // The other families' answers carry no hand-off parameters.
        let handed = given(read.kv_transfer_params).filter(|_| self.is_nixl());
        let params = match handed {
            Some(params) if !params.get().starts_with('{') => {
                return Err(ProtocolError::NotParams);
            }
            params => params.map(|params| Bytes::copy_from_slice(params.get().as_bytes())),
        };
        Ok(Handoff { params, usage, ..Handoff::default() })
    }

    /// Converts a whole answer ([`Handoff::finished`]) into the stream that the client requested.
    ///
    /// # Errors
    /// [`ProtocolError::Unreadable`] if the answer is not JSON.
    pub fn as_stream(&self, answer: &[u8], scan: &Scan) -> Result<Bytes, ProtocolError> {
        let unreadable = |error: serde_json::Error| ProtocolError::Unreadable(error.to_string());
        whole_answer::as_stream(answer, scan).map_err(unreadable)
    }

    /// Returns the decode leg: the client's body with the hand-off parameters verbatim, signed if
    /// there is a `key`. Without parameters it is the client's body.
    pub fn decode_leg(
        &self,
        body: &Bytes,
        scan: &Scan,
        handoff: &Handoff,
        key: Option<&[u8]>,
    ) -> LegBody {
        match (self, &handoff.params) {
            (Family::VllmNixl | Family::VllmPdRole, Some(params)) => {
                vllm::decode_body(body, scan, params).into()
            }
            (Family::TrtLlm, Some(params)) => LegBody {
                body: trtllm::generation_body(body, scan, handoff),
                header: trtllm_auth::header(params, key),
            },
            // The other families' decode legs do not depend on the prefill answer.
            _ => body.clone().into(),
        }
    }

    /// Time after the prefill answer within which the decode leg may use the hand-off; afterwards
    /// it must run without. Zero for families without sequential legs.
    pub const fn handoff_deadline(&self) -> Seconds {
        match self {
            Family::VllmNixl | Family::VllmPdRole | Family::VllmSharedStore => {
                vllm::HANDOFF_DEADLINE
            }
            Family::TrtLlm => trtllm::HANDOFF_DEADLINE,
            _ => Seconds::ZERO,
        }
    }
}

/// Formats a string as JSON.
fn quoted(text: &str) -> String {
    // A string always serialises.
    serde_json::to_string(text).unwrap_or_default()
}

fn given(value: Option<&RawValue>) -> Option<&RawValue> {
    value.filter(|raw| raw.get() != "null")
}

/// Returns an error object's message, or the whole object as text.
fn message_of(error: &RawValue) -> Cow<'_, str> {
    #[derive(Deserialize)]
    struct ErrorObject<'a> {
        #[serde(borrow)]
        message: Cow<'a, str>,
    }
    match serde_json::from_str::<ErrorObject>(error.get()) {
        Ok(error) => error.message,
        Err(_) => Cow::Borrowed(error.get()),
    }
}

#[cfg(test)]
mod concurrent_tests;
#[cfg(test)]
mod tests;
