//! Why a request failed, as a value: what happened, where, and whether another backend may still
//! save it. `respond.rs` alone turns it into HTTP.

use std::sync::Arc;
use thiserror::Error;
use tidegate_engine::{ApiError, ProtocolError};
use tidegate_terms::{BackendId, Seconds};

use crate::upstream::{BrokenOff, ExchangeError};

/// Which of a request's exchanges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// The prefill of a split request.
    Prefill,
    /// The decode of a split request.
    Decode,
    /// The one exchange of a request that is not split.
    Whole,
}

impl Leg {
    /// The word for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Leg::Prefill => "prefill",
            Leg::Decode => "decode",
            Leg::Whole => "whole",
        }
    }
}

/// What a leg met.
#[derive(Debug, Error)]
pub enum LegProblem {
    /// No answer, or half of one.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The answer broke off before its first byte could go on.
    #[error("the answer broke off: {0}")]
    BrokeOff(#[source] BrokenOff),
    /// The engine answered that it cannot serve this now.
    #[error("it answered {0}")]
    Status(http::StatusCode),
    /// The stream began with an error in place of a token.
    #[error("its stream began with an error")]
    ErrorEvent,
    /// It must be asked something first, and that failed. Its own port may be well.
    #[error("it could not be asked for its ranks: {0}")]
    Unasked(#[source] Box<LegProblem>),
    /// The prefill's answer is not what its protocol says.
    #[error("its answer is not usable: {0}")]
    Protocol(#[from] ProtocolError),
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
