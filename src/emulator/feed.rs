//! From the scheduler to one answer: how many tokens there are, and whether more will come. One
//! atomic and one waker: the text is made by the reader, who knows it from the numbers. It must
//! never lose the last word: whoever registers looks again.

use atomic_waker::AtomicWaker;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

/// One answer's tokens. Written by the hand-off and then by the scheduler, read by one body.
#[derive(Debug, Default)]
pub struct Feed {
    /// Tokens, and the two flags below.
    state: AtomicU64,
    /// The prompt's KV as it is here: a hand-off brings its own.
    kv: AtomicU64,
    /// Prompt tokens that were not computed for this request.
    cached: AtomicU64,
    waker: AtomicWaker,
    /// The reader has left.
    left: AtomicBool,
    /// Wake the reader for its end only: it does not stream.
    quiet: bool,
}

/// What a reader sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Tokens so far.
    pub tokens: u64,
    /// No more will come.
    pub over: bool,
    /// Because it failed.
    pub failed: bool,
}

const OVER: u64 = 1 << 63;
const FAILED: u64 = 1 << 62;

impl Feed {
    /// For a reader that streams, or one that waits for the end.
    pub fn new(stream: bool) -> Feed {
        Feed { quiet: !stream, ..Feed::default() }
    }

    /// A token; `last` ends the answer.
    pub fn push(&self, last: bool) {
        self.state.fetch_add(1 | if last { OVER } else { 0 }, Ordering::Release);
        if last || !self.quiet {
            self.waker.wake();
        }
    }

    /// No token will come any more.
    pub fn fail(&self) {
        self.state.fetch_or(OVER | FAILED, Ordering::Release);
        self.waker.wake();
    }

    /// The reader has left. Said before the scheduler is told, so that a sequence that reaches it
    /// later is not taken in.
    pub fn leave(&self) {
        self.left.store(true, Ordering::Release);
    }

    /// Has the reader left?
    pub fn is_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// What the answer is made from. Set before the first token.
    pub fn set_kv(&self, kv: u64, cached: u64) {
        self.kv.store(kv, Ordering::Relaxed);
        self.cached.store(cached, Ordering::Relaxed);
    }

    /// What the answer is made from. Known with the first token.
    pub fn kv(&self) -> u64 {
        self.kv.load(Ordering::Relaxed)
    }

    /// Prompt tokens that were cached. Known with the first token.
    pub fn cached(&self) -> u64 {
        self.cached.load(Ordering::Relaxed)
    }

    /// Where it is now.
    pub fn progress(&self) -> Progress {
        let state = self.state.load(Ordering::Acquire);
        Progress {
            tokens: state & !(OVER | FAILED),
            over: state & OVER != 0,
            failed: state & FAILED != 0,
        }
    }

    /// Ready once there is more than `seen` tokens or an end.
    pub fn poll_beyond(&self, seen: u64, context: &mut Context<'_>) -> Poll<Progress> {
        let news = |progress: &Progress| progress.over || (!self.quiet && progress.tokens > seen);
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
        let feed = Feed::new(true);
        let mut context = Context::from_waker(Waker::noop());
        assert!(feed.poll_beyond(0, &mut context).is_pending());
        feed.push(false);
        feed.push(true);
        let expected = Progress { tokens: 2, over: true, failed: false };
        assert_eq!(feed.poll_beyond(0, &mut context), Poll::Ready(expected));
    }

    #[test]
    fn a_whole_answer_waits_for_the_end() {
        let feed = Feed::new(false);
        let mut context = Context::from_waker(Waker::noop());
        feed.push(false);
        assert!(feed.poll_beyond(0, &mut context).is_pending());
        feed.fail();
        let expected = Progress { tokens: 1, over: true, failed: true };
        assert_eq!(feed.poll_beyond(0, &mut context), Poll::Ready(expected));
    }
}
