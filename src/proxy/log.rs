//! Where log lines and the access log go.

use std::io;
use tidegate_settings::{AccessLog, LogFormat, LogSettings};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{EnvFilter, FilterFn, LevelFilter};
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::access_log::{self, TARGET};

/// Lines that may wait for a writer: a second's worth at 16,000 requests a second. Each has its slot
/// from the start, 32 bytes.
const LINES_MAX: usize = 1 << 14;

/// Keeps the writers' threads alive; dropping it writes what is left.
pub struct LogGuard(#[expect(dead_code, reason = "held for its drop")] Vec<WorkerGuard>);

/// Send log lines to stderr and the access log where the settings say. Lines are written by a
/// thread of their own; when it cannot keep up they are dropped, never waited for.
///
/// Only the first call of a process has an effect.
pub fn init(settings: &LogSettings) -> LogGuard {
    let (errors, errors_guard) = writer(io::stderr());
    let mut guards = vec![errors_guard];
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse_lossy(&settings.level);
    let not_access = FilterFn::new(|metadata| metadata.target() != TARGET);
    let lines = format(settings.format, errors).with_filter(filter).with_filter(not_access);
    let access = match settings.access {
        AccessLog::Off => None,
        AccessLog::Stdout => Some(writer(io::stdout())),
        AccessLog::Stderr => Some(writer(io::stderr())),
    };
    let access = access.map(|(to, guard)| {
        guards.push(guard);
        let only_access = FilterFn::new(|metadata| metadata.target() == TARGET);
        format(settings.format, to).with_filter(only_access)
    });
    let wanted = access.is_some();
    // A second proxy in one process logs where the first one does.
    if tracing_subscriber::registry().with(lines).with(access).try_init().is_ok() {
        access_log::turn(wanted);
    }
    LogGuard(guards)
}

fn writer<W: io::Write + Send + 'static>(to: W) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX).finish(to)
}

fn format<S>(format: LogFormat, to: NonBlocking) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    match format {
        LogFormat::Json => layer().json().flatten_event(true).with_writer(to).boxed(),
        LogFormat::Text => layer().with_ansi(false).with_writer(to).boxed(),
    }
}
