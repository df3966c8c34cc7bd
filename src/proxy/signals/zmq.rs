//! The two ZeroMQ sockets of an engine that publishes KV events: the subscription and the replay
//! request. This module parses frames; `kv_events` decodes their payload.

use bytes::Bytes;
use std::time::Duration;
use thiserror::Error;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqError, ZmqMessage};

/// Time-out of connecting; a running engine completes the handshake within milliseconds.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Time-out of a replay. The publisher reads requests between two steps, or ten times a second.
const REPLAY_MAX: Duration = Duration::from_secs(10);

/// Why the event stream ended.
#[derive(Debug, Error)]
pub enum KvStreamError {
    /// An error of the ZeroMQ library.
    #[error(transparent)]
    Zmq(#[from] ZmqError),
    /// The connection was not made in time.
    #[error("no connection within {CONNECT_MAX:?}")]
    Connect,
    /// The replay ended early or was malformed.
    #[error("the replay of KV events stopped early")]
    KvEventReplay,
}

/// One message of the publisher.
pub struct KvEventMessage {
    pub number: u64,
    /// Its events, msgpack.
    pub payload: Bytes,
}

/// The subscription to all topics of an engine. It reconnects by itself.
pub struct KvEventSubscriber(SubSocket);

impl KvEventSubscriber {
    /// Connects to `endpoint`.
    pub async fn at(endpoint: &str) -> Result<KvEventSubscriber, KvStreamError> {
        let mut socket = SubSocket::new();
        // Before connecting: the subscription is sent with the handshake.
        socket.subscribe("").await?;
        connect(&mut socket, endpoint).await?;
        Ok(KvEventSubscriber(socket))
    }

    /// The next message. Waits without a limit.
    pub async fn next(&mut self) -> Result<KvEventMessage, KvStreamError> {
        loop {
            let frames = self.0.recv().await?.into_vec();
            if let [_topic, number, payload] = frames.as_slice()
                && let Ok(number) = <[u8; 8]>::try_from(number.as_ref())
            {
                let number = u64::from_be_bytes(number);
                return Ok(KvEventMessage { number, payload: payload.clone() });
            }
            tracing::debug!(
                frames = frames.len(),
                "KV events: message with unexpected frames ignored"
            );
        }
    }
}

/// A replay request and its answer.
pub struct KvEventReplay(DealerSocket);

impl KvEventReplay {
    /// Requests message `from` and all later ones at `endpoint`.
    pub async fn from(endpoint: &str, from: u64) -> Result<KvEventReplay, KvStreamError> {
        let mut socket = DealerSocket::new();
        connect(&mut socket, endpoint).await?;
        let mut question = ZmqMessage::from(Bytes::new());
        question.push_back(Bytes::copy_from_slice(&from.to_be_bytes()));
        socket.send(question).await?;
        Ok(KvEventReplay(socket))
    }

    /// The next message; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<KvEventMessage>, KvStreamError> {
        let received = tokio::time::timeout(REPLAY_MAX, self.0.recv()).await;
        let frames = received.map_err(|_| KvStreamError::KvEventReplay)??.into_vec();
        // Frames: empty, topic, sequence number, events.
        let [_, _topic, number, payload] = frames.as_slice() else {
            return Err(KvStreamError::KvEventReplay);
        };
        let number =
            <[u8; 8]>::try_from(number.as_ref()).map_err(|_| KvStreamError::KvEventReplay)?;
        let published =
            KvEventMessage { number: u64::from_be_bytes(number), payload: payload.clone() };
        // Sequence number -1 marks the end.
        Ok((published.number != u64::MAX).then_some(published))
    }
}

async fn connect(socket: &mut impl Socket, endpoint: &str) -> Result<(), KvStreamError> {
    let connected = tokio::time::timeout(CONNECT_MAX, socket.connect(endpoint)).await;
    Ok(connected.map_err(|_| KvStreamError::Connect)??)
}
