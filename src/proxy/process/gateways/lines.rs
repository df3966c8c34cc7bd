//! A stream of JSON lines in both directions of an HTTP/2 exchange, in bounded memory.

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use thiserror::Error;
use tidegate_scheduler::gateways::GatewayReport;
use tidegate_types::Role;
use tokio::sync::mpsc;

/// Most lines queued for a slow peer; further lines are skipped until it has read one.
const WAITING_MAX: usize = 2;
/// Longest line, in bytes: about 60,000 backends.
const LINE_MAX: usize = 8 << 20;

/// The sum that the leader sends to one gateway.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Sum {
    /// Loads and arrivals of all other gateways.
    pub others: GatewayReport,
    /// Number of those gateways.
    pub gateways: usize,
    /// The leader's roles, in the first line and after each change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<SharedRoles>,
}

/// Roles of a leader without a Lease.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct SharedRoles {
    /// Number of the leadership: the Unix time of its start.
    pub epoch: u64,
    /// Number of the leader's plan.
    pub seq: u64,
    /// By backend name.
    pub roles: BTreeMap<String, Role>,
}

/// Why a line cannot be read.
#[derive(Debug, Error)]
pub enum LineError {
    /// The connection broke.
    #[error("the stream broke: {0}")]
    Http(#[from] hyper::Error),
    /// The line exceeds the limit.
    #[error("a line is longer than {LINE_MAX} bytes")]
    Long,
    /// The line is not the expected JSON.
    #[error("a line cannot be parsed: {0}")]
    Json(#[from] serde_json::Error),
}

/// Response body of lines that are sent through a channel.
pub struct Lines(mpsc::Receiver<Bytes>);

/// Creates a body and the channel of its lines.
pub fn lines() -> (mpsc::Sender<Bytes>, Lines) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    (sender, Lines(receiver))
}

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

/// Returns a value as a line. Values of numbers, texts and maps of them always serialise.
pub fn line(of: &impl Serialize) -> Bytes {
    let mut line = serde_json::to_vec(of).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// Reads the lines of a body.
pub struct LineReader {
    body: Incoming,
    rest: BytesMut,
    /// Bytes of `rest` without a line break.
    searched: usize,
}

impl LineReader {
    /// Creates a reader before the first line.
    pub fn new(body: Incoming) -> LineReader {
        LineReader { body, rest: BytesMut::new(), searched: 0 }
    }

    /// Reads the next line; `None` at the end of the body. Cancel-safe.
    ///
    /// # Errors
    /// [`LineError`]; the reader must not be used afterwards.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LineError> {
        loop {
            if let Some(end) = self.rest[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(self.searched + end + 1);
                self.searched = 0;
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            self.searched = self.rest.len();
            if self.searched > LINE_MAX {
                return Err(LineError::Long);
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            if let Ok(data) = frame?.into_data() {
                self.rest.extend_from_slice(&data);
            }
        }
    }
}
