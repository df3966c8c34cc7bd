//! Is a client that has closed its sending half still there? `close` and `shutdown` of that half look
//! the same from here, until something is sent: a socket that was closed answers it with a reset.
//!
//! So such a client is served, and after a second without an answer something harmless is sent: a
//! `100 Continue`, which every client of HTTP/1.1 has to pass over (RFC 9110, 15.2), or a comment in
//! a stream of events. The state of the socket then tells.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tidegate_settings::HalfClose;
use tokio::time::{Instant, Sleep, sleep};

use super::reading::Closed;

/// An answer that comes so soon needs no probe.
const GRACE: Duration = Duration::from_secs(1);
/// A reset is on its way back for a round trip.
const LOOK: Duration = Duration::from_millis(100);
/// Between two probes, so that a client that closes the other half later is found, too.
const AGAIN: Duration = Duration::from_secs(5);

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send something.
    Probe,
    /// See whether the socket is still open.
    Look,
}

/// A client's presence while its answer is due.
pub struct Presence {
    mode: HalfClose,
    /// Since it has closed its half; boxed, as almost none does.
    half: Option<Box<Half>>,
}

struct Half {
    timer: Pin<Box<Sleep>>,
    probed: bool,
}

impl Presence {
    /// Of a client that has not closed.
    pub fn new(mode: HalfClose) -> Presence {
        Presence { mode, half: None }
    }

    /// Has it closed its sending half? Reads are over then.
    pub fn is_half(&self) -> bool {
        self.half.is_some()
    }

    /// It has closed. True: it has left.
    pub fn closed(&mut self, how: Closed) -> bool {
        let half = || Box::new(Half { timer: Box::pin(sleep(GRACE)), probed: false });
        self.half.get_or_insert_with(half);
        how == Closed::Reset || self.mode == HalfClose::Cancel
    }

    /// The next step, when it is due.
    pub fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        let Some(half) = &mut self.half else { return Poll::Pending };
        ready!(half.timer.as_mut().poll(context));
        let probes = self.mode == HalfClose::Probe && !half.probed;
        half.probed = probes;
        let next = if probes { LOOK } else { AGAIN };
        half.timer.as_mut().reset(Instant::now() + next);
        Poll::Ready(if probes { Step::Probe } else { Step::Look })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_half_that_closed_is_probed_and_looked_at_in_turn() {
        let mut presence = Presence::new(HalfClose::Probe);
        assert!(!presence.closed(Closed::Half) && presence.is_half());
        let begun = Instant::now();
        let mut steps = Vec::new();
        for _ in 0..4 {
            let step = std::future::poll_fn(|context| presence.poll_step(context)).await;
            steps.push((step, begun.elapsed().as_millis() / 100));
        }
        let expected = [(Step::Probe, 10), (Step::Look, 11), (Step::Probe, 61), (Step::Look, 62)];
        assert_eq!(steps, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_setting_says_what_a_closed_half_means() {
        let mut presence = Presence::new(HalfClose::Serve);
        assert!(!presence.closed(Closed::Half));
        let step = std::future::poll_fn(|context| presence.poll_step(context)).await;
        assert_eq!(step, Step::Look);
        assert!(Presence::new(HalfClose::Serve).closed(Closed::Reset));
        assert!(Presence::new(HalfClose::Cancel).closed(Closed::Half));
    }
}
