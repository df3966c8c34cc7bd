//! Token feed from the scheduler to one response: the token count and end-of-stream flags in one
//! atomic, plus one waker. The reader generates the text from the count. No wake-up is lost: the
//! reader checks the state again after it registers its waker.

use atomic_waker::AtomicWaker;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

/// Tokens of one answer. Written by the hand-off, then by the scheduler; read by one body.
#[derive(Debug, Default)]
pub struct TokenFeed {
    /// Token count, and the two flags below.
    state: AtomicU64,
    /// Identity of the prompt's KV on this engine; a hand-off replaces it.
    kv: AtomicU64,
    /// Prompt tokens that were not computed for this request.
    cached: AtomicU64,
    waker: AtomicWaker,
    /// The reader has disconnected.
    left: AtomicBool,
    /// Wake the reader only at the end (non-streaming).
    quiet: bool,
}

/// Snapshot of the feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedProgress {
    /// Tokens so far.
    pub tokens: u64,
    /// The answer has ended.
    pub over: bool,
    /// The answer ended with an error.
    pub failed: bool,
}

const OVER: u64 = 1 << 63;
const FAILED: u64 = 1 << 62;

impl TokenFeed {
    /// Creates a feed; with `stream` false the reader is woken only at the end.
    pub fn new(stream: bool) -> TokenFeed {
        TokenFeed { quiet: !stream, ..TokenFeed::default() }
    }

    /// Adds a token; `last` ends the answer.
    pub fn push(&self, last: bool) {
        self.state.fetch_add(1 | if last { OVER } else { 0 }, Ordering::Release);
        if last || !self.quiet {
            self.waker.wake();
        }
    }

    /// Ends the answer with an error.
    pub fn fail(&self) {
        self.state.fetch_or(OVER | FAILED, Ordering::Release);
        self.waker.wake();
    }

    /// Marks the reader as disconnected, before the scheduler is notified, so that a sequence that
    /// reaches the scheduler afterwards is not admitted.
    pub fn leave(&self) {
        self.left.store(true, Ordering::Release);
    }

    /// Returns whether the reader has disconnected.
    pub fn is_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// Sets the KV identity and the cached tokens, before the first token.
    pub fn set_kv(&self, kv: u64, cached: u64) {
        self.kv.store(kv, Ordering::Relaxed);
        self.cached.store(cached, Ordering::Relaxed);
    }

    /// Returns the KV identity, valid from the first token on.
    pub fn kv(&self) -> u64 {
        self.kv.load(Ordering::Relaxed)
    }

    /// Returns the number of cached prompt tokens, valid from the first token on.
    pub fn cached(&self) -> u64 {
        self.cached.load(Ordering::Relaxed)
    }

    /// Returns the current state.
    pub fn progress(&self) -> FeedProgress {
        let state = self.state.load(Ordering::Acquire);
        FeedProgress {
            tokens: state & !(OVER | FAILED),
            over: state & OVER != 0,
            failed: state & FAILED != 0,
        }
    }

    /// Ready when there are more than `seen` tokens or the answer has ended.
    pub fn poll_beyond(&self, seen: u64, context: &mut Context<'_>) -> Poll<FeedProgress> {
        let news =
            |progress: &FeedProgress| progress.over || (!self.quiet && progress.tokens > seen);
        let progress = self.progress();
        if news(&progress) {
            return Poll::Ready(progress);
        }
        self.waker.register(context.waker());
        let progress = self.progress();
        if news(&progress) { Poll::Ready(progress) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    #[test]
    fn a_stream_sees_every_token_and_the_end() {
        let feed = TokenFeed::new(true);
        let mut context = Context::from_waker(Waker::noop());
        assert!(feed.poll_beyond(0, &mut context).is_pending());
        feed.push(false);
        feed.push(true);
        let expected = FeedProgress { tokens: 2, over: true, failed: false };
        assert_eq!(feed.poll_beyond(0, &mut context), Poll::Ready(expected));
    }

    #[test]
    fn a_whole_answer_waits_for_the_end() {
        let feed = TokenFeed::new(false);
        let mut context = Context::from_waker(Waker::noop());
        feed.push(false);
        assert!(feed.poll_beyond(0, &mut context).is_pending());
        feed.fail();
        let expected = FeedProgress { tokens: 1, over: true, failed: true };
        assert_eq!(feed.poll_beyond(0, &mut context), Poll::Ready(expected));
    }
}
