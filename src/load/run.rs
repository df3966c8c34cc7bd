//! The load generator: one task per request, started at the trace's arrival time.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::body::Incoming;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tidegate_engine::SseReader;
use tidegate_sim::{Arrival, Outcome, Trace};
use tidegate_types::{Seconds, Tokens};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::failure::Failure;
use crate::link::Link;
use crate::progress::Progress;
use crate::prompts::Prompts;
use crate::target::Target;

/// Idle time after which a connection is not reused: servers close idle connections after 5 s.
const IDLE_MAX: Duration = Duration::from_secs(3);

/// Configuration of a load.
pub struct LoadConfig {
    /// The server under load.
    pub target: Target,
    /// Model name in the requests.
    pub model: String,
    /// Arrival times and lengths.
    pub trace: Trace,
    /// Time allowed after the last arrival for requests to end; the rest counts as unfinished.
    pub drain: Seconds,
}

struct Client {
    target: Target,
    model: String,
    prompts: Prompts,
    progress: Arc<Progress>,
    idle: Mutex<Vec<(Link, Instant)>>,
}

/// Progress of one request.
#[derive(Clone, Copy, Default)]
struct Seen {
    first: Option<Instant>,
    last: Option<Instant>,
    tokens: u64,
    done: bool,
}

/// Runs the load to its end. Outcomes are in trace order; TTFT counts from the arrival time in the
/// trace. Requests that have not ended after the drain are cancelled, and counted neither as done
/// nor as errors.
pub async fn run(config: LoadConfig, progress: Arc<Progress>) -> Vec<Outcome> {
    let LoadConfig { target, model, trace, drain } = config;
    let idle = Mutex::default();
    let client = Arc::new(Client { target, model, prompts: Prompts::new(), progress, idle });
    let mut outcomes = vec![Outcome::default(); trace.arrivals.len()];
    let start = Instant::now();
    let deadline = start + (trace.end() + drain).to_duration();
    let mut tasks = JoinSet::new();
    for (index, arrival) in trace.arrivals.into_iter().enumerate() {
        let due = start + arrival.at.to_duration();
        // The body is built before the arrival time.
        let body = client.body(index, &arrival);
        sleep_until(due).await;
        let client = Arc::clone(&client);
        let asked =
            async move { (index, client.request(body, due, deadline, arrival.output).await) };
        tasks.spawn(asked);
    }
    while let Some(joined) = tasks.join_next().await {
        if let Ok((index, outcome)) = joined {
            outcomes[index] = outcome;
        }
    }
    outcomes
}

impl Client {
    fn body(&self, index: usize, arrival: &Arrival) -> Bytes {
        let chat = self.target.is_chat();
        let prompt = self.prompts.text(index, arrival, chat);
        // Serialising a string cannot fail.
        let model = serde_json::to_string(&self.model).unwrap_or_default();
        let (before, after) = match chat {
            true => ("\"messages\":[{\"role\":\"user\",\"content\":\"", "\"}]"),
            false => ("\"prompt\":\"", "\""),
        };
        Bytes::from(format!(
            "{{\"model\":{model},{before}{prompt}{after},\"max_tokens\":{},\"ignore_eos\":true,\
             \"temperature\":0,\"stream\":true,\"stream_options\":{{\"include_usage\":true}}}}",
            arrival.output.get()
        ))
    }

    async fn request(
        &self,
        body: Bytes,
        due: Instant,
        deadline: Instant,
        output: Tokens,
    ) -> Outcome {
        self.progress.sent(due.elapsed());
        let mut seen = Seen::default();
        let ended = timeout_at(deadline, self.exchange(body, due, &mut seen)).await;
        let failure = match ended {
            // Unfinished: the run ended first.
            Err(_) => None,
            Ok(Err(failure)) => Some(failure),
            Ok(Ok(())) => (!seen.done || seen.tokens < output.get()).then_some(Failure::Short),
        };
        let done = ended.is_ok() && failure.is_none();
        let span = seen.first.zip(seen.last).map(|(first, last)| Seconds::from(last - first));
        let gaps = seen.tokens.saturating_sub(1);
        match failure {
            Some(failure) => self.progress.failed(failure),
            None if done => self.progress.done(gaps, span.unwrap_or_default()),
            None => {}
        }
        Outcome {
            ttft: seen.first.map(|first| Seconds::from(first - due)),
            tpot: span.filter(|_| gaps > 0 && done).map(|span| span / gaps as f64),
            done,
            error: failure.is_some(),
            tokens: Tokens(seen.tokens),
        }
    }

    async fn exchange(&self, body: Bytes, due: Instant, seen: &mut Seen) -> Result<(), Failure> {
        let (mut link, mut answer) = self.open(body).await?;
        let mut reader = SseReader::new(self.target.endpoint());
        while let Some(data) = link.next(&mut answer).await.map_err(|_| Failure::Broken)? {
            let more = reader.feed(&data);
            seen.done |= more.done;
            if more.tokens > 0 {
                self.tokens(more.tokens, due, seen);
            }
            if more.error {
                return Err(Failure::ErrorEvent);
            }
        }
        self.keep(link);
        Ok(())
    }

    fn tokens(&self, tokens: u32, due: Instant, seen: &mut Seen) {
        let now = Instant::now();
        if seen.first.is_none() {
            seen.first = Some(now);
            self.progress.first(Seconds::from(now - due));
        }
        seen.last = Some(now);
        seen.tokens += u64::from(tokens);
        self.progress.tokens(tokens);
    }

    /// Sends the request. A kept connection that the server has closed is replaced once.
    async fn open(&self, body: Bytes) -> Result<(Link, Incoming), Failure> {
        if let Some(mut link) = self.take() {
            match link.send(self.ask(body.clone())?).await {
                Ok(answer) => return self.answered(link, answer),
                Err(error) if error.is_closed() || error.is_canceled() => {}
                Err(error) if error.is_incomplete_message() => {}
                Err(_) => return Err(Failure::Broken),
            }
        }
        let connected = Link::connect(self.target.authority()).await;
        let mut link = connected.map_err(|_| Failure::Connect)?;
        let answer = link.send(self.ask(body)?).await.map_err(|_| Failure::Broken)?;
        self.answered(link, answer)
    }

    fn answered(
        &self,
        link: Link,
        answer: http::Response<Incoming>,
    ) -> Result<(Link, Incoming), Failure> {
        match answer.status().as_u16() {
            200 => Ok((link, answer.into_body())),
            status => Err(Failure::Status(status)),
        }
    }

    fn ask(&self, body: Bytes) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::post(self.target.path())
            .header("host", self.target.authority())
            .header("content-type", "application/json");
        if let Some(authorization) = self.target.authorization() {
            request = request.header("authorization", authorization);
        }
        // The target was validated when it was created.
        request.body(Full::new(body)).map_err(|_| Failure::Connect)
    }

    fn take(&self) -> Option<Link> {
        loop {
            let (mut link, since) = self.idle().pop()?;
            if since.elapsed() < IDLE_MAX && link.is_open() {
                return Some(link);
            }
        }
    }

    fn keep(&self, link: Link) {
        self.idle().push((link, Instant::now()));
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<(Link, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
