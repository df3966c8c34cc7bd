//! Engine families: how one request becomes one or two legs, and how a prefill's answer becomes the
//! decode's body. A closed set; a family's file holds only what differs. It must never send
//! anything: legs are values, the proxy runs them.

mod sglang;
mod trtllm;
mod vllm_nixl;

use crate::{Edits, Endpoint, Scan, Usage};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use tidegate_terms::Seconds;

/// How a backend hands KV cache over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// vLLM with the NIXL connector, pull or push, `kv_role=kv_both`: prefill, then decode.
    VllmNixl,
    /// SGLang in prefill or decode mode: both legs at once, in one bootstrap room.
    SglangPd,
    /// TensorRT-LLM with a cache transceiver: context, then generation.
    TrtLlm,
    /// Not at all: any engine with OpenAI's API.
    Plain,
}

/// What a request's first leg is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Legs {
    /// One leg, with the client's body as it is.
    Whole,
    /// This body to a prefill backend; its answer ([`Family::read_prefill`]) makes the decode body
    /// ([`Family::decode_body`]).
    PrefillFirst {
        /// The prefill leg's body.
        prefill: Bytes,
    },
    /// This body to a prefill and a decode backend at once; the decode's answer is the client's.
    Together {
        /// The body of both.
        both: Bytes,
    },
}

/// What the two legs of a request share beside its body.
#[derive(Clone, Copy, Debug)]
pub struct Meeting<'a> {
    /// The prefill backend's host; IPv6 in brackets.
    pub host: &'a str,
    /// Where its bootstrap server listens; 0 where the family has none.
    pub port: u16,
    /// Random, another one for every attempt.
    pub id: u64,
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
struct Answer<'a> {
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    kv_transfer_params: Option<&'a RawValue>,
    usage: Option<crate::usage::Wire>,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 4] =
        [Family::VllmNixl, Family::SglangPd, Family::TrtLlm, Family::Plain];

    /// The word for it in settings, the admin API and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Family::VllmNixl => "vllm_nixl",
            Family::SglangPd => "sglang_pd",
            Family::TrtLlm => "trtllm",
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
            // Tried on 0.32: each of them moves KV (engine_protocols.md §1.3).
            Family::VllmNixl => endpoint.can_split() && !matches!(endpoint, Endpoint::Generate),
            Family::SglangPd => endpoint.is_completion() || matches!(endpoint, Endpoint::Generate),
            Family::TrtLlm => endpoint.is_completion(),
            Family::Plain => false,
        }
    }

    /// Does one of its backends take whole requests? SGLang in a disaggregation mode answers 400.
    pub const fn runs_whole(&self) -> bool {
        !matches!(self, Family::SglangPd)
    }

    /// The legs of a request that may be split; whole if the family, the endpoint or the request
    /// ([`crate::WholeReason`]) forbids it. Whether splitting pays is not decided here.
    pub fn legs(
        &self,
        endpoint: Endpoint,
        body: &Bytes,
        scan: &Scan,
        meeting: &Meeting<'_>,
    ) -> Legs {
        // A family without whole requests pairs all that it can: both legs see the same body.
        let whole = scan.whole.is_some() && self.runs_whole();
        if !self.splits(endpoint) || whole {
            return Legs::Whole;
        }
        match self {
            Family::VllmNixl => {
                Legs::PrefillFirst { prefill: vllm_nixl::prefill_body(endpoint, body, scan) }
            }
            Family::SglangPd => Legs::Together { both: sglang::body(body, scan, meeting) },
            Family::TrtLlm => {
                Legs::PrefillFirst { prefill: trtllm::context_body(body, scan, meeting.id) }
            }
            Family::Plain => Legs::Whole,
        }
    }

    /// Reads a prefill leg's answer (HTTP 200, the whole body).
    ///
    /// # Errors
    /// If it is no prefill answer.
    pub fn read_prefill(&self, answer: &[u8]) -> Result<Handoff, ProtocolError> {
        let read = serde_json::from_slice::<Answer>(answer)
            .map_err(|error| ProtocolError::Unreadable(error.to_string()))?;
        if let Some(error) = given(read.error) {
            return Err(ProtocolError::EngineError(message_of(error).into_owned()));
        }
        let usage = read.usage.and_then(crate::usage::Wire::read);
        if *self == Family::TrtLlm {
            return trtllm::read_context(answer, usage);
        }
        let params = match given(read.kv_transfer_params) {
            Some(params) if self.can_split() && !params.get().starts_with('{') => {
                return Err(ProtocolError::NotParams);
            }
            Some(params) if self.can_split() => {
                Some(Bytes::copy_from_slice(params.get().as_bytes()))
            }
            _ => None,
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

    /// The decode leg's body: the client's, and the hand-off's parameters verbatim. Without
    /// parameters it is the client's body itself.
    pub fn decode_body(&self, body: &Bytes, scan: &Scan, handoff: &Handoff) -> Bytes {
        match (self, &handoff.params) {
            (Family::VllmNixl, Some(params)) => {
                Edits::new().set(vllm_nixl::PARAMS, params).apply(body, scan)
            }
            (Family::TrtLlm, Some(_)) => trtllm::generation_body(body, scan, handoff),
            (Family::VllmNixl | Family::TrtLlm, None) => body.clone(),
            // Not made from a prefill's answer.
            (Family::SglangPd | Family::Plain, _) => body.clone(),
        }
    }

    /// How long after the prefill's answer the decode leg may still use its hand-off; later it must
    /// run without. Zero where there is none.
    pub const fn handoff_deadline(&self) -> Seconds {
        match self {
            Family::VllmNixl => vllm_nixl::HANDOFF_DEADLINE,
            Family::TrtLlm => trtllm::HANDOFF_DEADLINE,
            Family::SglangPd | Family::Plain => Seconds::ZERO,
        }
    }
}

fn given(value: Option<&RawValue>) -> Option<&RawValue> {
    value.filter(|raw| raw.get() != "null")
}

/// An error object's message, or the whole of it.
fn message_of(error: &RawValue) -> Cow<'_, str> {
    #[derive(Deserialize)]
    struct Error<'a> {
        #[serde(borrow)]
        message: Cow<'a, str>,
    }
    match serde_json::from_str::<Error>(error.get()) {
        Ok(error) => error.message,
        Err(_) => Cow::Borrowed(error.get()),
    }
}

#[cfg(test)]
mod tests;
