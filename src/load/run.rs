//! The load itself: one task a request, started when the trace says.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tidegate_engine::{Endpoint, SseReader};
use tidegate_sim::{Outcome, Trace};
use tidegate_terms::{Seconds, Tokens};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::progress::Progress;
use crate::prompts::Prompts;
use crate::target::Target;

/// A connection that has been idle for longer is not used again: servers close theirs after 5 s.
const IDLE_MAX: Duration = Duration::from_secs(3);

/// What to send where.
pub struct LoadConfig {
    /// Whom to load.
    pub target: Target,
    /// The model to ask for.
    pub model: String,
    /// When, and how much.
    pub trace: Trace,
    /// How long after the last arrival requests may take to end; what is left then is unfinished.
    pub drain: Seconds,
}

struct Client {
    target: Target,
    model: String,
    prompts: Prompts,
    progress: Arc<Progress>,
    idle: Mutex<Vec<(SendRequest<Full<Bytes>>, Instant)>>,
}

/// What one request has come to, so far.
#[derive(Clone, Copy, Default)]
struct Seen {
    first: Option<Instant>,
    last: Option<Instant>,
    tokens: u64,
    done: bool,
    error: bool,
}

/// Run the load to its end. Outcomes are in the order of the trace; TTFT counts from the moment at
/// which the trace wanted the request sent.
pub async fn run(config: LoadConfig, progress: Arc<Progress>) -> Vec<Outcome> {
    let LoadConfig { target, model, trace, drain } = config;
    let idle = Mutex::default();
    let client = Arc::new(Client { target, model, prompts: Prompts::new(), progress, idle });
    let count = trace.arrivals.len();
    let deadline_after = (trace.end() + drain).to_duration();
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    let mut outcomes = vec![Outcome::default(); count];
    for (index, arrival) in trace.arrivals.into_iter().enumerate() {
        let due = start + arrival.at.to_duration();
        // Made ready before it is due.
        let body = client.body(index, &arrival);
        sleep_until(due).await;
        let client = Arc::clone(&client);
        tasks.spawn(async move { (index, client.request(body, due, arrival.output).await) });
    }
    while let Ok(Some(joined)) = timeout_at(start + deadline_after, tasks.join_next()).await {
        if let Ok((index, outcome)) = joined {
            outcomes[index] = outcome;
        }
    }
    tasks.shutdown().await;
    outcomes
}

impl Client {
    fn body(&self, index: usize, arrival: &tidegate_sim::Arrival) -> Bytes {
        let (model, prompt) = (&self.model, self.prompts.text(index, arrival));
        Bytes::from(format!(
            "{{\"model\":\"{model}\",\"messages\":[{{\"role\":\"user\",\"content\":\"{prompt}\"}}],\
             \"max_tokens\":{},\"ignore_eos\":true,\"temperature\":0,\"stream\":true,\
             \"stream_options\":{{\"include_usage\":true}}}}",
            arrival.output.get()
        ))
    }

    async fn request(&self, body: Bytes, due: Instant, output: Tokens) -> Outcome {
        self.progress.sent();
        let mut seen = Seen::default();
        if self.exchange(body, due, &mut seen).await.is_err() {
            seen.error = true;
        }
        let span = seen.first.zip(seen.last).map(|(first, last)| Seconds::from(last - first));
        let gaps = seen.tokens.saturating_sub(1);
        let done = seen.done && !seen.error && seen.tokens >= output.get();
        self.progress.ended(done, gaps, span.unwrap_or_default());
        Outcome {
            ttft: seen.first.map(|first| Seconds::from(first - due)),
            tpot: span.filter(|_| gaps > 0 && done).map(|span| span / gaps as f64),
            done,
            error: !done,
            tokens: Tokens(seen.tokens),
        }
    }

    async fn exchange(&self, body: Bytes, due: Instant, seen: &mut Seen) -> Result<(), Failed> {
        let mut sender = self.connection().await?;
        let request = Request::post("/v1/chat/completions")
            .header("host", &self.target.authority)
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|_| Failed)?;
        let answer = sender.send_request(request).await.map_err(|_| Failed)?;
        if !answer.status().is_success() {
            return Err(Failed);
        }
        let mut body = answer.into_body();
        let mut reader = SseReader::new(Endpoint::ChatCompletions);
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Failed)?.into_data() else { continue };
            let more = reader.feed(&data);
            seen.done |= more.done;
            seen.error |= more.error;
            if more.tokens > 0 {
                let now = Instant::now();
                if seen.first.is_none() {
                    seen.first = Some(now);
                    self.progress.first(Seconds::from(now - due));
                }
                seen.last = Some(now);
                seen.tokens += u64::from(more.tokens);
                self.progress.tokens(more.tokens);
            }
        }
        self.idle().push((sender, Instant::now()));
        Ok(())
    }

    async fn connection(&self) -> Result<SendRequest<Full<Bytes>>, Failed> {
        while let Some((sender, since)) = self.take_idle() {
            if since.elapsed() < IDLE_MAX && sender.is_ready() {
                return Ok(sender);
            }
        }
        let stream = TcpStream::connect(&self.target.authority).await.map_err(|_| Failed)?;
        stream.set_nodelay(true).map_err(|_| Failed)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|_| Failed)?;
        // Its end is seen by whoever uses it.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    fn take_idle(&self) -> Option<(SendRequest<Full<Bytes>>, Instant)> {
        self.idle().pop()
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<(SendRequest<Full<Bytes>>, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that did not end as asked; the outcome says no more.
struct Failed;

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_emulator::{EmulatorConfig, start};
    use tidegate_sim::Profile;

    #[tokio::test(flavor = "multi_thread")]
    async fn every_arrival_gets_its_tokens_from_an_emulated_engine() {
        let profile = Profile::named("fast").unwrap();
        let engine = start(EmulatorConfig { profile, ..EmulatorConfig::default() }).await.unwrap();
        let trace = Trace::bursts(3, Seconds(1.0), 20.0, Seconds(0.5)).scale_output(0.05);
        let wanted: u64 = trace.arrivals.iter().map(|arrival| arrival.output.get()).sum();
        let count = trace.arrivals.len();
        let config = LoadConfig {
            target: Target::parse(&format!("http://{}", engine.addresses()[0])).unwrap(),
            model: "emulated".to_owned(),
            trace,
            drain: Seconds(15.0),
        };
        let progress = Arc::new(Progress::default());
        let outcomes = run(config, Arc::clone(&progress)).await;
        assert!(outcomes.iter().all(|outcome| outcome.done && !outcome.error), "{outcomes:?}");
        let snapshot = progress.snapshot();
        assert_eq!((snapshot.sent, snapshot.done), (count as u64, count as u64));
        assert_eq!(snapshot.tokens, wanted);
        engine.stop().await;
    }

    #[tokio::test]
    async fn a_dead_target_is_an_error_and_not_a_wait() {
        let trace = Trace::bursts(3, Seconds(0.2), 20.0, Seconds(0.5));
        let config = LoadConfig {
            target: Target::parse("http://127.0.0.1:9").unwrap(),
            model: "m".to_owned(),
            trace,
            drain: Seconds(5.0),
        };
        let outcomes = run(config, Arc::default()).await;
        assert!(!outcomes.is_empty() && outcomes.iter().all(|outcome| outcome.error));
    }
}
