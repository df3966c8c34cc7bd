//! A client's request with its whole body, from which the legs are made. Plain data.

use bytes::Bytes;
use http::Method;
use http::header::HeaderMap;
use http::uri::PathAndQuery;
use std::sync::Arc;
use tidegate_engine::LegBody;
use tidegate_http1::RequestHeadWriter;

use crate::dispatch::headers::{AttemptIds, for_leg};
use crate::dispatch::settings_in_force::SettingsInForce;
use crate::runtime::budget::BudgetShare;
use crate::upstream::{Address, Outgoing, Pool};

/// The client's request.
#[derive(Debug)]
pub struct Inbound {
    /// The settings that were in force at its arrival.
    pub settings: Arc<SettingsInForce>,
    pub method: Method,
    pub target: PathAndQuery,
    pub headers: HeaderMap,
    /// Body, complete.
    pub body: Bytes,
    /// Whether it is a websocket handshake; other upgrades are not forwarded.
    pub upgrades: bool,
    /// The subject of the client's certificate, if it presented one.
    pub subject: Option<Arc<str>>,
    /// The prefill target that the gateway of a sidecar has named.
    pub prefill_at: Option<Arc<Pool>>,
    /// The body's share of the budget, released with the request.
    pub held: Option<BudgetShare>,
}

impl Inbound {
    /// Returns a copy of the request for a concurrent task. The copy holds no budget share, because
    /// the body is shared with the original.
    pub fn without_share(&self) -> Inbound {
        Inbound {
            settings: Arc::clone(&self.settings),
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

    /// Returns the request of one leg: the client's, with the body and the extra header of the leg.
    pub fn leg(&self, address: &Address, identity: AttemptIds<'_>, leg: &LegBody) -> Outgoing {
        let mut head = RequestHeadWriter::new(&self.method, &address.target(&self.target));
        let own = leg.header.as_ref().map(|(name, value)| (*name, &**value));
        for_leg(&mut head, &self.headers, address, identity, own);
        match self.upgrades {
            true => Outgoing::upgrade(head),
            false => Outgoing::new(head, leg.body.clone()),
        }
    }
}
