//! Websocket tunnel after a 101: forwards bytes in both directions, unparsed. A half-close is forwarded.
//! The tunnel ends when both directions are closed, when a connection fails, or on a time-out. Until
//! then it is charged as one stream on the backend.

use bytes::{Buf, Bytes};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tidegate_settings::HalfClose;
use tidegate_types::{Moment, Seconds};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;

use crate::dispatch::answer::UpgradedConnection;
use crate::dispatch::reservation::Reservation;
use crate::dispatch::settle::RequestRecord;
use crate::runtime::clock::Clock;
use crate::runtime::thread_buffer;
use crate::telemetry::request_log::RequestOutcome;
use crate::upstream::Socket;

/// Longest silence of the open direction after a half-close: a websocket peer answers a close frame
/// within a round trip.
const HALF_CLOSED_MAX: Seconds = Seconds(10.0);
/// Checks per shortest limit.
const CHECKS_PER_LIMIT: f64 = 4.0;

/// A websocket with its engine connection and reservation.
pub struct Tunnel {
    engine: Socket,
    to_client: Direction,
    reservation: Reservation,
    record: Box<RequestRecord>,
}

/// Time-outs of a tunnel.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Longest time without bytes in either direction.
    idle: Seconds,
    /// Longest time for which one direction's write may block.
    stall: Seconds,
}

struct Direction {
    /// Bytes read and not yet written.
    pending: Bytes,
    stage: DirectionState,
    /// Time of the last write.
    moved: Moment,
    /// The last write would have blocked.
    blocked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DirectionState {
    Open,
    /// End of file was read and is not forwarded yet.
    Ending,
    Ended,
}

/// The socket of a direction that failed.
enum SocketFault {
    Reading(io::Error),
    Writing(io::Error),
}

/// Reason for a tunnel's end.
#[derive(Debug, PartialEq, Eq)]
enum TunnelEnd {
    /// Both directions were closed.
    Whole,
    /// The client's connection failed or stalled.
    Client(&'static str),
    /// The engine's connection failed or stalled, or the tunnel was idle.
    Engine(String),
}

impl Direction {
    fn new(first: Bytes, now: Moment) -> Direction {
        Direction { pending: first, stage: DirectionState::Open, moved: now, blocked: false }
    }

    /// Forwards available bytes; ready once end of file was forwarded.
    fn poll<From, To>(
        &mut self,
        from: &mut From,
        to: &mut To,
        clock: Clock,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), SocketFault>>
    where
        From: AsyncRead + Unpin,
        To: AsyncWrite + Unpin,
    {
        loop {
            while !self.pending.is_empty() {
                let written = Pin::new(&mut *to).poll_write(context, &self.pending);
                self.blocked = written.is_pending();
                match ready!(written).map_err(SocketFault::Writing)? {
                    0 => {
                        return Poll::Ready(Err(SocketFault::Writing(
                            io::ErrorKind::WriteZero.into(),
                        )));
                    }
                    written => self.pending.advance(written),
                }
                self.moved = clock.now();
            }
            match self.stage {
                DirectionState::Open => {
                    match poll_read(from, context).map_err(SocketFault::Reading) {
                        Poll::Ready(read) => {
                            self.pending = read?;
                            if self.pending.is_empty() {
                                self.stage = DirectionState::Ending;
                            }
                        }
                        Poll::Pending => {
                            ready!(Pin::new(&mut *to).poll_flush(context))
                                .map_err(SocketFault::Writing)?;
                            return Poll::Pending;
                        }
                    }
                }
                DirectionState::Ending => {
                    // Fails if the peer has reset the connection.
                    ready!(Pin::new(&mut *to).poll_shutdown(context)).ok();
                    self.stage = DirectionState::Ended;
                }
                DirectionState::Ended => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// Returns the bytes of one read; empty at end of file.
fn poll_read(
    from: &mut (impl AsyncRead + Unpin),
    context: &mut Context<'_>,
) -> Poll<io::Result<Bytes>> {
    thread_buffer::with(|scratch| match ready!(thread_buffer::poll_read(from, context, scratch)) {
        Ok(read) => Poll::Ready(Ok(Bytes::copy_from_slice(&scratch[..read]))),
        // TLS closed without close_notify.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(Bytes::new())),
        Err(error) => Poll::Ready(Err(error)),
    })
}

impl Tunnel {
    /// Creates the tunnel of a connection that answered 101.
    pub fn new(
        switched: UpgradedConnection,
        mut reservation: Reservation,
        record: Box<RequestRecord>,
    ) -> Tunnel {
        reservation.presume_prefilled();
        let now = record.proxy.clock.now();
        record.live.start_streaming(now);
        let UpgradedConnection { first, socket } = switched;
        Tunnel { engine: socket, to_client: Direction::new(first, now), reservation, record }
    }

    /// Forwards bytes until the end. `ahead`: bytes received after the client's handshake. Dropping the
    /// future closes the engine's connection.
    pub async fn run<Io>(self, client: &mut Io, ahead: Vec<u8>, idle: Seconds)
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let Tunnel { mut engine, mut to_client, reservation, mut record } = self;
        let (clock, stall) = (record.proxy.clock, record.settings().values.server.client_stall);
        let cancels = record.settings().values.server.half_close == HalfClose::Cancel;
        let mut to_engine = Direction::new(Bytes::from(ahead), clock.now());
        let limits = Limits { idle, stall };
        let every = limits.check_interval();
        let mut check =
            Box::pin(tokio::time::sleep_until(clock.coarse_instant(clock.now() + every)));
        let end = poll_fn(|context| {
            let up = to_engine.poll(client, &mut engine, clock, context);
            if let Poll::Ready(Err(fault)) = up {
                return Poll::Ready(match fault {
                    SocketFault::Reading(_) => TunnelEnd::Client("the client left"),
                    SocketFault::Writing(error) => TunnelEnd::engine(&error),
                });
            }
            let heard = to_client.moved;
            let down = to_client.poll(&mut engine, client, clock, context);
            if to_client.moved != heard {
                record.live.received(to_client.moved);
            }
            match (up, down) {
                (_, Poll::Ready(Err(SocketFault::Reading(error)))) => {
                    Poll::Ready(TunnelEnd::engine(&error))
                }
                (_, Poll::Ready(Err(SocketFault::Writing(_)))) => {
                    Poll::Ready(TunnelEnd::Client("the client left"))
                }
                (Poll::Ready(_), Poll::Ready(_)) => Poll::Ready(TunnelEnd::Whole),
                (Poll::Ready(_), Poll::Pending) if cancels => {
                    Poll::Ready(TunnelEnd::Client("the client left"))
                }
                _ => poll_limits(limits, [&to_engine, &to_client], &mut check, clock, context),
            }
        })
        .await;
        drop((engine, reservation));
        match end {
            TunnelEnd::Whole => record.end(RequestOutcome::Done),
            TunnelEnd::Client(why) => record.explain(why),
            TunnelEnd::Engine(why) => {
                record.end(RequestOutcome::Cut);
                record.explain(why);
            }
        }
    }
}

/// Ready when a limit is exceeded.
fn poll_limits(
    limits: Limits,
    ways: [&Direction; 2],
    check: &mut Pin<Box<Sleep>>,
    clock: Clock,
    context: &mut Context<'_>,
) -> Poll<TunnelEnd> {
    while check.as_mut().poll(context).is_ready() {
        let now = clock.now();
        if let Some(end) = limits.exceeded(ways, now) {
            return Poll::Ready(end);
        }
        check.as_mut().reset(clock.coarse_instant(now + limits.check_interval()));
    }
    Poll::Pending
}

impl Limits {
    fn check_interval(self) -> Seconds {
        self.idle.min(self.stall).min(HALF_CLOSED_MAX) / CHECKS_PER_LIMIT
    }

    /// Returns the reason for the end if a limit is exceeded at `now`.
    fn exceeded(self, [to_engine, to_client]: [&Direction; 2], now: Moment) -> Option<TunnelEnd> {
        let quiet = now - to_engine.moved.max(to_client.moved);
        let half = |way: &Direction| way.stage == DirectionState::Ended;
        if (half(to_engine) || half(to_client)) && quiet >= HALF_CLOSED_MAX {
            return Some(TunnelEnd::Whole);
        }
        let stalls = |way: &Direction| way.blocked && now - way.moved >= self.stall;
        if stalls(to_client) {
            return Some(TunnelEnd::Client("the client does not read"));
        }
        if stalls(to_engine) {
            return Some(TunnelEnd::Engine("the engine does not read".to_owned()));
        }
        (quiet >= self.idle)
            .then(|| TunnelEnd::Engine(format!("no bytes in either direction for {}", self.idle)))
    }
}

impl TunnelEnd {
    fn engine(error: &io::Error) -> TunnelEnd {
        TunnelEnd::Engine(format!("the connection to the engine failed: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(stage: DirectionState, moved: f64, blocked: bool) -> Direction {
        let moved = Moment::START + Seconds(moved);
        Direction { pending: Bytes::new(), stage, moved, blocked }
    }

    #[test]
    fn each_limit_ends_a_tunnel_with_its_own_reason() {
        let limits = Limits { idle: Seconds(75.0), stall: Seconds(60.0) };
        let exceeded = |to_engine: Direction, to_client: Direction, now: f64| {
            limits.exceeded([&to_engine, &to_client], Moment::START + Seconds(now))
        };
        let open = |moved| way(DirectionState::Open, moved, false);
        assert_eq!(exceeded(open(0.0), open(50.0), 124.0), None);
        assert!(matches!(exceeded(open(0.0), open(50.0), 125.0), Some(TunnelEnd::Engine(_))));
        let blocked = |moved| way(DirectionState::Open, moved, true);
        assert_eq!(exceeded(open(99.0), blocked(40.0), 99.0), None);
        assert!(matches!(exceeded(open(99.0), blocked(40.0), 100.0), Some(TunnelEnd::Client(_))));
        assert!(matches!(exceeded(blocked(40.0), open(99.0), 100.0), Some(TunnelEnd::Engine(_))));
        let ended = way(DirectionState::Ended, 0.0, false);
        assert_eq!(exceeded(ended, open(20.0), 29.0), None);
        assert_eq!(
            exceeded(way(DirectionState::Ended, 0.0, false), open(20.0), 30.0),
            Some(TunnelEnd::Whole)
        );
        assert_eq!(limits.check_interval(), Seconds(2.5));
    }
}
