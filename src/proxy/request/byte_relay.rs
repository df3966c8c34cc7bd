//! Relays an answer that is not an event stream: forwards its bytes as they arrive.

use bytes::Bytes;
use http_body::Frame;
use std::task::{Context, Poll};
use tidegate_engine::HandoffRedactor;

use crate::dispatch::answer::ForwardedBody;
use crate::dispatch::reservation::Reservation;
use crate::dispatch::settle::RequestRecord;
use crate::telemetry::request_log::RequestOutcome;
use crate::upstream::{BrokenOff, EngineBody};

/// A forwarded answer that is not an event stream.
pub struct ByteRelay {
    first: Option<Bytes>,
    rest: EngineBody,
    /// `None`: the client may receive hand-offs. Any other body is read: content types may be wrong.
    redactor: Option<HandoffRedactor>,
    /// Redaction does not change the length.
    keeps_length: bool,
    reservation: Option<Reservation>,
    record: Option<Box<RequestRecord>>,
}

impl ByteRelay {
    /// The relay of a body whose first bytes have been read.
    pub fn new(
        forwarded: ForwardedBody,
        reservation: Reservation,
        record: Box<RequestRecord>,
    ) -> ByteRelay {
        let ForwardedBody { first, rest, keeps_length } = forwarded;
        let redactor = (!record.trusts_client()).then(|| match keeps_length {
            true => HandoffRedactor::keeping_length(),
            false => HandoffRedactor::new(),
        });
        ByteRelay {
            first: Some(first),
            rest,
            keeps_length: keeps_length || redactor.is_none(),
            redactor,
            reservation: Some(reservation),
            record: Some(record),
        }
    }

    /// The next frame; settles the request at the end.
    pub(crate) fn poll_chunk(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let polled = match self.first.take().filter(|first| !first.is_empty()) {
            Some(first) => Poll::Ready(Some(Ok(first))),
            None => self.rest.poll_data(context),
        };
        let ended = match &polled {
            Poll::Ready(None) => Some(RequestOutcome::Done),
            Poll::Ready(Some(Err(_))) => Some(RequestOutcome::Cut),
            _ => None,
        };
        if let Some(ended) = ended {
            self.reservation = None;
            if let Some(mut record) = self.record.take() {
                record.end(ended);
            }
        }
        let clean = |data| match &mut self.redactor {
            Some(filter) => filter.pass(data),
            None => data,
        };
        polled.map(|data| data.map(|data| data.map(clean).map(Frame::data)))
    }

    /// Remaining length in bytes; `None` if it is unknown or redaction may change it.
    pub(crate) fn remaining(&self) -> Option<u64> {
        let first = self.first.as_ref().map_or(0, |first| first.len() as u64);
        self.keeps_length.then(|| self.rest.remaining().map(|rest| rest + first))?
    }
}
