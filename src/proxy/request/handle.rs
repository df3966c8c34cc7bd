//! The stages of a request, in order. Start reading here.
//!
//!     intake    read the body, run the filters: tenant, endpoint, tokens      (intake.rs, filters/)
//!     estimate  uncached tokens, expected output, deadlines                   (estimate.rs)
//!     place     a backend with room, or a wait in the deadline queue          (place.rs, dispatcher.rs)
//!     attempts  elsewhere if one fails before its first byte                  (attempts.rs, blame.rs)
//!     legs      one or two exchanges with engines                             (legs.rs, answer.rs)
//!     relay     chunks go on as they come, tokens are counted                 (relay.rs)
//!     settle    every counter back to zero, on every path                     (settle.rs, reservation.rs)

use bytes::Bytes;
use http::{Method, Response};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tidegate_engine::{Endpoint, ErrorForm};
use tidegate_filters::Accepted;
use tidegate_scheduler::cost::Matches;
use tidegate_scheduler::placement::PrefillRequest;
use tokio::time::sleep_until;

use crate::dispatch::answer::{Opened, OpenedBody};
use crate::dispatch::attempts;
use crate::dispatch::context::Proxy;
use crate::dispatch::cors::Cors;
use crate::dispatch::headers;
use crate::dispatch::inbound::Inbound;
use crate::dispatch::named_prefill;
use crate::dispatch::serving::Serving;
use crate::dispatch::settle::RequestRecord;
use crate::dispatch::signals;
use crate::request::byte_relay::ByteRelay;
use crate::request::direct::{self, Way};
use crate::request::estimate;
use crate::request::intake::{self, Admitted, ReceivedRequest};
use crate::request::models;
use crate::request::relay::{EventRelay, RelayBody};
use crate::request::respond;
use crate::request::tunnel::Tunnel;
use crate::request::waiting::Waiting;
use crate::telemetry::request_log::RequestOutcome;
use crate::upstream::failure::Failure;

/// Where an engine says that it is there: load generators and balancers ask before they send
/// anything, and without a key.
const HEALTH: &str = "/health";

/// Answer one request. Dropping the future (the client left) cancels its legs.
pub async fn handle(proxy: Arc<Proxy>, asked: ReceivedRequest) -> Response<RelayBody> {
    if proxy.cors.is_none() {
        return answer(proxy, asked).await;
    }
    // Boxed: where it is off, requests keep no room for it.
    Box::pin(answer_browser(proxy, asked)).await
}

/// The same with CORS headers for browsers.
async fn answer_browser(proxy: Arc<Proxy>, asked: ReceivedRequest) -> Response<RelayBody> {
    let origin = Cors::origin(&asked.head.headers);
    if let Some(answer) = proxy.cors.as_ref().and_then(|cors| cors.preflight(&asked.head)) {
        return answer.map(|()| RelayBody::full(Bytes::new()));
    }
    let mut response = answer(Arc::clone(&proxy), asked).await;
    if let Some(cors) = &proxy.cors {
        cors.mark(origin.as_ref(), response.headers_mut());
    }
    response
}

async fn answer(proxy: Arc<Proxy>, asked: ReceivedRequest) -> Response<RelayBody> {
    let is_read = matches!(asked.head.method, Method::GET | Method::HEAD);
    if is_read && asked.head.uri.path() == HEALTH {
        return respond::health(proxy.is_ready());
    }
    let arrived = asked.arrived;
    let (mut inbound, mut accepted) = match intake::take(&proxy, asked).await {
        Ok(Admitted::Models { request_id, path }) => {
            return named(models::answer(&proxy, path.path()), &request_id);
        }
        Ok(Admitted::Request(inbound, accepted)) => (inbound, accepted),
        Err(refused) => {
            proxy.metrics.refused(Endpoint::of(refused.path.path()), refused.error.status);
            let form = ErrorForm::of_path(refused.path.path());
            return named(respond::error(&refused.error, form), &refused.request_id);
        }
    };
    let usage_request = signals::usage_injection::inject(&proxy, &mut inbound, &mut accepted);
    let (live, job, matches) = estimate::job(&proxy, &accepted, arrived);
    let mut record = Box::new(RequestRecord::new(Arc::clone(&proxy), Arc::clone(&accepted), live));
    record.usage_request = usage_request;
    record.subject = inbound.subject.clone();
    record.choices = accepted.scan.as_ref().map_or(1, |scan| scan.choices(&inbound.body));
    let interval = proxy.keepalive_comment.filter(|_| streams_events(&accepted));
    let (asked, name) = (Arc::clone(&accepted), Arc::clone(&record.live));
    // Boxed, so that a stream can go on with it after its head was sent. Made where it stays, or all
    // of it would be copied.
    let room = Box::new_uninit();
    let serving = serve(Arc::clone(&proxy), inbound, accepted, (job, matches), record);
    let mut serving = Box::into_pin(Box::write(room, serving));
    let Some(interval) = interval else { return serving.await };
    proxy.timer_coalescing.keep();
    let due = pin!(sleep_until(proxy.clock.coarse_instant(arrived + interval)));
    tokio::select! {
        biased;
        response = serving.as_mut() => response,
        () = due => {
            let waiting = Waiting::new(serving, asked, interval, proxy.clock);
            named(waiting.response(), &name.name)
        }
    }
}

/// Is its answer a stream of server-sent events?
fn streams_events(accepted: &Accepted) -> bool {
    let endpoint = accepted.endpoint;
    let streams = accepted.scan.as_ref().is_some_and(|scan| scan.stream);
    streams && endpoint.generates() && !endpoint.streams_lines()
}

/// From a place for the request to the beginning of its answer.
async fn serve(
    proxy: Arc<Proxy>,
    inbound: Inbound,
    accepted: Arc<Accepted>,
    (job, matches): (PrefillRequest, Matches),
    mut record: Box<RequestRecord>,
) -> Response<RelayBody> {
    let late = AtomicBool::default();
    let serving =
        Serving { proxy: &proxy, inbound: &inbound, accepted: &accepted, job, matches, late };
    let served = match (&proxy.sidecar, &inbound.prefill_at) {
        (Some(sidecar), Some(target)) if accepted.endpoint.generates() => {
            // Boxed: few requests have a named target, and each would keep room for it.
            Box::pin(named_prefill::serve(&serving, sidecar, target, &mut record)).await
        }
        _ => match direct::way(&serving) {
            Way::Placed => attempts::serve(serving, &mut record).await,
            Way::Direct(backends) => Box::pin(direct::serve(serving, backends, &mut record)).await,
        },
    };
    match served {
        Ok(opened) => {
            direct::note(&inbound, &opened, &record);
            relay(opened, record)
        }
        Err(failure) => fail(&failure, &mut record),
    }
}

/// The engine's answer, its body wrapped so that it is counted and settles.
fn relay(opened: Opened, mut record: Box<RequestRecord>) -> Response<RelayBody> {
    let Opened { mut head, body, reservation } = opened;
    record.status = head.status.as_u16();
    record.proxy.signals.answered(reservation.backend.id, &head.headers);
    headers::name(&mut head.headers, &record.live.name);
    let body = match body {
        OpenedBody::Complete(bytes) => RelayBody::complete(bytes, reservation, record),
        OpenedBody::Events(begun) => {
            RelayBody::Events(Box::new(EventRelay::new(*begun, reservation, record)))
        }
        OpenedBody::Passing(passing) => {
            RelayBody::Bytes(Box::new(ByteRelay::new(*passing, reservation, record)))
        }
        OpenedBody::Websocket(switched) => {
            RelayBody::Websocket(Box::new(Tunnel::new(*switched, reservation, record)))
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    response
}

fn fail(failure: &Failure, record: &mut RequestRecord) -> Response<RelayBody> {
    let form = ErrorForm::of(record.accepted.endpoint);
    let response = named(respond::failure(failure, form), &record.live.name);
    record.status = response.status().as_u16();
    record.outcome = RequestOutcome::Failed;
    record.problem = Some(failure.to_string());
    response
}

fn named(mut response: Response<RelayBody>, request_id: &str) -> Response<RelayBody> {
    headers::name(response.headers_mut(), request_id);
    response
}
