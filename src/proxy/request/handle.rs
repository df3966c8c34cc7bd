//! The stages of a request, in order. Start reading here.
//!
//!     intake    run the filters: tenant, endpoint, tokens                  (intake.rs, filters/)
//!     estimate  uncached tokens, expected output, deadlines                (estimate.rs)
//!     attempts  repeat the next two after a failure before the first byte  (attempts.rs, blame.rs)
//!       place   reserve a backend, or wait in the EDF queue                (place.rs, dispatcher.rs)
//!       legs    one or two exchanges with engines, up to the first token   (legs.rs, answer.rs)
//!     relay     forward chunks, count tokens                               (event_relay.rs, byte_relay.rs)
//!     settle    release charges, write metrics and logs, on every path     (settle.rs, reservation.rs)
//!
//! Two kinds of requests skip the stage "place" and the queue: those that only some backends can serve,
//! such as stored objects, uploads and websockets (direct.rs), and those whose prefill engine a header
//! names (named_prefill.rs). The demand of both is counted by "estimate" as well.

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

use crate::dispatch::answer::{OpenedAnswer, OpenedBody};
use crate::dispatch::attempts;
use crate::dispatch::context::Proxy;
use crate::dispatch::cors::Cors;
use crate::dispatch::headers;
use crate::dispatch::inbound::Inbound;
use crate::dispatch::named_prefill;
use crate::dispatch::serving::Serving;
use crate::dispatch::settle::{ClientRequest, RequestRecord};
use crate::request::body::{PendingAnswer, RelayBody};
use crate::request::byte_relay::ByteRelay;
use crate::request::direct::{self, Routing};
use crate::request::estimate;
use crate::request::event_relay::EventRelay;
use crate::request::intake::{self, Admitted, ReceivedRequest};
use crate::request::models;
use crate::request::respond;
use crate::request::tunnel::Tunnel;
use crate::request::usage_injection;
use crate::telemetry::request_log::RequestOutcome;
use crate::upstream::failure::Failure;

/// Health endpoint of engines. Load generators and balancers query it first, without a key.
const HEALTH: &str = "/health";

/// Answers one request. Dropping the future (the client left) cancels its legs.
pub async fn handle(proxy: Arc<Proxy>, received: ReceivedRequest) -> Response<RelayBody> {
    if received.settings.cors.is_none() {
        return answer(proxy, received).await;
    }
    // Boxed, so that requests without CORS have smaller futures.
    Box::pin(answer_browser(proxy, received)).await
}

/// Answers a request with CORS headers.
async fn answer_browser(proxy: Arc<Proxy>, received: ReceivedRequest) -> Response<RelayBody> {
    let origin = Cors::origin(&received.head.headers);
    let settings = Arc::clone(&received.settings);
    let preflight = settings.cors.as_ref().and_then(|cors| cors.preflight(&received.head));
    if let Some(answer) = preflight {
        return answer.map(|()| RelayBody::full(Bytes::new()));
    }
    let mut response = answer(Arc::clone(&proxy), received).await;
    if let Some(cors) = &settings.cors {
        cors.mark(origin.as_ref(), response.headers_mut());
    }
    response
}

/// Runs the stages of a request.
async fn answer(proxy: Arc<Proxy>, received: ReceivedRequest) -> Response<RelayBody> {
    let is_get = matches!(received.head.method, Method::GET | Method::HEAD);
    if is_get && received.head.uri.path() == HEALTH {
        return respond::health(proxy.is_ready());
    }
    let arrived = received.arrived;
    let (mut inbound, mut accepted) = match intake::admit_request(&proxy, received).await {
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
    let usage_request = usage_injection::inject(&proxy, &mut inbound, &mut accepted);
    let (live, job, matches) = estimate::job(&proxy, &inbound.settings, &accepted, arrived);
    let client = ClientRequest {
        choices: accepted.scan.as_ref().map_or(1, |scan| scan.choices(&inbound.body)),
        usage_request,
        subject: inbound.subject.clone(),
        settings: Arc::clone(&inbound.settings),
    };
    let record = RequestRecord::new(Arc::clone(&proxy), Arc::clone(&accepted), live, client);
    let record = Box::new(record);
    let interval = inbound.settings.keepalive_comment.filter(|_| streams_events(&accepted));
    let (requested, live) = (Arc::clone(&accepted), Arc::clone(&record.live));
    // Boxed: a stream continues with this future after its head was sent. Constructed in place,
    // because moving the future would copy it.
    let place = Box::new_uninit();
    let serving = serve(Arc::clone(&proxy), inbound, accepted, (job, matches), record);
    let mut serving = Box::into_pin(Box::write(place, serving));
    let Some(interval) = interval else { return serving.await };
    proxy.timer_coalescing.keep();
    let due = pin!(sleep_until(proxy.clock.coarse_instant(arrived + interval)));
    tokio::select! {
        biased;
        response = serving.as_mut() => response,
        () = due => {
            let pending = PendingAnswer::new(serving, requested, interval, proxy.clock);
            named(pending.response(), &live.name)
        }
    }
}

/// Returns whether the answer is a stream of server-sent events.
fn streams_events(accepted: &Accepted) -> bool {
    let endpoint = accepted.endpoint;
    let streams = accepted.scan.as_ref().is_some_and(|scan| scan.stream);
    streams && endpoint.generates() && !endpoint.streams_lines()
}

/// Runs the stages from placement to the first byte of the answer.
async fn serve(
    proxy: Arc<Proxy>,
    inbound: Inbound,
    accepted: Arc<Accepted>,
    (job, matches): (PrefillRequest, Matches),
    mut record: Box<RequestRecord>,
) -> Response<RelayBody> {
    let slow = AtomicBool::default();
    let serving =
        Serving { proxy: &proxy, inbound: &inbound, accepted: &accepted, job, matches, slow };
    let served = match (&proxy.sidecar, &inbound.prefill_at) {
        (Some(sidecar), Some(target)) if accepted.endpoint.generates() => {
            // Boxed: few requests have a named target, and unboxed it would enlarge every future.
            Box::pin(named_prefill::serve(&serving, sidecar, target, &mut record)).await
        }
        _ => match direct::route(&serving) {
            Routing::Placed => attempts::serve(serving, &mut record).await,
            Routing::Direct(backends) => {
                Box::pin(direct::serve(serving, backends, &mut record)).await
            }
        },
    };
    match served {
        Ok(opened) => {
            direct::remember_holder(&inbound, &opened, &record);
            relay(opened, record)
        }
        Err(failure) => fail(&failure, &mut record),
    }
}

/// Returns the engine's answer with a body that counts tokens and settles the request.
fn relay(opened: OpenedAnswer, mut record: Box<RequestRecord>) -> Response<RelayBody> {
    let OpenedAnswer { mut head, body, reservation } = opened;
    record.answered(head.status.as_u16());
    record.proxy.signals.answered(reservation.backend.id, &head.headers);
    headers::name(&mut head.headers, &record.live.name);
    let body = match body {
        OpenedBody::Complete(bytes) => RelayBody::complete(bytes, reservation, record),
        OpenedBody::Events(begun) => {
            RelayBody::Events(Box::new(EventRelay::new(*begun, reservation, record)))
        }
        OpenedBody::Forwarded(forwarded) => {
            RelayBody::Bytes(Box::new(ByteRelay::new(*forwarded, reservation, record)))
        }
        OpenedBody::Websocket(upgraded) => {
            RelayBody::Websocket(Box::new(Tunnel::new(*upgraded, reservation, record)))
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    response
}

/// Returns the error answer of a failure.
fn fail(failure: &Failure, record: &mut RequestRecord) -> Response<RelayBody> {
    let form = ErrorForm::of(record.accepted.endpoint);
    let response = named(respond::failure(failure, form), &record.live.name);
    record.answered(response.status().as_u16());
    record.end(RequestOutcome::Failed);
    record.explain(failure.to_string());
    response
}

/// Sets the request id on an answer.
fn named(mut response: Response<RelayBody>, request_id: &str) -> Response<RelayBody> {
    headers::name(response.headers_mut(), request_id);
    response
}
