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

use crate::connection::LoadConnection;
use crate::failure::RequestFailure;
use crate::progress::LoadProgress;
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

struct LoadClient {
    target: Target,
    model: String,
    prompts: Prompts,
    progress: Arc<LoadProgress>,
    idle: Mutex<Vec<(LoadConnection, Instant)>>,
}

/// Progress of one request.
#[derive(Default)]
struct ReceivedTokens {
    first: Option<Instant>,
    last: Option<Instant>,
    /// Time between consecutive chunks with tokens.
    gaps: Vec<Seconds>,
    tokens: u64,
    done: bool,
}

/// Runs the load to its end. Outcomes are in trace order; TTFT counts from the arrival time in the
/// trace. Requests that have not ended after the drain are cancelled, and counted neither as done
/// nor as errors.
pub async fn run(config: LoadConfig, progress: Arc<LoadProgress>) -> Vec<Outcome> {
    let LoadConfig { target, model, trace, drain } = config;
    let idle = Mutex::default();
    let client = Arc::new(LoadClient { target, model, prompts: Prompts::new(), progress, idle });
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
        let request =
            async move { (index, client.request(body, due, deadline, arrival.output).await) };
        tasks.spawn(request);
    }
    while let Some(joined) = tasks.join_next().await {
        if let Ok((index, outcome)) = joined {
            outcomes[index] = outcome;
        }
    }
    outcomes
}

impl LoadClient {
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
        let mut received = ReceivedTokens::default();
        let ended = timeout_at(deadline, self.exchange(body, due, &mut received)).await;
        let failure = match ended {
            // Unfinished: the run ended first.
            Err(_) => None,
            Ok(Err(failure)) => Some(failure),
            Ok(Ok(())) => {
                (!received.done || received.tokens < output.get()).then_some(RequestFailure::Short)
            }
        };
        let done = ended.is_ok() && failure.is_none();
        let span =
            received.first.zip(received.last).map(|(first, last)| Seconds::from(last - first));
        let gaps = received.tokens.saturating_sub(1);
        match failure {
            Some(failure) => self.progress.failed(failure),
            None if done => self.progress.done(gaps, span.unwrap_or_default()),
            None => {}
        }
        self.progress.gaps_of(&received.gaps);
        Outcome {
            gap_max: received.gaps.iter().copied().reduce(Seconds::max),
            ttft: received.first.map(|first| Seconds::from(first - due)),
            tpot: span.filter(|_| gaps > 0 && done).map(|span| span / gaps as f64),
            done,
            error: failure.is_some(),
            tokens: Tokens(received.tokens),
        }
    }

    async fn exchange(
        &self,
        body: Bytes,
        due: Instant,
        received: &mut ReceivedTokens,
    ) -> Result<(), RequestFailure> {
        let (mut connection, mut answer) = self.open(body).await?;
        let mut reader = SseReader::new(self.target.endpoint());
        while let Some(data) =
            connection.next(&mut answer).await.map_err(|_| RequestFailure::Broken)?
        {
            let more = reader.feed(&data);
            received.done |= more.done;
            if more.tokens > 0 {
                self.tokens(more.tokens, due, received);
            }
            if let Some(usage) = more.usage {
                // Exact where chunks bundle tokens.
                let missing = usage.completion.get().saturating_sub(received.tokens);
                received.tokens += missing;
                self.progress.tokens(u32::try_from(missing).unwrap_or(u32::MAX));
            }
            if more.error {
                return Err(RequestFailure::ErrorEvent);
            }
        }
        self.reuse(connection);
        Ok(())
    }

    fn tokens(&self, tokens: u32, due: Instant, received: &mut ReceivedTokens) {
        let now = Instant::now();
        if received.first.is_none() {
            received.first = Some(now);
            self.progress.first(Seconds::from(now - due));
        }
        received.gaps.extend(received.last.map(|last| Seconds::from(now - last)));
        received.last = Some(now);
        received.tokens += u64::from(tokens);
        self.progress.tokens(tokens);
    }

    /// Sends the request. A kept connection that the server has closed is replaced once.
    async fn open(&self, body: Bytes) -> Result<(LoadConnection, Incoming), RequestFailure> {
        if let Some(mut connection) = self.take() {
            match connection.send(self.http_request(body.clone())?).await {
                Ok(answer) => return self.answered(connection, answer),
                Err(error) if error.is_closed() || error.is_canceled() => {}
                Err(error) if error.is_incomplete_message() => {}
                Err(_) => return Err(RequestFailure::Broken),
            }
        }
        let connected = LoadConnection::connect(self.target.authority()).await;
        let mut connection = connected.map_err(|_| RequestFailure::Connect)?;
        let answer =
            connection.send(self.http_request(body)?).await.map_err(|_| RequestFailure::Broken)?;
        self.answered(connection, answer)
    }

    fn answered(
        &self,
        connection: LoadConnection,
        answer: http::Response<Incoming>,
    ) -> Result<(LoadConnection, Incoming), RequestFailure> {
        match answer.status().as_u16() {
            200 => Ok((connection, answer.into_body())),
            status => Err(RequestFailure::Status(status)),
        }
    }

    fn http_request(&self, body: Bytes) -> Result<Request<Full<Bytes>>, RequestFailure> {
        let mut request = Request::post(self.target.path())
            .header("host", self.target.authority())
            .header("content-type", "application/json");
        if let Some(authorization) = self.target.authorization() {
            request = request.header("authorization", authorization);
        }
        // The target was validated when it was created.
        request.body(Full::new(body)).map_err(|_| RequestFailure::Connect)
    }

    fn take(&self) -> Option<LoadConnection> {
        loop {
            let (mut connection, since) = self.idle().pop()?;
            if since.elapsed() < IDLE_MAX && connection.is_open() {
                return Some(connection);
            }
        }
    }

    fn reuse(&self, connection: LoadConnection) {
        self.idle().push((connection, Instant::now()));
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<(LoadConnection, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
