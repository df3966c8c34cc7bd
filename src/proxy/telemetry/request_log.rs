//! The values of a finished request that metrics and the access log read.

use std::sync::Arc;
use tidegate_filters::Accepted;
use tidegate_types::{Seconds, Tokens};

use crate::backends::fleet::{Backend, InflightRequest};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// The client received the whole answer.
    Done,
    /// The client disconnected first.
    ClientLeft,
    /// The client received an error instead of an answer.
    Failed,
    /// The answer was cut after its first byte.
    Cut,
}

impl RequestOutcome {
    /// The value in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            RequestOutcome::Done => "done",
            RequestOutcome::ClientLeft => "client_left",
            RequestOutcome::Failed => "failed",
            RequestOutcome::Cut => "cut",
        }
    }
}

/// What placement predicted for a request's first leg.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Time added by the prefill backlog of the backend.
    pub backlog: Seconds,
    /// Prefill time on an idle engine.
    pub prefill: Seconds,
    /// Cached prompt tokens.
    pub cached: Tokens,
    /// Decode step of the engine that decodes.
    pub tpot: Option<Seconds>,
}

/// A finished request.
pub struct RequestLog<'a> {
    /// The request as the filters accepted it.
    pub accepted: &'a Accepted,
    /// Its entry in the registry.
    pub live: &'a Arc<InflightRequest>,
    /// The subject of the client's certificate.
    pub subject: Option<&'a str>,
    /// The status sent to the client; 0 if none was sent.
    pub status: u16,
    /// How it ended.
    pub outcome: RequestOutcome,
    /// Why it failed, as a sentence.
    pub problem: Option<&'a str>,
    /// Number of backends tried.
    pub attempts: u32,
    /// Backend of the prefill leg of a disaggregated request.
    pub prefill_on: Option<&'a Backend>,
    /// Backend of the decode leg, or of the only leg.
    pub decode_on: Option<&'a Backend>,
    /// Prompt tokens: the engine's count if reported, else the proxy's.
    pub prompt: Tokens,
    /// Prompt tokens that placement expected in the prefix cache.
    pub cached: Option<Tokens>,
    /// Output tokens: the engine's count if reported, else the relayed chunks.
    pub output: Tokens,
    /// Time from arrival to the placement of the first leg.
    pub queued: Option<Seconds>,
    /// Time from arrival to the end of the prefill leg of a split request.
    pub prefilled: Option<Seconds>,
    /// Whether prefill and decode ran on two engines.
    pub split: bool,
    /// Placement's prediction.
    pub predicted: Option<Expected>,
    /// Predicted time to first token, including the queue.
    pub expected_ttft: Option<Seconds>,
    /// Time to first token.
    pub ttft: Option<Seconds>,
    /// Mean time per output token after the first.
    pub tpot: Option<Seconds>,
    /// Time from arrival to the end.
    pub duration: Seconds,
}
