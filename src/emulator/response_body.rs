//! Response body: complete, or streamed by token. All available tokens leave in one write. The head
//! is sent first, as by vLLM, so that a later failure is an event in the stream.

use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::error_response::ErrorResponse;
use crate::generate::ActiveAnswers;
use crate::response_format::ResponseFormat;
use crate::stats::EmulatorCounters;
use crate::token_feed::FeedProgress;

/// Response body.
pub enum ResponseBody {
    /// Complete body.
    Full(Full<Bytes>),
    /// Streamed tokens.
    Stream(Box<TokenStream>),
}

/// Streamed tokens. Dropping it cancels unfinished sequences.
pub struct TokenStream {
    answers: ActiveAnswers,
    shape: ResponseFormat,
    /// Number of tokens sent, by answer.
    sent: Vec<u64>,
    ended: bool,
}

/// Typical size of a chunk with its id, in bytes.
const CHUNK_BYTES: usize = 384;

impl TokenStream {
    /// Creates the stream of answers that have just begun.
    pub fn new(answers: ActiveAnswers, shape: ResponseFormat) -> TokenStream {
        let sent = vec![0; answers.all.len()];
        TokenStream { answers, shape, sent, ended: false }
    }

    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let mut out = BytesMut::new();
        let mut over = true;
        for i in 0..self.sent.len() {
            let Poll::Ready(progress) = self.answers.all[i].feed.poll_beyond(self.sent[i], context)
            else {
                over = false;
                continue;
            };
            if progress.failed {
                return Poll::Ready(Some(self.fail(out)));
            }
            over &= progress.over;
            self.put_tokens(&mut out, i, progress);
        }
        if over {
            self.ended = true;
            self.answers.finish();
            self.shape.end(&mut out, self.sent.iter().sum());
        }
        if out.is_empty() { Poll::Pending } else { Poll::Ready(Some(out.freeze())) }
    }

    fn put_tokens(&mut self, out: &mut BytesMut, i: usize, progress: FeedProgress) {
        if progress.tokens == self.sent[i] {
            return;
        }
        out.reserve(CHUNK_BYTES * (progress.tokens - self.sent[i]) as usize);
        if self.sent.iter().all(|sent| *sent == 0) {
            for i in 0..self.sent.len() {
                self.shape.role(out, i as u32);
            }
        }
        // With speculative decoding the tokens of a step leave in one chunk.
        let bundles = self.answers.engine.config.bursts > 1.0;
        let each = if bundles { progress.tokens - self.sent[i] } else { 1 };
        for from in (self.sent[i]..progress.tokens).step_by(each as usize) {
            let until = from + each;
            let last = progress.over && until == progress.tokens;
            let handoff = if last { self.answers.settle(i) } else { None };
            let feed = &self.answers.all[i].feed;
            self.shape.tokens(out, (i as u32, from..until), feed, last, handoff.as_deref());
        }
        self.sent[i] = progress.tokens;
    }

    fn fail(&mut self, mut out: BytesMut) -> Bytes {
        self.ended = true;
        EmulatorCounters::add(&self.answers.engine.counters.errors, 1);
        out.put_slice(b"data: ");
        out.put_slice(&ErrorResponse::internal().body());
        out.put_slice(b"\n\ndata: [DONE]\n\n");
        out.freeze()
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            ResponseBody::Full(full) => Pin::new(full).poll_frame(context),
            ResponseBody::Stream(tokens) => {
                tokens.poll_bytes(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Full(full) => full.is_end_stream(),
            ResponseBody::Stream(tokens) => tokens.ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Full(full) => full.size_hint(),
            ResponseBody::Stream(_) => SizeHint::default(),
        }
    }
}
