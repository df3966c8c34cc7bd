//! A client's request with its body read: what the legs are made from. Plain data.

use bytes::Bytes;
use http::Method;
use http::header::HeaderMap;
use http::uri::PathAndQuery;
use std::sync::Arc;
use tidegate_engine::LegBody;
use tidegate_http1::RequestHeadWriter;

use crate::dispatch::headers::{Identity, for_leg};
use crate::runtime::budget::BudgetShare;
use crate::upstream::{Address, Outgoing, Pool};

/// The client's request.
#[derive(Debug)]
pub struct Inbound {
    /// Its method.
    pub method: Method,
    /// Its path and query.
    pub target: PathAndQuery,
    /// All of its headers.
    pub headers: HeaderMap,
    /// All of its body.
    pub body: Bytes,
    /// It is a websocket handshake; other requests for a protocol are not passed on.
    pub upgrades: bool,
    /// The subject of the client's certificate, if it presented one.
    pub subject: Option<Arc<str>>,
    /// The prefill target that the gateway of a sidecar has named.
    pub prefill_at: Option<Arc<Pool>>,
    /// The body's share of the budget, released with the request.
    pub held: Option<BudgetShare>,
}

impl Inbound {
    /// The same request for a task beside this one. The share of the budget stays here: the body is
    /// not copied.
    pub fn beside(&self) -> Inbound {
        Inbound {
            method: self.method.clone(),
            target: self.target.clone(),
            headers: self.headers.clone(),
            body: self.body.clone(),
            upgrades: self.upgrades,
            subject: self.subject.clone(),
            prefill_at: self.prefill_at.clone(),
            held: None,
        }
    }

    /// The request of one leg: the client's, with the leg's body in place of its own, and its header.
    pub fn leg(&self, address: &Address, identity: Identity<'_>, leg: &LegBody) -> Outgoing {
        let mut head = RequestHeadWriter::new(&self.method, &address.target(&self.target));
        let own = leg.header.as_ref().map(|(name, value)| (*name, &**value));
        for_leg(&mut head, &self.headers, address, identity, own);
        match self.upgrades {
            true => Outgoing::upgrade(head),
            false => Outgoing::new(head, leg.body.clone()),
        }
    }
}
