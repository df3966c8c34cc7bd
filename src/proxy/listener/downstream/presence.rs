//! Detects whether a client that has closed its sending half has left. `close` and `shutdown` of the
//! sending half are indistinguishable until data is sent: a closed socket answers it with a reset.
//!
//! Such a client is served. After one second without an answer a probe is sent: a `100 Continue`, which
//! HTTP/1.1 clients ignore (RFC 9110, 15.2), or a comment in an event stream. The socket's state then shows
//! whether the client has left.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tidegate_settings::HalfClose;
use tokio::time::{Instant, Sleep, sleep};

use super::reading::ClientClose;

/// Time without an answer after which the first probe is sent.
const GRACE: Duration = Duration::from_secs(1);
/// Delay from a probe to the check of the socket: a round trip of the reset.
const CHECK_DELAY: Duration = Duration::from_millis(100);
/// Delay to the next probe, which detects a client that closes later.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// Next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PresenceStep {
    /// Send a probe.
    Probe,
    /// Check whether the socket was reset.
    Check,
}

/// Presence of a client while its answer is pending.
pub struct Presence {
    mode: HalfClose,
    /// Set when the client has closed its sending half; boxed, because few clients do.
    half: Option<Box<Half>>,
}

struct Half {
    timer: Pin<Box<Sleep>>,
    probed: bool,
}

impl Presence {
    /// A client with both halves open.
    pub fn new(mode: HalfClose) -> Presence {
        Presence { mode, half: None }
    }

    /// Returns whether the client has closed its sending half, after which nothing is read.
    pub fn is_half(&self) -> bool {
        self.half.is_some()
    }

    /// Records a close. Returns whether it means that the client has left.
    pub fn closed(&mut self, how: ClientClose) -> bool {
        let half = || Box::new(Half { timer: Box::pin(sleep(GRACE)), probed: false });
        self.half.get_or_insert_with(half);
        how == ClientClose::Reset || self.mode == HalfClose::Cancel
    }

    /// The next step, when it is due.
    pub fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<PresenceStep> {
        let Some(half) = &mut self.half else { return Poll::Pending };
        ready!(half.timer.as_mut().poll(context));
        let probes = self.mode == HalfClose::Probe && !half.probed;
        half.probed = probes;
        let next = if probes { CHECK_DELAY } else { PROBE_INTERVAL };
        half.timer.as_mut().reset(Instant::now() + next);
        Poll::Ready(if probes { PresenceStep::Probe } else { PresenceStep::Check })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn probes_and_checks_alternate_after_a_half_close() {
        let mut presence = Presence::new(HalfClose::Probe);
        assert!(!presence.closed(ClientClose::Half) && presence.is_half());
        let begun = Instant::now();
        let mut steps = Vec::new();
        for _ in 0..4 {
            let step = std::future::poll_fn(|context| presence.poll_step(context)).await;
            steps.push((step, begun.elapsed().as_millis() / 100));
        }
        let expected = [
            (PresenceStep::Probe, 10),
            (PresenceStep::Check, 11),
            (PresenceStep::Probe, 61),
            (PresenceStep::Check, 62),
        ];
        assert_eq!(steps, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_close_is_handled_by_the_setting() {
        let mut presence = Presence::new(HalfClose::Serve);
        assert!(!presence.closed(ClientClose::Half));
        let step = std::future::poll_fn(|context| presence.poll_step(context)).await;
        assert_eq!(step, PresenceStep::Check);
        assert!(Presence::new(HalfClose::Serve).closed(ClientClose::Reset));
        assert!(Presence::new(HalfClose::Cancel).closed(ClientClose::Half));
    }
}
