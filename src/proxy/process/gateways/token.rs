//! The bearer token of all gateways. It is reread when its file changes. The gateways reread their files
//! at different times: for [`KEPT`] after the change the previous token is accepted, and sent to gateways
//! that refuse the new one, so that a rotation interrupts no exchange.

use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::time::Instant;

use crate::process::file_access::FileProblem;
use crate::runtime::reloadable::Reloadable;

/// Time for which the previous token counts. The kubelet replaces the files of a Secret within its sync
/// period (60 s) and the time of its cache (60 s).
const KEPT: Duration = Duration::from_secs(180);

/// The token and its file.
pub type GatewayToken = Arc<Reloadable<TokenPair, FileProblem>>;

/// The token in force, and the one before it.
pub struct TokenPair {
    current: String,
    /// The previous token, and when it ends.
    previous: Option<(String, Instant)>,
}

impl TokenPair {
    /// A token that was read at `now`, after `before`.
    pub fn new(token: String, before: Option<&TokenPair>, now: Instant) -> TokenPair {
        let previous = match before {
            Some(before) if before.current != token => Some((before.current.clone(), now + KEPT)),
            Some(before) => before.previous.clone(),
            None => None,
        };
        TokenPair { current: token, previous }
    }

    /// The token in force.
    pub(super) fn current(&self) -> &str {
        &self.current
    }

    /// The previous token, until it ends.
    pub(super) fn previous(&self, now: Instant) -> Option<&str> {
        let (token, until) = self.previous.as_ref()?;
        (now < *until).then_some(token.as_str())
    }

    /// Whether a gateway with this token is admitted. The comparisons take constant time.
    pub(super) fn accept(&self, offered: &[u8], now: Instant) -> bool {
        let is = |token: &str| bool::from(offered.ct_eq(token.as_bytes()));
        is(&self.current) | self.previous(now).is_some_and(is)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_previous_token_counts_for_three_minutes() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let first = TokenPair::new("first".to_owned(), None, at(0));
        assert!(first.accept(b"first", at(0)) && !first.accept(b"second", at(0)));
        assert!(!first.accept(b"", at(0)));
        assert_eq!(first.previous(at(0)), None);
        let second = TokenPair::new("second".to_owned(), Some(&first), at(10));
        // A forced reload of an unchanged file changes nothing.
        let second = TokenPair::new("second".to_owned(), Some(&second), at(100));
        assert_eq!(second.current(), "second");
        for (seconds, is_accepted) in [(10, true), (189, true), (190, false)] {
            assert!(second.accept(b"second", at(seconds)));
            assert_eq!(second.accept(b"first", at(seconds)), is_accepted, "at {seconds} s");
            assert_eq!(second.previous(at(seconds)).is_some(), is_accepted, "at {seconds} s");
        }
    }
}
