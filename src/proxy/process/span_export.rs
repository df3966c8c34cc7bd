//! Sends spans to an OTLP collector: HTTP/1.1 with JSON, in batches by size and time. A batch that the
//! collector does not take for the moment (429, 502, 503, 504, no answer) is sent again, after its
//! `Retry-After` or after growing pauses; beyond `OTEL_BSP_EXPORT_TIMEOUT` its spans are dropped and
//! counted.

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tidegate_http1::{RequestHeadWriter, RetryAfter};
use tidegate_settings::UpstreamSettings;
use tidegate_types::Seconds;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::dispatch::context::Proxy;
use crate::runtime::clock::Clock;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::otlp::encode::SpanBatch;
use crate::telemetry::otlp::queue::{FLUSH_MAX, QueueShared, ReceivedWork};
use crate::telemetry::otlp::{EndedWork, Environment, OtlpSettings, SpanQueue};
use crate::tls::TlsError;
use crate::upstream::{Address, AddressError, EngineTls, Outgoing, Pool, PoolParams, read_all};

/// First and longest pause between attempts without `Retry-After`.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// Largest answer that is read, in bytes.
const ANSWER_MAX: usize = 64 << 10;
/// Idle time of a connection: below that of collectors and of proxies before them.
const IDLE: Seconds = Seconds(30.0);

/// Why spans cannot be exported.
#[derive(Debug, Error)]
enum EndpointError {
    /// The URL.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The path in the URL.
    #[error("the path of the endpoint is not valid")]
    Path,
    /// Certificates for an https URL.
    #[error("OTEL_EXPORTER_OTLP_CERTIFICATE and the client's certificate: {0}")]
    Tls(#[from] TlsError),
}

/// What the collector made of a batch.
enum Export {
    /// It took all spans but these.
    Taken { rejected: u64 },
    /// It refuses them.
    Refused(String),
    /// It does not take them now.
    Busy { pause: Option<Duration>, why: String },
}

/// Sends spans to one collector.
pub struct SpanExporter {
    items: mpsc::Receiver<EndedWork>,
    shared: Arc<QueueShared>,
    /// Whether the process ends; the queue waits until this is dropped.
    stop: watch::Receiver<bool>,
    settings: OtlpSettings,
    pool: Pool,
    target: PathAndQuery,
    batch: SpanBatch,
    clock: Clock,
    /// Whether the last batch failed, so that an outage is logged once.
    is_failing: bool,
}

/// Gives the proxy a queue of spans, if the environment names a collector.
pub fn turn_on(proxy: Proxy) -> (Proxy, Option<SpanExporter>) {
    let (spans, exporter) = from_environment(&proxy.metrics, proxy.clock).unzip();
    (proxy.with_spans(spans), exporter)
}

/// Returns the requests' end of the queue and the exporter.
fn from_environment(metrics: &Metrics, clock: Clock) -> Option<(SpanQueue, SpanExporter)> {
    let environment = Environment::read(&|name| std::env::var(name).ok());
    for problem in &environment.problems {
        tracing::warn!("{problem}");
    }
    let settings = environment.settings?;
    let (pool, target) = match endpoint(&settings, clock) {
        Ok(endpoint) => endpoint,
        Err(error) => {
            tracing::error!("no spans are exported: {error}");
            return None;
        }
    };
    let (queue, ReceivedWork { items, shared, stop }) =
        SpanQueue::new(settings.queue_max, settings.sampler, metrics);
    let batch = SpanBatch::new(&settings.resource);
    tracing::info!(endpoint = %settings.url, "spans are exported");
    let exporter = SpanExporter {
        items,
        shared,
        stop,
        settings,
        pool,
        target,
        batch,
        clock,
        is_failing: false,
    };
    Some((queue, exporter))
}

fn endpoint(settings: &OtlpSettings, clock: Clock) -> Result<(Pool, PathAndQuery), EndpointError> {
    let address = Address::parse(&settings.url)?;
    let path = if address.prefix.is_empty() { "/" } else { &address.prefix };
    let target = PathAndQuery::try_from(path).map_err(|_| EndpointError::Path)?;
    let [ca_file, client_cert, client_key] = settings.tls.clone();
    let tls = match address.tls {
        true => Some(EngineTls::load(&UpstreamSettings {
            ca_file,
            client_cert,
            client_key,
            ..UpstreamSettings::default()
        })?),
        false => None,
    };
    let limit = Seconds(settings.timeout.as_secs_f64());
    let params = PoolParams {
        idle_max: 1,
        idle_time: IDLE,
        connect_timeout: limit,
        first_byte_timeout: limit,
    };
    Ok((Pool::new(address, params, tls, clock), target))
}

impl SpanExporter {
    /// Sends batches until `stop`, then what is left.
    pub async fn run(mut self) {
        let mut stop = self.stop.clone();
        let mut next = None;
        while !*stop.borrow() {
            tokio::select! {
                filled = self.fill(&mut next) => if !filled { return },
                _ = stop.changed() => break,
            }
            let limit = Instant::now() + self.settings.export_timeout;
            let mut sending = pin!(self.export(limit));
            tokio::select! {
                () = sending.as_mut() => {}
                _ = stop.changed() => {
                    // What is not sent by then is lost with the process.
                    timeout(FLUSH_MAX, sending).await.ok();
                    break;
                }
            }
        }
        let limit = Instant::now() + FLUSH_MAX;
        loop {
            while self.batch.len() < self.settings.batch_max
                && let Some(ended) = next.take().or_else(|| self.items.try_recv().ok())
            {
                self.add(&ended);
            }
            if self.batch.len() == 0 {
                return;
            }
            self.export(limit).await;
        }
    }

    /// Fills a batch, until it is full or its first span has waited for the delay. False once no more
    /// spans can come. `next`: an entry that did not fit.
    async fn fill(&mut self, next: &mut Option<EndedWork>) -> bool {
        if self.batch.len() == 0 {
            let first = match next.take() {
                Some(first) => Some(first),
                None => self.items.recv().await,
            };
            match first {
                Some(first) => self.add(&first),
                None => return false,
            }
        }
        let deadline = Instant::now() + self.settings.delay;
        while self.batch.len() < self.settings.batch_max {
            match timeout_at(deadline, self.items.recv()).await {
                Ok(Some(ended)) if self.batch.len() + ended.spans() > self.settings.batch_max => {
                    *next = Some(ended);
                    break;
                }
                Ok(Some(ended)) => self.add(&ended),
                Ok(None) | Err(_) => break,
            }
        }
        true
    }

    fn add(&mut self, ended: &EndedWork) {
        let batch = &mut self.batch;
        ended.visit(self.clock, &mut || fastrand::u64(..), &mut |span| batch.add(span));
    }

    /// Sends the batch, again and again until the collector has decided or `limit` has come.
    async fn export(&mut self, limit: Instant) {
        let (body, spans) = self.batch.take();
        let body = Bytes::from(body);
        let mut pause = PAUSES.0;
        let counters = &self.shared.counters;
        loop {
            let sent = match timeout_at(limit, self.send(&body)).await {
                Ok(sent) => sent,
                Err(_) => Export::Busy { pause: None, why: "no answer in time".to_owned() },
            };
            let (asked, why) = match sent {
                Export::Taken { rejected } => {
                    counters.exported.increment((spans as u64).saturating_sub(rejected));
                    counters.refused.increment(rejected);
                    if std::mem::take(&mut self.is_failing) {
                        tracing::info!("spans are exported again");
                    }
                    break;
                }
                Export::Refused(why) => {
                    counters.refused.increment(spans as u64);
                    log(&mut self.is_failing, &why);
                    break;
                }
                Export::Busy { pause, why } => (pause, why),
            };
            log(&mut self.is_failing, &why);
            // Up to a quarter more, so that gateways that lost one collector do not return at once.
            let wait = asked.unwrap_or_else(|| pause.mul_f64(1.0 + fastrand::f64() / 4.0));
            pause = (pause * 2).min(PAUSES.1);
            if Instant::now() + wait >= limit {
                counters.unreachable.increment(spans as u64);
                break;
            }
            sleep(wait).await;
        }
        self.shared.release(spans);
    }

    async fn send(&self, body: &Bytes) -> Export {
        let busy = |why: String| Export::Busy { pause: None, why };
        let exchange = async {
            let answer = self.pool.send(|| self.request(body.clone())).await;
            let answer = answer.map_err(|error| error.to_string())?;
            let (status, headers) = (answer.head.status, answer.head.headers);
            let text =
                read_all(answer.body, ANSWER_MAX).await.map_err(|error| error.to_string())?;
            Ok::<_, String>((status, headers, text))
        };
        let (status, headers, text) = match timeout(self.settings.timeout, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => return busy(why),
            Err(_) => return busy(format!("no answer within {:?}", self.settings.timeout)),
        };
        let why = format!("the collector answers {status}");
        match status {
            _ if status.is_success() => Export::Taken { rejected: rejected(&text) },
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => {
                let after = headers.get(http::header::RETRY_AFTER);
                let after = after.and_then(|after| RetryAfter::read(after.as_bytes()));
                let now = self.clock.wall(self.clock.now());
                let pause = after.and_then(|after| after.seconds_from(now));
                // A value beyond any limit of a batch; Duration holds no infinite time.
                let pause = pause.map(|pause| Duration::from_secs_f64(pause.min(3600.0)));
                Export::Busy { pause, why }
            }
            _ => Export::Refused(why),
        }
    }

    fn request(&self, body: Bytes) -> Outgoing {
        let mut head = RequestHeadWriter::new(&Method::POST, &self.target);
        head.header("host", self.pool.address().authority.as_str().as_bytes());
        head.header("content-type", b"application/json");
        head.header("user-agent", concat!("tidegate/", env!("CARGO_PKG_VERSION")).as_bytes());
        for (name, value) in &self.settings.headers {
            head.header(name, value.as_bytes());
        }
        Outgoing::new(head, body)
    }
}

/// Logs the first failure after a success.
fn log(is_failing: &mut bool, why: &str) {
    match std::mem::replace(is_failing, true) {
        false => tracing::warn!("spans are not exported: {why}"),
        true => tracing::debug!("spans are not exported: {why}"),
    }
}

/// Number of spans that the collector rejected, in its answer to the others.
fn rejected(answer: &[u8]) -> u64 {
    let answer: serde_json::Value = serde_json::from_slice(answer).unwrap_or_default();
    let rejected = &answer["partialSuccess"]["rejectedSpans"];
    rejected.as_u64().or_else(|| rejected.as_str()?.parse().ok()).unwrap_or(0)
}
