//! Engine families: how one request becomes one or two legs, and how a prefill's answer becomes the
//! decode's body. A closed set; a family's file holds only what differs. It must never send
//! anything: legs are values, the proxy runs them.

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
}

/// What a prefill left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handoff {
    /// Where the KV cache waits, for the decode backend: raw JSON, opaque, byte for byte. `None`:
    /// nothing to transfer, decode prefills by itself.
    pub params: Option<Bytes>,
    /// What the prefill counted.
    pub usage: Option<Usage>,
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
    /// `kv_transfer_params` is neither an object nor null.
    #[error("the prefill answer's kv_transfer_params are not an object")]
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
    pub const ALL: [Family; 2] = [Family::VllmNixl, Family::Plain];

    /// The word for it in settings, the admin API and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Family::VllmNixl => "vllm_nixl",
            Family::Plain => "plain",
        }
    }

    /// Can a prefill on one of its backends feed a decode on another?
    pub const fn can_split(&self) -> bool {
        match self {
            Family::VllmNixl => true,
            Family::Plain => false,
        }
    }

    /// The legs of a request that may be split; whole if the family, the endpoint or the request
    /// ([`crate::WholeReason`]) forbids it. Whether splitting pays is not decided here.
    pub fn legs(&self, endpoint: Endpoint, body: &Bytes, scan: &Scan) -> Legs {
        if !self.can_split() || !endpoint.can_split() || scan.whole.is_some() {
            return Legs::Whole;
        }
        match self {
            Family::VllmNixl => {
                Legs::PrefillFirst { prefill: vllm_nixl::prefill_body(endpoint, body, scan) }
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
        let params = match given(read.kv_transfer_params) {
            Some(params) if self.can_split() && !params.get().starts_with('{') => {
                return Err(ProtocolError::NotParams);
            }
            Some(params) if self.can_split() => {
                Some(Bytes::copy_from_slice(params.get().as_bytes()))
            }
            _ => None,
        };
        let usage = read.usage.and_then(crate::usage::Wire::read);
        Ok(Handoff { params, usage })
    }

    /// The decode leg's body: the client's, and the hand-off's parameters verbatim. Without
    /// parameters it is the client's body itself.
    pub fn decode_body(&self, body: &Bytes, scan: &Scan, handoff: &Handoff) -> Bytes {
        match (self, &handoff.params) {
            (Family::VllmNixl, Some(params)) => {
                Edits::new().set(vllm_nixl::PARAMS, params).apply(body, scan)
            }
            (Family::VllmNixl, None) | (Family::Plain, _) => body.clone(),
        }
    }

    /// How long after the prefill's answer the decode leg may still use its hand-off; later it must
    /// run without. Zero where there is none.
    pub const fn handoff_deadline(&self) -> Seconds {
        match self {
            Family::VllmNixl => vllm_nixl::HANDOFF_DEADLINE,
            Family::Plain => Seconds::ZERO,
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
