//! Client behaviours, and the verdict of each on its answer.

use fastrand::Rng;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

use crate::tally::Outcome;
use crate::tap::{ERROR_EVENT, MESSAGE, REFUSED};
use crate::wire::{self, Answer, Reading};

/// Behaviour of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Not streamed.
    Plain,
    /// Streamed, read at once.
    Streamed,
    /// Streamed, read slowly.
    Slow,
    /// Closes its sending half after the request.
    HalfCloses,
    /// Disconnects at a random time.
    Leaves,
    /// Streamed; its answer is never read.
    NeverReads,
    /// A request that all engines answer with 500.
    Refused,
    /// A request that all engines answer with an error event.
    ErrorEvent,
}

impl Manner {
    pub const ALL: [Manner; 8] = [
        Manner::Plain,
        Manner::Streamed,
        Manner::Slow,
        Manner::HalfCloses,
        Manner::Leaves,
        Manner::NeverReads,
        Manner::Refused,
        Manner::ErrorEvent,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Manner::Plain => "plain",
            Manner::Streamed => "streamed",
            Manner::Slow => "slow reader",
            Manner::HalfCloses => "half-closes",
            Manner::Leaves => "leaves",
            Manner::NeverReads => "never reads",
            Manner::Refused => "refused by all engines",
            Manner::ErrorEvent => "error event from all engines",
        }
    }

    /// Whether the request is valid and the client reads the whole answer.
    pub fn must_be_served(self) -> bool {
        matches!(self, Manner::Plain | Manner::Streamed | Manner::Slow | Manner::HalfCloses)
    }

    /// Draws a behaviour; a request that every engine refuses is drawn with probability `refused`.
    pub fn draw(rng: &mut Rng, refused: f64) -> Manner {
        if rng.f64() < refused {
            return if rng.u8(..4) == 0 { Manner::ErrorEvent } else { Manner::Refused };
        }
        match rng.u16(..1000) {
            0..380 => Manner::Plain,
            380..830 => Manner::Streamed,
            830..860 => Manner::Slow,
            860..900 => Manner::HalfCloses,
            900..990 => Manner::Leaves,
            _ => Manner::NeverReads,
        }
    }
}

/// Time limit of a request; a longer one counts as failed. Hangs injected by the fault layer last
/// seconds.
const LIMIT: Duration = Duration::from_secs(90);
/// Receive buffer, in bytes, of clients that exert back-pressure.
const SMALL_BUFFER: u32 = 4096;

/// Client with one request.
pub struct Client {
    pub manner: Manner,
    model: &'static str,
    prompt: usize,
    output: usize,
    is_streamed: bool,
    /// Time until disconnect, for `Leaves`.
    stay: Duration,
}

impl Client {
    pub fn draw(rng: &mut Rng, model: &'static str, refused: f64) -> Client {
        let manner = Manner::draw(rng, refused);
        let long = rng.u8(..20) == 0;
        let output = match manner {
            // Exceeds the socket buffers.
            Manner::NeverReads => 1500,
            Manner::Slow => rng.usize(100..300),
            _ if long => rng.usize(60..200),
            _ => rng.usize(1..40),
        };
        let is_streamed = match manner {
            Manner::Plain => false,
            Manner::Streamed | Manner::Slow | Manner::NeverReads | Manner::ErrorEvent => true,
            _ => rng.bool(),
        };
        Client {
            manner,
            model,
            prompt: if long { rng.usize(500..3000) } else { rng.usize(5..300) },
            output,
            is_streamed,
            stay: Duration::from_millis(rng.u64(..400)),
        }
    }

    fn body(&self, number: u64) -> String {
        let more = match self.manner {
            Manner::Refused => format!(",{REFUSED}"),
            Manner::ErrorEvent => format!(",{ERROR_EVENT}"),
            _ => String::new(),
        };
        let (model, stream, output) = (self.model, self.is_streamed, self.output);
        let words: String =
            (0..self.prompt).map(|i| format!("{:03} ", (i as u64 * 7 + number) % 1000)).collect();
        format!(
            "{{\"model\":\"{model}\",\"stream\":{stream},\"max_tokens\":{output}{more},\
             \"messages\":[{{\"role\":\"user\",\"content\":\"{number} {words}\"}}]}}"
        )
    }

    /// Sends the request and judges the answer.
    pub async fn ask(&self, to: SocketAddr, number: u64) -> Outcome {
        let request = wire::request("POST", "/v1/chat/completions", &self.body(number));
        let asking = self.exchange(to, &request);
        match self.manner {
            Manner::Leaves => {
                // Dropped with its connection.
                tokio::time::timeout(self.stay, asking).await.ok();
                Outcome::Left
            }
            _ => match tokio::time::timeout(LIMIT, asking).await {
                Ok(Ok(Some(answer))) => self.outcome_of(&answer),
                Ok(Ok(None)) => Outcome::Left,
                Ok(Err(error)) => Outcome::Lost(error.to_string()),
                Err(_) => Outcome::Lost("no whole answer within 90 s".to_owned()),
            },
        }
    }

    async fn exchange(&self, to: SocketAddr, request: &[u8]) -> std::io::Result<Option<Answer>> {
        let pushes_back = matches!(self.manner, Manner::Slow | Manner::NeverReads);
        let mut stream = wire::connect(to, pushes_back.then_some(SMALL_BUFFER)).await?;
        stream.write_all(request).await?;
        match self.manner {
            Manner::NeverReads => {
                tokio::time::sleep(Duration::from_secs(3) + 10 * self.stay).await;
                return Ok(None);
            }
            Manner::HalfCloses => stream.shutdown().await?,
            _ => {}
        }
        let reading = match self.manner {
            Manner::Slow => Reading { piece: 1024, pause: Duration::from_millis(15) },
            _ => Reading::QUICK,
        };
        wire::read(&mut stream, reading).await.map(Some)
    }

    fn outcome_of(&self, answer: &Answer) -> Outcome {
        let text = answer.text();
        if matches!(self.manner, Manner::Refused | Manner::ErrorEvent) {
            // A refusal may be an event after a response head that a keep-alive comment has sent.
            let refused = answer.status >= 400 || self.is_streamed;
            return match refused && text.contains(MESSAGE) {
                true => Outcome::Refused,
                false => Outcome::Lost(wording(answer)),
            };
        }
        if answer.status != 200 {
            return Outcome::Lost(wording(answer));
        }
        let seen = if self.is_streamed { streamed(&text) } else { plain(&text) };
        match seen {
            Seen { is_ended: true, words, .. } if answer.is_whole => match words == self.output {
                true => Outcome::Served,
                false => Outcome::Lost(format!("{words} words for {} tokens", self.output)),
            },
            Seen { has_begun: true, .. } => Outcome::Cut,
            _ => Outcome::Lost(wording(answer)),
        }
    }
}

/// Returns the status and the start of the body, without numbers that vary by request.
fn wording(answer: &Answer) -> String {
    let text: String = answer.text().chars().take(160).collect();
    format!("{} {}", answer.status, text.replace(|c: char| c.is_ascii_digit(), ""))
}

#[derive(Default)]
struct Seen {
    /// Whether an event that is no error was received.
    has_begun: bool,
    /// Whether the answer ended as its API requires, without an error.
    is_ended: bool,
    words: usize,
}

fn streamed(text: &str) -> Seen {
    let mut seen = Seen::default();
    let mut failed = false;
    for data in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
        if data == "[DONE]" {
            seen.is_ended = !failed;
            continue;
        }
        let Ok(event) = serde_json::from_str::<Value>(data) else { continue };
        if event.get("error").is_some() {
            failed = true;
        } else {
            seen.has_begun = true;
            seen.words += words(&event["choices"][0]["delta"]["content"]);
        }
    }
    seen
}

fn plain(text: &str) -> Seen {
    let Ok(answer) = serde_json::from_str::<Value>(text) else { return Seen::default() };
    let content = &answer["choices"][0]["message"]["content"];
    Seen { has_begun: false, is_ended: content.is_string(), words: words(content) }
}

/// Counts tokens: each token of the emulator is one word.
fn words(content: &Value) -> usize {
    content.as_str().map_or(0, |text| text.split_ascii_whitespace().count())
}
