//! What a failed leg is evidence of. The one place that decides whether an engine is blamed: only
//! [`Evidence::Engine`] counts for its health. Total over its inputs; the test is a table.

/// What a leg met, without the details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// No connection: refused, or not opened in time.
    Unreachable,
    /// The connection ended, or an answer broke off or could not be read.
    Broken,
    /// No answer in time.
    TimedOut,
    /// The engine answered with this status, or with an in-band error of this code; `None` is an
    /// in-band error without a code.
    Answered(Option<u16>),
}

/// What became of the same request elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// It was tried nowhere else, or is not decided yet.
    Untried,
    /// It failed on another engine too.
    Failed,
    /// Another engine served it.
    Served,
    /// The same engine served it without tidegate's edits.
    ServedUnedited,
}

/// What the client was doing when the leg failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientState {
    /// It waited for the answer, or read it.
    Reads,
    /// It had not read for a while, or had left: an engine may give up such a connection.
    Blocks,
}

/// Of what a failure is evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Of the request: it would fail on every engine.
    Request,
    /// Of the engine.
    Engine,
    /// Of the client.
    Client,
    /// Of the load on the engine.
    Load,
    /// Of nothing yet: a second outcome decides.
    Undecided,
}

/// Does a status say that the engine has too much to do? 529 is Anthropic's word for it.
pub const fn is_load(status: u16) -> bool {
    matches!(status, 429 | 503 | 529)
}

/// Of what is a failure evidence?
///
/// An engine's 5xx proves nothing alone: a request that an engine answers with 500 gets the same on
/// the next one. A broken connection is the engine's fault unless the request breaks a second engine.
pub const fn judge(sign: Sign, others: Others, client: ClientState) -> Evidence {
    if matches!(client, ClientState::Blocks) {
        return Evidence::Client;
    }
    match (sign, others) {
        (Sign::Unreachable, _) => Evidence::Engine,
        (Sign::Answered(Some(status)), _) if is_load(status) => Evidence::Load,
        (Sign::Answered(Some(..=499 | 501)), _) => Evidence::Request,
        (_, Others::Failed | Others::ServedUnedited) => Evidence::Request,
        (_, Others::Served) => Evidence::Engine,
        (Sign::Answered(_), Others::Untried) => Evidence::Undecided,
        (Sign::Broken | Sign::TimedOut, Others::Untried) => Evidence::Engine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ClientState::{Blocks, Reads};
    use Evidence::{Client, Engine, Load, Request, Undecided};
    use Sign::{Answered, Broken, TimedOut, Unreachable};

    #[test]
    fn every_failure_is_evidence_of_one_thing() {
        // Sign, and the verdict where it was tried nowhere else, failed elsewhere, was served
        // elsewhere, was served without the edits.
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
        let others = [Others::Untried, Others::Failed, Others::Served, Others::ServedUnedited];
        for (sign, verdicts) in table {
            for (others, verdict) in others.into_iter().zip(verdicts) {
                assert_eq!(judge(sign, others, Reads), verdict, "{sign:?} {others:?}");
                assert_eq!(judge(sign, others, Blocks), Client, "{sign:?} {others:?}");
            }
        }
    }
}
