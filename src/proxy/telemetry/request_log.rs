//! The values of a finished request that metrics and the access log read.

use std::sync::Arc;
use tidegate_filters::Accepted;
use tidegate_types::{Seconds, Slo, Tokens};

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

/// The targets that an ended request met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attained {
    /// Whether the first token met the TTFT target.
    pub ttft: bool,
    /// Whether it ended and met the TPOT target. A single token always meets it.
    pub tpot: bool,
    /// Whether it ended and met the ITL target, if there is one.
    pub itl: bool,
}

impl Attained {
    /// Judges a request by its targets. `done`: the client received the whole answer.
    pub fn of(
        slo: &Slo,
        done: bool,
        ttft: Option<Seconds>,
        tpot: Option<Seconds>,
        gap_max: Option<Seconds>,
    ) -> Attained {
        Attained {
            ttft: ttft.is_some_and(|ttft| ttft <= slo.ttft),
            tpot: done && tpot.is_none_or(|tpot| tpot <= slo.tpot),
            itl: done && slo.meets_itl(gap_max),
        }
    }

    /// Whether it met all targets.
    pub fn all(&self) -> bool {
        self.ttft && self.tpot && self.itl
    }
}

/// A finished request.
pub struct RequestLog<'a> {
    /// The request as the filters accepted it.
    pub accepted: &'a Accepted,
    /// Its entry in the registry.
    pub live: &'a Arc<InflightRequest>,
    /// Name of its service class.
    pub class: &'a Arc<str>,
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

impl RequestLog<'_> {
    /// The targets that it met; `None` if it does not count: batch work has no targets, and a client that
    /// leaves ends its answer itself.
    pub fn attained(&self) -> Option<Attained> {
        let (targets, done) = (&self.live.targets, self.outcome == RequestOutcome::Done);
        let counts = self.outcome != RequestOutcome::ClientLeft && !targets.is_batch();
        let gap_max = self.live.gap_max();
        counts.then(|| Attained::of(&targets.slo, done, self.ttft, self.tpot, gap_max))
    }
}
