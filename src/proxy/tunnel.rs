//! A websocket after its 101: the bytes of each side go to the other as they come. An end of one side
//! is passed on; the tunnel ends when both have ended, when a connection fails, or after a time without
//! bytes. It holds its place on the backend until then.

use bytes::{Buf, Bytes};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tidegate_settings::HalfClose;
use tidegate_types::{Moment, Seconds};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;

use crate::answer::Switched;
use crate::clock::Clock;
use crate::scratch;
use crate::seat::Seat;
use crate::settle::{Ended, Record};
use crate::upstream::Socket;

/// Once one side has ended, the other one may be silent for so long: a websocket's peer answers a
/// close within a round trip.
const HALF_CLOSED_MAX: Seconds = Seconds(10.0);
/// Limits are looked at so often in the shortest of them.
const LOOKS: f64 = 4.0;

/// A websocket, its connection to the engine and its place there.
pub struct Tunnel {
    engine: Socket,
    to_client: Way,
    seat: Seat,
    record: Box<Record>,
}

/// How long a tunnel may go without bytes.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// In both directions.
    idle: Seconds,
    /// In one direction whose reader takes nothing.
    stall: Seconds,
}

/// One direction.
struct Way {
    /// Read and not yet written.
    pending: Bytes,
    stage: Stage,
    /// When bytes were last written.
    moved: Moment,
    /// The writer waits for its reader.
    blocked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    /// The sender has ended; the reader is still to be told.
    Ending,
    Ended,
}

/// Which socket of a direction failed.
enum Fault {
    Reading(io::Error),
    Writing(io::Error),
}

/// How a tunnel ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Both sides have ended.
    Whole,
    /// The client's connection failed, or it reads nothing.
    Client(&'static str),
    /// The engine's did.
    Engine(String),
}

impl Way {
    fn new(first: Bytes, now: Moment) -> Way {
        Way { pending: first, stage: Stage::Open, moved: now, blocked: false }
    }

    /// Moves what is there; ready when the end was passed on.
    fn poll<From, To>(
        &mut self,
        from: &mut From,
        to: &mut To,
        clock: Clock,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Fault>>
    where
        From: AsyncRead + Unpin,
        To: AsyncWrite + Unpin,
    {
        loop {
            while !self.pending.is_empty() {
                let written = Pin::new(&mut *to).poll_write(context, &self.pending);
                self.blocked = written.is_pending();
                match ready!(written).map_err(Fault::Writing)? {
                    0 => return Poll::Ready(Err(Fault::Writing(io::ErrorKind::WriteZero.into()))),
                    written => self.pending.advance(written),
                }
                self.moved = clock.now();
            }
            match self.stage {
                Stage::Open => match poll_read(from, context).map_err(Fault::Reading) {
                    Poll::Ready(read) => {
                        self.pending = read?;
                        if self.pending.is_empty() {
                            self.stage = Stage::Ending;
                        }
                    }
                    Poll::Pending => {
                        ready!(Pin::new(&mut *to).poll_flush(context)).map_err(Fault::Writing)?;
                        return Poll::Pending;
                    }
                },
                Stage::Ending => {
                    // A socket that is gone needs no end.
                    ready!(Pin::new(&mut *to).poll_shutdown(context)).ok();
                    self.stage = Stage::Ended;
                }
                Stage::Ended => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// What came in one read; empty at the end.
fn poll_read(
    from: &mut (impl AsyncRead + Unpin),
    context: &mut Context<'_>,
) -> Poll<io::Result<Bytes>> {
    scratch::with(|scratch| match ready!(scratch::poll_read(from, context, scratch)) {
        Ok(read) => Poll::Ready(Ok(Bytes::copy_from_slice(&scratch[..read]))),
        // TLS that ends without its own farewell.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(Bytes::new())),
        Err(error) => Poll::Ready(Err(error)),
    })
}

impl Tunnel {
    /// A websocket whose 101 is here.
    pub fn new(switched: Switched, mut seat: Seat, record: Box<Record>) -> Tunnel {
        seat.presumed_begun();
        let now = record.proxy.clock.now();
        record.live.flows(now);
        let Switched { first, socket } = switched;
        Tunnel { engine: socket, to_client: Way::new(first, now), seat, record }
    }

    /// Carry bytes until the end. `ahead`: what the client has sent behind its handshake. Dropping the
    /// future closes the engine's connection.
    pub async fn run<Io>(self, client: &mut Io, ahead: Vec<u8>, idle: Seconds)
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let Tunnel { mut engine, mut to_client, seat, mut record } = self;
        let (clock, stall) = (record.proxy.clock, record.proxy.client_stall);
        let cancels = record.proxy.half_close == HalfClose::Cancel;
        let mut to_engine = Way::new(Bytes::from(ahead), clock.now());
        let limits = Limits { idle, stall };
        let every = limits.look_every();
        let mut look =
            Box::pin(tokio::time::sleep_until(clock.coarse_instant(clock.now() + every)));
        let end = poll_fn(|context| {
            let up = to_engine.poll(client, &mut engine, clock, context);
            if let Poll::Ready(Err(fault)) = up {
                return Poll::Ready(match fault {
                    Fault::Reading(_) => End::Client("the client left"),
                    Fault::Writing(error) => End::engine(&error),
                });
            }
            let heard = to_client.moved;
            let down = to_client.poll(&mut engine, client, clock, context);
            if to_client.moved != heard {
                record.live.heard(to_client.moved);
            }
            match (up, down) {
                (_, Poll::Ready(Err(Fault::Reading(error)))) => Poll::Ready(End::engine(&error)),
                (_, Poll::Ready(Err(Fault::Writing(_)))) => {
                    Poll::Ready(End::Client("the client left"))
                }
                (Poll::Ready(_), Poll::Ready(_)) => Poll::Ready(End::Whole),
                (Poll::Ready(_), Poll::Pending) if cancels => {
                    Poll::Ready(End::Client("the client left"))
                }
                _ => poll_limits(limits, [&to_engine, &to_client], &mut look, clock, context),
            }
        })
        .await;
        drop((engine, seat));
        match end {
            End::Whole => record.ended = Ended::Done,
            End::Client(why) => record.problem = Some(why.to_owned()),
            End::Engine(why) => {
                record.ended = Ended::Cut;
                record.problem = Some(why);
            }
        }
    }
}

/// Ready when one of the limits is over; looks again later otherwise.
fn poll_limits(
    limits: Limits,
    ways: [&Way; 2],
    look: &mut Pin<Box<Sleep>>,
    clock: Clock,
    context: &mut Context<'_>,
) -> Poll<End> {
    while look.as_mut().poll(context).is_ready() {
        let now = clock.now();
        if let Some(end) = limits.over(ways, now) {
            return Poll::Ready(end);
        }
        look.as_mut().reset(clock.coarse_instant(now + limits.look_every()));
    }
    Poll::Pending
}

impl Limits {
    fn look_every(self) -> Seconds {
        self.idle.min(self.stall).min(HALF_CLOSED_MAX) / LOOKS
    }

    /// What has taken too long at `now`.
    fn over(self, [to_engine, to_client]: [&Way; 2], now: Moment) -> Option<End> {
        let quiet = now - to_engine.moved.max(to_client.moved);
        let half = |way: &Way| way.stage == Stage::Ended;
        if (half(to_engine) || half(to_client)) && quiet >= HALF_CLOSED_MAX {
            return Some(End::Whole);
        }
        let stalls = |way: &Way| way.blocked && now - way.moved >= self.stall;
        if stalls(to_client) {
            return Some(End::Client("the client does not read"));
        }
        if stalls(to_engine) {
            return Some(End::Engine("the engine does not read".to_owned()));
        }
        (quiet >= self.idle)
            .then(|| End::Engine(format!("no bytes in either direction for {}", self.idle)))
    }
}

impl End {
    fn engine(error: &io::Error) -> End {
        End::Engine(format!("the connection to the engine failed: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(stage: Stage, moved: f64, blocked: bool) -> Way {
        let moved = Moment::START + Seconds(moved);
        Way { pending: Bytes::new(), stage, moved, blocked }
    }

    #[test]
    fn each_limit_ends_a_tunnel_with_its_own_reason() {
        let limits = Limits { idle: Seconds(75.0), stall: Seconds(60.0) };
        let over = |to_engine: Way, to_client: Way, now: f64| {
            limits.over([&to_engine, &to_client], Moment::START + Seconds(now))
        };
        let open = |moved| way(Stage::Open, moved, false);
        assert_eq!(over(open(0.0), open(50.0), 124.0), None);
        assert!(matches!(over(open(0.0), open(50.0), 125.0), Some(End::Engine(_))));
        let blocked = |moved| way(Stage::Open, moved, true);
        assert_eq!(over(open(99.0), blocked(40.0), 99.0), None);
        assert!(matches!(over(open(99.0), blocked(40.0), 100.0), Some(End::Client(_))));
        assert!(matches!(over(blocked(40.0), open(99.0), 100.0), Some(End::Engine(_))));
        let ended = way(Stage::Ended, 0.0, false);
        assert_eq!(over(ended, open(20.0), 29.0), None);
        assert_eq!(over(way(Stage::Ended, 0.0, false), open(20.0), 30.0), Some(End::Whole));
        assert_eq!(limits.look_every(), Seconds(2.5));
    }
}
