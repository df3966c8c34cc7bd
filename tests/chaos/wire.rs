//! HTTP/1.1 on a raw socket, for client behaviours that libraries do not support.

use http::Method;
use std::io::{Error, Result};
use std::net::SocketAddr;
use std::time::Duration;
use tidegate_http1::{BodyReader, read_response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// Answer as far as received.
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
    /// Whether its framing ended it, rather than the end of the connection.
    pub is_whole: bool,
}

impl Answer {
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }
}

/// Reading speed of a client.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Bytes per read.
    pub piece: usize,
    /// Pause between two reads.
    pub pause: Duration,
}

impl Reading {
    pub const QUICK: Reading = Reading { piece: 16 << 10, pause: Duration::ZERO };
}

/// Opens a connection, with a small receive buffer if the client exerts back-pressure.
pub async fn connect(to: SocketAddr, receive_buffer: Option<u32>) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(size) = receive_buffer {
        socket.set_recv_buffer_size(size)?;
    }
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: chaos\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Reads one answer. An end of the connection before the head is an error; one within the body
/// yields an incomplete answer.
pub async fn read(stream: &mut TcpStream, reading: Reading) -> Result<Answer> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(head) = read_response(&Method::POST, &bytes).map_err(Error::other)? {
            if !head.status.is_informational() {
                break head;
            }
            // A 100 (Continue) tests whether a client that has half-closed is still connected.
            bytes.drain(..head.length);
            continue;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(Error::other("the connection ended before an answer"));
        }
    };
    let mut answer = Answer { status: head.status.as_u16(), body: Vec::new(), is_whole: false };
    let mut reader = BodyReader::new(head.framing);
    let mut rest = bytes.split_off(head.length);
    loop {
        let piece = reader.read(&mut rest).map_err(Error::other)?;
        answer.body.extend_from_slice(&rest[piece.data]);
        if reader.is_done() {
            answer.is_whole = true;
            return Ok(answer);
        }
        if !reading.pause.is_zero() {
            tokio::time::sleep(reading.pause).await;
        }
        rest.resize(reading.piece, 0);
        // A reset within the body ends an incomplete body.
        let n = stream.read(&mut rest).await.unwrap_or(0);
        rest.truncate(n);
        if n == 0 {
            answer.is_whole = reader.close().is_ok();
            return Ok(answer);
        }
    }
}

/// Sends one request on its own connection.
pub async fn ask(to: SocketAddr, method: &str, path: &str, body: &str) -> Result<Answer> {
    let mut stream = connect(to, None).await?;
    stream.write_all(&request(method, path, body)).await?;
    read(&mut stream, Reading::QUICK).await
}
