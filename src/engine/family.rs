//! Engine families: how one request becomes one or two legs, and how a prefill's answer becomes the
//! decode's body. A closed set; a family's file holds only what differs. It must never send
//! anything: legs are values, the proxy runs them.

mod sglang;
mod trtllm;
mod trtllm_auth;
mod trtllm_generation_first;
mod vllm;
mod vllm_mooncake;
mod vllm_nixl;
mod vllm_offloading;

use crate::{Endpoint, Scan, Usage};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use tidegate_types::Seconds;

/// How a backend hands KV cache over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// vLLM with the NIXL connector, pull or push: prefill, then decode.
    VllmNixl,
    /// vLLM with the MooncakeConnector: both legs at once, met by a transfer id.
    VllmMooncake,
    /// vLLM with the OffloadingConnector's P2P tier: both legs at once, met at a side channel.
    VllmOffloading,
    /// vLLM with a store that all engines share: prefill, then decode, which finds the KV by hash.
    VllmSharedStore,
    /// SGLang in prefill or decode mode: both legs at once, in one bootstrap room.
    SglangPd,
    /// TensorRT-LLM with a cache transceiver: context, then generation.
    TrtLlm,
    /// The same with the generation leg sent first: both legs at once.
    TrtLlmGenerationFirst,
    /// Not at all: any engine with OpenAI's API.
    Plain,
}

/// What a request's first leg is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Legs {
    /// One leg, with the client's body as it is.
    Whole,
    /// This body to a prefill backend; its answer ([`Family::read_prefill`]) makes the decode leg
    /// ([`Family::decode_leg`]).
    PrefillFirst {
        /// The prefill leg's body.
        prefill: Bytes,
    },
    /// Two legs at once; the decode's answer is the client's.
    Concurrent(ConcurrentLegs),
}

/// Two legs that run at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConcurrentLegs {
    /// To the prefill backend.
    pub prefill: LegBody,
    /// To the decode backend.
    pub decode: LegBody,
    /// The prefill engine waits for the decode engine: the decode leg leaves first.
    pub decode_first: bool,
}

/// A leg's body, and the header that goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegBody {
    /// The body.
    pub body: Bytes,
    /// Name in lower case, and value.
    pub header: Option<(&'static str, Box<str>)>,
}

impl From<Bytes> for LegBody {
    fn from(body: Bytes) -> LegBody {
        LegBody { body, header: None }
    }
}

/// What the two legs of a request share beside its body.
#[derive(Clone, Copy, Debug)]
pub struct RendezvousInfo<'a> {
    /// The prefill backend's host; IPv6 in brackets.
    pub host: &'a str,
    /// Where its bootstrap server or side channel listens; unread where the family has none.
    pub port: u16,
    /// Random, another one for every attempt.
    pub id: u64,
    /// What the prefill backend told of itself, where [`Family::peer_query`] something: one of its ranks.
    pub peer: Option<&'a Peer>,
    /// The key that both engines know, where they ask for a signature.
    pub key: Option<&'a [u8]>,
}

/// What an engine must be asked before it can be a prefill backend. The answer is good until a leg
/// fails: an engine that was started again has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerQuery {
    /// The path, for GET.
    pub path: &'static str,
    /// At its bootstrap port rather than at its own.
    pub at_bootstrap: bool,
}

/// One data-parallel rank of a prefill engine, as it told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its engine id, or the endpoint that reaches it.
    pub name: Box<str>,
    /// Which rank it is, where that must be said.
    pub rank: Option<u32>,
}

/// What a prefill left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handoff {
    /// Where the KV cache waits, for the decode backend: raw JSON, opaque, byte for byte. `None`:
    /// nothing to transfer, decode prefills by itself.
    pub params: Option<Bytes>,
    /// The prompt's token ids as a JSON array, where the decode backend takes them.
    pub prompt_ids: Option<Bytes>,
    /// What the prefill counted.
    pub usage: Option<Usage>,
    /// The model ended with its first token: this whole answer is the client's, and there is no
    /// decode leg.
    pub finished: Option<Bytes>,
}

/// A prefill answer (HTTP 200) that is none. The request may be retried or run whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Not a JSON object.
    #[error("the prefill answer cannot be read: {0}")]
    Unreadable(String),
    /// The engine's own error, in spite of the status.
    #[error("the prefill answer is an error: {0}")]
    EngineError(String),
    /// The hand-off's parameters are not what the family's protocol says.
    #[error("the prefill answer's hand-off parameters are not usable")]
    NotParams,
}

/// The members of a prefill answer that matter.
#[derive(Deserialize)]
struct PrefillAnswer<'a> {
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    kv_transfer_params: Option<&'a RawValue>,
    usage: Option<crate::usage::Wire>,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 8] = [
        Family::VllmNixl,
        Family::VllmMooncake,
        Family::VllmOffloading,
        Family::VllmSharedStore,
        Family::SglangPd,
        Family::TrtLlm,
        Family::TrtLlmGenerationFirst,
        Family::Plain,
    ];

    /// The word for it in settings, the admin API and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Family::VllmNixl => "vllm_nixl",
            Family::VllmMooncake => "vllm_mooncake",
            Family::VllmOffloading => "vllm_offloading",
            Family::VllmSharedStore => "vllm_shared_store",
            Family::SglangPd => "sglang_pd",
            Family::TrtLlm => "trtllm",
            Family::TrtLlmGenerationFirst => "trtllm_generation_first",
            Family::Plain => "plain",
        }
    }

    /// Can a prefill on one of its backends feed a decode on another?
    pub const fn can_split(&self) -> bool {
        !matches!(self, Family::Plain)
    }

    /// The same, for one endpoint: only where the body's recipe is known.
    pub const fn splits(&self, endpoint: Endpoint) -> bool {
        match self {
            // Tried on 0.32: each of them moves KV
            // (docs/spec/engine-protocols.md#vllm-prefill-leg).
            Family::VllmNixl => endpoint.can_split() && !matches!(endpoint, Endpoint::Generate),
            Family::SglangPd => endpoint.is_completion() || matches!(endpoint, Endpoint::Generate),
            Family::VllmMooncake
            | Family::VllmOffloading
            | Family::VllmSharedStore
            | Family::TrtLlm
            | Family::TrtLlmGenerationFirst => endpoint.is_completion(),
            Family::Plain => false,
        }
    }

    /// Does one of its backends take whole requests? SGLang in a disaggregation mode answers 400.
    pub const fn runs_whole(&self) -> bool {
        !matches!(self, Family::SglangPd)
    }

    /// What a prefill backend must be asked before its first pair.
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

    /// Reads the answer to what it [asks](Family::peer_query): at least one rank.
    ///
    /// # Errors
    /// It is not such an answer.
    pub fn read_peers(&self, answer: &[u8]) -> Result<Vec<Peer>, ProtocolError> {
        match self {
            Family::VllmMooncake => vllm_mooncake::read_peers(answer),
            Family::TrtLlmGenerationFirst => trtllm_generation_first::read_peers(answer),
            _ => Err(ProtocolError::NotParams),
        }
    }

    /// Would the decode engine call all that it was handed cached? Then what the prefill engine had
    /// cached is what the client is to be told.
    pub const fn counts_handed_as_cached(&self) -> bool {
        matches!(
            self,
            Family::VllmNixl
                | Family::VllmMooncake
                | Family::VllmOffloading
                | Family::VllmSharedStore
        )
    }

    /// The legs of a request that may be split; whole if the family, the endpoint or the request
    /// ([`crate::WholeReason`]) forbids it. Whether splitting pays is not decided here.
    pub fn legs(
        &self,
        endpoint: Endpoint,
        body: &Bytes,
        scan: &Scan,
        rendezvous: &RendezvousInfo<'_>,
    ) -> Legs {
        // A family without whole requests pairs all that it can: both legs see the same body.
        let whole = scan.whole.is_some() && self.runs_whole();
        if !self.splits(endpoint) || whole {
            return Legs::Whole;
        }
        let prefill = |params| vllm::prefill_body(endpoint, body, scan, params);
        match (self, rendezvous.peer) {
            (Family::VllmNixl, _) => {
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
                let first = trtllm::First::Context;
                Legs::PrefillFirst {
                    prefill: trtllm::context_body(body, scan, rendezvous.id, first),
                }
            }
            (Family::TrtLlmGenerationFirst, Some(peer)) => {
                Legs::Concurrent(trtllm_generation_first::legs(body, scan, rendezvous, peer))
            }
            // Nobody to meet.
            (Family::VllmMooncake | Family::TrtLlmGenerationFirst, None) | (Family::Plain, _) => {
                Legs::Whole
            }
        }
    }

    /// Reads a prefill leg's answer (HTTP 200, the whole body).
    ///
    /// # Errors
    /// If it is no prefill answer.
    pub fn read_prefill(&self, answer: &[u8]) -> Result<Handoff, ProtocolError> {
        let read = serde_json::from_slice::<PrefillAnswer>(answer)
            .map_err(|error| ProtocolError::Unreadable(error.to_string()))?;
        if let Some(error) = given(read.error) {
            return Err(ProtocolError::EngineError(message_of(error).into_owned()));
        }
        let usage = read.usage.and_then(crate::usage::Wire::read);
        if *self == Family::TrtLlm {
            return trtllm::read_context(answer, usage);
        }
        // Of the others none hands over by its answer.
        let handed = given(read.kv_transfer_params).filter(|_| *self == Family::VllmNixl);
        let params = match handed {
            Some(params) if !params.get().starts_with('{') => {
                return Err(ProtocolError::NotParams);
            }
            params => params.map(|params| Bytes::copy_from_slice(params.get().as_bytes())),
        };
        Ok(Handoff { params, usage, ..Handoff::default() })
    }

    /// A whole answer ([`Handoff::finished`]) as the stream that the client asked for.
    ///
    /// # Errors
    /// It is no JSON.
    pub fn as_stream(&self, answer: &[u8], scan: &Scan) -> Result<Bytes, ProtocolError> {
        let unreadable = |error: serde_json::Error| ProtocolError::Unreadable(error.to_string());
        trtllm::as_stream(answer, scan).map_err(unreadable)
    }

    /// The decode leg: the client's body, and the hand-off's parameters verbatim, signed if there is
    /// a `key`. Without parameters it is the client's body itself.
    pub fn decode_leg(
        &self,
        body: &Bytes,
        scan: &Scan,
        handoff: &Handoff,
        key: Option<&[u8]>,
    ) -> LegBody {
        match (self, &handoff.params) {
            (Family::VllmNixl, Some(params)) => vllm::decode_body(body, scan, params).into(),
            (Family::TrtLlm, Some(params)) => LegBody {
                body: trtllm::generation_body(body, scan, handoff),
                header: trtllm_auth::header(params, key),
            },
            // The others' decode legs are not made from a prefill's answer.
            _ => body.clone().into(),
        }
    }

    /// How long after the prefill's answer the decode leg may still use its hand-off; later it must
    /// run without. Zero where there is none.
    pub const fn handoff_deadline(&self) -> Seconds {
        match self {
            Family::VllmNixl | Family::VllmSharedStore => vllm::HANDOFF_DEADLINE,
            Family::TrtLlm => trtllm::HANDOFF_DEADLINE,
            _ => Seconds::ZERO,
        }
    }
}

/// A string as JSON.
fn quoted(text: &str) -> String {
    // A string always serialises.
    serde_json::to_string(text).unwrap_or_default()
}

fn given(value: Option<&RawValue>) -> Option<&RawValue> {
    value.filter(|raw| raw.get() != "null")
}

/// An error object's message, or the whole of it.
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
