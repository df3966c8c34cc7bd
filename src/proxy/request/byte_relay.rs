//! An answer that is no stream of events, forwarded as it comes.

use bytes::Bytes;
use http_body::Frame;
use std::task::{Context, Poll};
use tidegate_engine::HandoffRedactor;

use crate::dispatch::answer::Passing;
use crate::dispatch::reservation::Reservation;
use crate::dispatch::settle::RequestRecord;
use crate::telemetry::request_log::RequestOutcome;
use crate::upstream::{BrokenOff, EngineBody};

/// An answer that is no stream of events and goes on as it comes.
pub struct ByteRelay {
    first: Option<Bytes>,
    rest: EngineBody,
    /// `None`: nothing in it can be a hand-off.
    redactor: Option<HandoffRedactor>,
    reservation: Option<Reservation>,
    record: Option<Box<RequestRecord>>,
}

impl ByteRelay {
    /// A body that has begun.
    pub fn new(
        passing: Passing,
        reservation: Reservation,
        record: Box<RequestRecord>,
    ) -> ByteRelay {
        let Passing { first, rest, opaque } = passing;
        let redactor = (!opaque && !record.trusts_client()).then(HandoffRedactor::new);
        ByteRelay {
            first: Some(first),
            rest,
            redactor,
            reservation: Some(reservation),
            record: Some(record),
        }
    }

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
                record.outcome = ended;
            }
        }
        let clean = |data| match &mut self.redactor {
            Some(filter) => filter.pass(data),
            None => data,
        };
        polled.map(|data| data.map(|data| data.map(clean).map(Frame::data)))
    }

    /// The length of the body, if it is known: not where something may be taken out.
    pub(crate) fn remaining(&self) -> Option<u64> {
        let first = self.first.as_ref().map_or(0, |first| first.len() as u64);
        self.redactor.is_none().then(|| self.rest.remaining().map(|rest| rest + first))?
    }
}
