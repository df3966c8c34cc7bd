//! Failures of legs and requests as values: cause, backend, and whether a retry may succeed. Only
//! `respond.rs` converts them to HTTP.

use std::sync::Arc;
use thiserror::Error;
use tidegate_engine::{ApiError, FailureKind, ProtocolError, is_load};
use tidegate_types::{BackendId, Seconds};

use crate::upstream::verdict::Verdict;
use crate::upstream::{BrokenOff, ExchangeError};

/// The kind of a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// The prefill of a split request.
    Prefill,
    /// The decode of a split request.
    Decode,
    /// The single leg of a colocated request.
    Whole,
}

impl Leg {
    /// Label value in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Leg::Prefill => "prefill",
            Leg::Decode => "decode",
            Leg::Whole => "whole",
        }
    }
}

/// Cause of a leg's failure.
#[derive(Debug, Error)]
pub enum LegProblem {
    /// No answer, or half of one.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The answer broke off before its first byte could go on.
    #[error("the answer broke off: {0}")]
    BrokeOff(#[source] BrokenOff),
    /// The engine answered with an error: by a status, or by an event in place of a token.
    #[error("{0}")]
    Answered(Box<Verdict>),
    /// Before a leg was sent, something else was asked, and this was the answer.
    #[error("it answered {0}")]
    Status(http::StatusCode),
    /// Its engine, or the one that it depends on, was found dead or silent while it waited.
    #[error("given up: backend {backend}: {why}")]
    Abandoned {
        /// Which one.
        on: BackendId,
        /// By name.
        backend: Arc<str>,
        /// What was found.
        why: &'static str,
    },
    /// It must be asked something first, and that failed. Its own port may be well.
    #[error("it could not be asked for its ranks: {0}")]
    Unasked(#[source] Box<LegProblem>),
    /// It coded its answer although it was asked not to, in a way that is not read here.
    #[error("its answer has a content-encoding that it was not asked for: {0}")]
    Encoded(String),
    /// The prefill's answer is not what its protocol says.
    #[error("its answer is not usable: {0}")]
    Protocol(#[from] ProtocolError),
}

impl LegProblem {
    /// Will no other engine do better, so that a retry would only generate the answer once more?
    pub const fn is_final(&self) -> bool {
        matches!(self, LegProblem::Encoded(_))
    }

    /// Returns whether no connection could be opened.
    pub fn is_unreachable(&self) -> bool {
        self.sign() == FailureKind::Unreachable
    }

    /// Returns whether the connection was refused.
    pub fn is_refused(&self) -> bool {
        matches!(self, LegProblem::Exchange(ExchangeError::Connect(_)))
    }

    /// The engine's error, if it answered.
    pub fn verdict(&self) -> Option<&Verdict> {
        match self {
            LegProblem::Answered(verdict) => Some(verdict),
            _ => None,
        }
    }

    /// Is it judged only at the request's end? A refusal for load and a connection that could not be
    /// opened are clear at once, and so is an engine that was left for its health; what was asked beside
    /// the engine says nothing of it.
    pub fn is_pending(&self) -> bool {
        let clear = self.is_unreachable()
            || matches!(self, LegProblem::Unasked(_) | LegProblem::Abandoned { .. });
        let load = |verdict: &Verdict| verdict.status.is_some_and(is_load);
        !clear && !self.verdict().is_some_and(load)
    }

    /// Returns what the failure is evidence of.
    pub fn sign(&self) -> FailureKind {
        match self {
            LegProblem::Exchange(ExchangeError::Connect(_) | ExchangeError::ConnectTimeout(_)) => {
                FailureKind::Unreachable
            }
            LegProblem::Exchange(ExchangeError::AnswerTimeout(_)) => FailureKind::TimedOut,
            LegProblem::Answered(verdict) => FailureKind::Answered(verdict.status),
            LegProblem::Status(status) => FailureKind::Answered(Some(status.as_u16())),
            _ => FailureKind::Broken,
        }
    }
}

impl From<Verdict> for LegProblem {
    fn from(verdict: Verdict) -> LegProblem {
        LegProblem::Answered(Box::new(verdict))
    }
}

/// One leg failed before the client had received a byte.
#[derive(Debug, Error)]
#[error("{} leg on {backend}: {problem}", leg.as_str())]
pub struct LegFailure {
    /// Where, as a slot.
    pub on: BackendId,
    /// Where, by name.
    pub backend: Arc<str>,
    /// Which leg.
    pub leg: Leg,
    /// What.
    #[source]
    pub problem: LegProblem,
}

/// Why a request got no answer from an engine.
#[derive(Debug, Error)]
pub enum Failure {
    /// A filter refused it.
    #[error("refused: {}", .0.message)]
    Refused(ApiError),
    /// The engine's own verdict on the request.
    #[error("backend {backend}: {verdict}")]
    Judged {
        /// Whose.
        backend: Arc<str>,
        /// What it said.
        verdict: Box<Verdict>,
    },
    /// Every engine that was asked refuses for load.
    #[error("backend {backend}: {verdict}")]
    Busy {
        /// Whose words.
        backend: Arc<str>,
        /// What it said.
        verdict: Box<Verdict>,
        /// 429, unless all of them gave another status.
        status: u16,
        /// The longest time that one of them asks for; 0: none does.
        retry_after: Seconds,
    },
    /// The queue is full.
    #[error("the queue is full")]
    Saturated,
    /// No backend of its model can be used.
    #[error("no usable backend for the model")]
    NoBackend,
    /// It waited in the queue until its deadline.
    #[error("no backend had room within {waited}")]
    QueueDeadline {
        /// How long it waited.
        waited: Seconds,
    },
    /// Every attempt failed; this is the last one.
    #[error("after {attempts} attempts: {last}")]
    Exhausted {
        /// How many backends were tried.
        attempts: u32,
        /// What the last one met.
        last: LegFailure,
    },
    /// The proxy is stopping.
    #[error("tidegate is shutting down")]
    ShuttingDown,
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        Failure::Refused(error)
    }
}
