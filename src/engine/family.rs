//! How one request becomes one or two legs.

use crate::{Endpoint, Scan, Usage};
use bytes::Bytes;
use tidegate_terms::Seconds;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    VllmNixl,
    Plain,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Legs {
    Whole,
    PrefillFirst { prefill: Bytes },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handoff {
    pub params: Option<Bytes>,
    pub usage: Option<Usage>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("the prefill answer is not JSON: {0}")]
    NotJson(String),
    #[error("the prefill answer's kv_transfer_params is neither an object nor null")]
    Params,
    #[error("the prefill answer is an error: {0}")]
    Refused(String),
}

impl Family {
    pub const fn can_split(&self) -> bool {
        matches!(self, Family::VllmNixl)
    }
    pub fn legs(&self, endpoint: Endpoint, body: &Bytes, scan: &Scan) -> Legs {
        let _ = (endpoint, body, scan);
        Legs::Whole
    }
    pub fn read_prefill(&self, answer: &[u8]) -> Result<Handoff, ProtocolError> {
        let _ = answer;
        Ok(Handoff { params: None, usage: None })
    }
    pub fn decode_body(&self, body: &Bytes, scan: &Scan, handoff: &Handoff) -> Bytes {
        let _ = (scan, handoff);
        body.clone()
    }
    pub const fn handoff_deadline(&self) -> Seconds {
        Seconds(20.0)
    }
}
