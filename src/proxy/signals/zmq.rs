//! The two ZeroMQ sockets of an engine that publishes KV events: one that hears, one that asks for
//! what was missed. Frames in and out; what is in them is not read here.

use bytes::Bytes;
use std::time::Duration;
use thiserror::Error;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqError, ZmqMessage};

/// An engine that is there answers a handshake within milliseconds.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The publisher looks for questions between two steps, or ten times a second.
const REPLAY_MAX: Duration = Duration::from_secs(10);

/// Why nothing more comes.
#[derive(Debug, Error)]
pub enum HearError {
    /// ZeroMQ's own word.
    #[error(transparent)]
    Zmq(#[from] ZmqError),
    /// No connection.
    #[error("no connection within {CONNECT_MAX:?}")]
    Connect,
    /// The answer to a question stopped.
    #[error("the replay stopped")]
    Replay,
}

/// One message.
pub struct Published {
    /// Its number.
    pub number: u64,
    /// Its events.
    pub payload: Bytes,
}

/// A socket that hears what an engine publishes, on every topic. It reconnects by itself.
pub struct Ear(SubSocket);

impl Ear {
    /// Listen at `endpoint`.
    pub async fn at(endpoint: &str) -> Result<Ear, HearError> {
        let mut socket = SubSocket::new();
        // Before it connects: the subscription goes out with the handshake.
        socket.subscribe("").await?;
        connect(&mut socket, endpoint).await?;
        Ok(Ear(socket))
    }

    /// The next message. May wait for ever.
    pub async fn hear(&mut self) -> Result<Published, HearError> {
        loop {
            let frames = self.0.recv().await?.into_vec();
            if let [_topic, number, payload] = frames.as_slice()
                && let Ok(number) = <[u8; 8]>::try_from(number.as_ref())
            {
                let number = u64::from_be_bytes(number);
                return Ok(Published { number, payload: payload.clone() });
            }
            tracing::debug!(frames = frames.len(), "not a message of KV events");
        }
    }
}

/// A question for all messages from a number on, and its answer.
pub struct Replay(DealerSocket);

impl Replay {
    /// Ask at `endpoint` for message `from` and all after it.
    pub async fn from(endpoint: &str, from: u64) -> Result<Replay, HearError> {
        let mut socket = DealerSocket::new();
        connect(&mut socket, endpoint).await?;
        let mut question = ZmqMessage::from(Bytes::new());
        question.push_back(Bytes::copy_from_slice(&from.to_be_bytes()));
        socket.send(question).await?;
        Ok(Replay(socket))
    }

    /// The next message; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Published>, HearError> {
        let received = tokio::time::timeout(REPLAY_MAX, self.0.recv()).await;
        let frames = received.map_err(|_| HearError::Replay)??.into_vec();
        // An empty frame, the topic, the number, the events.
        let [_, _topic, number, payload] = frames.as_slice() else { return Err(HearError::Replay) };
        let number = <[u8; 8]>::try_from(number.as_ref()).map_err(|_| HearError::Replay)?;
        let published = Published { number: u64::from_be_bytes(number), payload: payload.clone() };
        // -1 is the end.
        Ok((published.number != u64::MAX).then_some(published))
    }
}

async fn connect(socket: &mut impl Socket, endpoint: &str) -> Result<(), HearError> {
    let connected = tokio::time::timeout(CONNECT_MAX, socket.connect(endpoint)).await;
    Ok(connected.map_err(|_| HearError::Connect)??)
}
