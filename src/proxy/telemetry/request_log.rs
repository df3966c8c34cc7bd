//! What metrics and the access log read of a request that has ended.

use tidegate_filters::Accepted;
use tidegate_types::{Seconds, Tokens};

use crate::backends::fleet::{Backend, InflightRequest};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The client has all of the answer.
    Done,
    /// The client left first.
    ClientLeft,
    /// The client got an error in place of an answer.
    Failed,
    /// The answer broke off after its first byte.
    Cut,
}

impl Ended {
    /// The word in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Ended::Done => "done",
            Ended::ClientLeft => "client_left",
            Ended::Failed => "failed",
            Ended::Cut => "cut",
        }
    }
}

/// One request that has ended.
pub struct RequestLog<'a> {
    /// The request as the filters accepted it.
    pub accepted: &'a Accepted,
    /// Its entry in the registry.
    pub live: &'a InflightRequest,
    /// The subject of the client's certificate.
    pub subject: Option<&'a str>,
    /// The status that the client got; 0 before one was sent.
    pub status: u16,
    /// How it ended.
    pub ended: Ended,
    /// Why it failed.
    pub problem: Option<&'a str>,
    /// Backends tried.
    pub attempts: u32,
    /// Backend of the prefill leg of a disaggregated request.
    pub prefill_on: Option<&'a Backend>,
    /// Backend of the decode leg, or of the only leg.
    pub decode_on: Option<&'a Backend>,
    /// Prompt tokens: the engine's count if it gave one, else the proxy's.
    pub prompt: Tokens,
    /// Prompt tokens that placement expected in the prefix cache.
    pub cached: Option<Tokens>,
    /// Output tokens: the engine's count if it gave one, else the chunks seen.
    pub output: Tokens,
    /// Time from arrival to the placement of the first leg.
    pub queued: Option<Seconds>,
    /// Time to first token as placement predicted it, the queue included.
    pub expected_ttft: Option<Seconds>,
    /// Time to first token.
    pub ttft: Option<Seconds>,
    /// Mean time per output token after the first.
    pub tpot: Option<Seconds>,
    /// Time from arrival to the end.
    pub duration: Seconds,
}
