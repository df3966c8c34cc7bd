//! Failures of legs and requests as values: cause, backend, and whether a retry may succeed. Only
//! `respond.rs` converts them to HTTP.

use http::StatusCode;
use std::sync::Arc;
use thiserror::Error;
use tidegate_engine::{ApiError, FailureKind, ProtocolError, is_load};
use tidegate_types::{BackendId, Role, Seconds};

use crate::upstream::error_answer::ErrorAnswer;
use crate::upstream::{BrokenOff, ExchangeError};

/// Kind of a leg, by its part of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LegKind {
    /// The prefill of a split request.
    Prefill,
    /// The decode of a split request.
    Decode,
    /// The single leg of a colocated request.
    Colocated,
}

impl LegKind {
    /// Label value in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            LegKind::Prefill => "prefill",
            LegKind::Decode => "decode",
            LegKind::Colocated => "colocated",
        }
    }
}

/// Cause of a leg's failure.
#[derive(Debug, Error)]
pub enum LegProblem {
    /// No answer, or an incomplete one.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The answer ended before its first byte was forwarded.
    #[error("the answer broke off: {0}")]
    BrokeOff(#[source] BrokenOff),
    /// The engine answered with an error: by a status, or by an event in place of a token.
    #[error("{0}")]
    Answered(Box<ErrorAnswer>),
    /// Status of a failed rendezvous query before the leg.
    #[error("answered {0}")]
    Status(StatusCode),
    /// The leg was abandoned: its engine, or the one that it depends on, is dead or silent.
    #[error("abandoned: backend {backend}: {why}")]
    Abandoned {
        /// Slot of that backend.
        on: BackendId,
        backend: Arc<str>,
        why: &'static str,
    },
    /// The rendezvous query before the leg failed. The engine's own port may be healthy.
    #[error("the rendezvous query failed: {0}")]
    RendezvousFailed(#[source] Box<LegProblem>),
    /// An engine with enforced roles has another role, or is changing it; it has not begun the leg.
    #[error("not admitted: the engine is not in role {0}")]
    NotAdmitted(Role),
    /// The answer has an unsupported content coding, although `identity` was requested.
    #[error("unrequested content-encoding in the answer: {0}")]
    Encoded(String),
    /// The prefill's answer violates its protocol.
    #[error("unusable answer: {0}")]
    Protocol(#[from] ProtocolError),
}

impl LegProblem {
    /// Returns whether a retry is useless, because another engine would fail the same way.
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
    pub fn error_answer(&self) -> Option<&ErrorAnswer> {
        match self {
            LegProblem::Answered(answer) => Some(answer),
            _ => None,
        }
    }

    /// Returns whether the failure is attributed only at the request's end. Overload, failed connections,
    /// abandoned legs and failed rendezvous queries are attributed at once.
    pub fn is_pending(&self) -> bool {
        let clear = self.is_unreachable()
            || matches!(
                self,
                LegProblem::RendezvousFailed(_)
                    | LegProblem::Abandoned { .. }
                    | LegProblem::NotAdmitted(_)
            );
        let load = |answer: &ErrorAnswer| answer.status.is_some_and(is_load);
        !clear && !self.error_answer().is_some_and(load)
    }

    /// Returns what the failure is evidence of.
    pub fn sign(&self) -> FailureKind {
        match self {
            LegProblem::Exchange(ExchangeError::Connect(_) | ExchangeError::ConnectTimeout(_)) => {
                FailureKind::Unreachable
            }
            LegProblem::Exchange(ExchangeError::AnswerTimeout(_)) => FailureKind::TimedOut,
            LegProblem::Answered(answer) => FailureKind::Answered(answer.status),
            // As an engine that is busy: another one may admit the leg.
            LegProblem::NotAdmitted(_) => {
                FailureKind::Answered(Some(StatusCode::SERVICE_UNAVAILABLE.as_u16()))
            }
            LegProblem::Status(status) => FailureKind::Answered(Some(status.as_u16())),
            _ => FailureKind::Broken,
        }
    }
}

impl From<ErrorAnswer> for LegProblem {
    fn from(answer: ErrorAnswer) -> LegProblem {
        LegProblem::Answered(Box::new(answer))
    }
}

/// Failure of a leg before the client has received a byte.
#[derive(Debug, Error)]
#[error("{} leg on {backend}: {problem}", leg.as_str())]
pub struct LegFailure {
    /// Slot of the backend.
    pub on: BackendId,
    pub backend: Arc<str>,
    pub leg: LegKind,
    #[source]
    pub problem: LegProblem,
}

/// Why a request has no answer from an engine.
#[derive(Debug, Error)]
pub enum Failure {
    /// Refused by a filter.
    #[error("refused: {}", .0.message)]
    Refused(ApiError),
    /// The engine's client error.
    #[error("backend {backend}: {answer}")]
    EngineError {
        backend: Arc<str>,
        /// The engine's answer.
        answer: Box<ErrorAnswer>,
    },
    /// Every tried engine is overloaded.
    #[error("backend {backend}: {answer}")]
    Busy {
        /// Backend whose answer is forwarded.
        backend: Arc<str>,
        /// The engine's answer.
        answer: Box<ErrorAnswer>,
        /// 429, or the common status of all engines.
        status: u16,
        /// Longest requested delay; 0: none was requested.
        retry_after: Seconds,
    },
    /// The queue is full.
    #[error("the queue is full")]
    Saturated,
    /// No backend of the model is usable.
    #[error("no usable backend for the model")]
    NoBackend,
    /// The queue deadline has passed.
    #[error("no backend had room within {waited}")]
    QueueDeadline {
        /// Time in the queue.
        waited: Seconds,
    },
    /// The TTFT target can no longer be met, and `queue.late` is `refuse`.
    #[error("refused after {waited} in the queue: the TTFT target can no longer be met")]
    Late {
        /// Time in the queue.
        waited: Seconds,
    },
    /// Every attempt failed; this is the last one.
    #[error("after {attempts} attempts: {last}")]
    Exhausted {
        /// Number of attempts.
        attempts: u32,
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
