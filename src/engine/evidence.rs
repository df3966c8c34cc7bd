//! Attribution of a failed leg: to the request, the engine, the client or the load. Only
//! [`Evidence::Engine`] counts against an engine's health. The function is total; the test is a
//! table of all inputs.

/// Kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The connection was refused or not opened in time.
    Unreachable,
    /// The connection ended early, or the answer could not be parsed.
    Broken,
    /// Timeout.
    TimedOut,
    /// The engine answered with this status, or with an in-band error of this code (`None`: without
    /// a code).
    Answered(Option<u16>),
}

/// Outcome of the same request in other attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherAttempts {
    /// No other attempt, or none finished.
    Untried,
    /// It failed on another engine too.
    Failed,
    /// Another engine served it.
    Served,
    /// The same engine served it without tidegate's edits.
    ServedUnedited,
}

/// State of the client when the leg failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientState {
    /// Waiting for the answer or reading it.
    Reading,
    /// Not reading for a while, or disconnected: an engine may close such a connection.
    NotReading,
}

/// The party to which a failure is attributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The request: it would fail on every engine.
    Request,
    /// The engine.
    Engine,
    /// The client.
    Client,
    /// The load on the engine.
    Load,
    /// Undecided until another attempt.
    Undecided,
}

/// Returns whether a status means overload: 429, 503, and Anthropic's 529.
pub const fn is_load(status: u16) -> bool {
    matches!(status, 429 | 503 | 529)
}

/// Attributes a failure.
///
/// A 5xx alone proves nothing: a request that one engine answers with 500 usually fails on the next
/// one too. A broken connection is attributed to the engine, unless the request also fails on a
/// second one.
pub const fn attribute(sign: FailureKind, others: OtherAttempts, client: ClientState) -> Evidence {
    if matches!(client, ClientState::NotReading) {
        return Evidence::Client;
    }
    match (sign, others) {
        (FailureKind::Unreachable, _) => Evidence::Engine,
        (FailureKind::Answered(Some(status)), _) if is_load(status) => Evidence::Load,
        (FailureKind::Answered(Some(..=499 | 501)), _) => Evidence::Request,
        (_, OtherAttempts::Failed | OtherAttempts::ServedUnedited) => Evidence::Request,
        (_, OtherAttempts::Served) => Evidence::Engine,
        (FailureKind::Answered(_), OtherAttempts::Untried) => Evidence::Undecided,
        (FailureKind::Broken | FailureKind::TimedOut, OtherAttempts::Untried) => Evidence::Engine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ClientState::{NotReading, Reading};
    use Evidence::{Client, Engine, Load, Request, Undecided};
    use FailureKind::{Answered, Broken, TimedOut, Unreachable};

    #[test]
    fn every_failure_is_attributed() {
        // FailureKind, and the evidence if the request was not tried elsewhere, failed elsewhere, was
        // served elsewhere, was served without the edits.
        let table = [
            (Unreachable, [Engine, Engine, Engine, Engine]),
            (Broken, [Engine, Request, Engine, Request]),
            (TimedOut, [Engine, Request, Engine, Request]),
            (Answered(None), [Undecided, Request, Engine, Request]),
            (Answered(Some(400)), [Request; 4]),
            (Answered(Some(404)), [Request; 4]),
            (Answered(Some(422)), [Request; 4]),
            (Answered(Some(429)), [Load; 4]),
            (Answered(Some(500)), [Undecided, Request, Engine, Request]),
            (Answered(Some(501)), [Request; 4]),
            (Answered(Some(502)), [Undecided, Request, Engine, Request]),
            (Answered(Some(503)), [Load; 4]),
            (Answered(Some(504)), [Undecided, Request, Engine, Request]),
            (Answered(Some(529)), [Load; 4]),
        ];
        let others = [
            OtherAttempts::Untried,
            OtherAttempts::Failed,
            OtherAttempts::Served,
            OtherAttempts::ServedUnedited,
        ];
        for (sign, verdicts) in table {
            for (others, verdict) in others.into_iter().zip(verdicts) {
                assert_eq!(attribute(sign, others, Reading), verdict, "{sign:?} {others:?}");
                assert_eq!(attribute(sign, others, NotReading), Client, "{sign:?} {others:?}");
            }
        }
    }
}
