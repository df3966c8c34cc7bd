//! Destinations and formats of the log and the access log.

use std::fmt::{self, Write};
use std::io;
use std::sync::OnceLock;
use tidegate_settings::{AccessLog, LogFormat, LogSettings};
use tracing::field::Field;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::{EnvFilter, FilterFn, LevelFilter};
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::telemetry::access_log::{self, TARGET};

/// Most lines buffered for a writer: one second at 16,000 requests a second. Each slot has 32
/// bytes, allocated at start-up.
const LINES_MAX: usize = 1 << 14;

/// Keeps the writer threads alive; dropping it flushes the buffered lines.
pub struct LogGuard(#[expect(dead_code, reason = "held for its drop")] Vec<WorkerGuard>);

/// Starts the log on stderr and the access log as the settings say. Lines are written by separate
/// threads; if a thread cannot keep up, lines are dropped.
///
/// Only the first call in a process has an effect.
pub fn init(settings: &LogSettings) -> LogGuard {
    let (errors, errors_guard) = writer(io::stderr());
    let mut guards = vec![errors_guard];
    let (filter, level) = reload::Layer::new(filter(&settings.level));
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
    let has_access_log = access.is_some();
    // Further proxies in the same process use the first one's log.
    if tracing_subscriber::registry().with(lines).with(access).try_init().is_ok() {
        access_log::set_enabled(has_access_log);
        LEVEL.set(level).ok();
    }
    LogGuard(guards)
}

/// The filter of the process's log.
static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Changes the level of the process's log.
pub fn set_level(level: &str) {
    let Some(handle) = LEVEL.get() else { return };
    if let Err(error) = handle.reload(filter(level)) {
        tracing::error!("log.level was not changed: {error}");
    }
}

fn filter(level: &str) -> EnvFilter {
    EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).parse_lossy(level)
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
        LogFormat::Text => {
            let fields = debug_fn(field).delimited(" ");
            layer().with_ansi(false).fmt_fields(fields).with_writer(to).boxed()
        }
    }
}

/// Formats one field of a text line. Strings are quoted by `Debug`. Messages and fields recorded by
/// `Display` are not quoted and may contain text from a client or engine, so control characters are
/// escaped.
fn field(to: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    if field.name() != "message" {
        write!(to, "{}=", field.name())?;
    }
    write!(Escaping(to), "{value:?}")
}

/// Escapes characters that end a line or change a terminal's state.
struct Escaping<'a, 'b>(&'a mut Writer<'b>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let ends_line = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
        let mut rest = text;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| ends_line(*c)) {
            write!(self.0, "{}{}", &rest[..at], c.escape_default())?;
            rest = &rest[at + c.len_utf8()..];
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex, PoisonError};

    /// A writer into memory.
    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn text_from_clients_cannot_forge_log_lines_or_fields() {
        let hostile = "a\nINFO forged\r\" status=200 \u{1b}[31m\u{85}\u{2028}";
        for kind in [LogFormat::Text, LogFormat::Json] {
            let page = Page::default();
            let (to, guard) = writer(page.clone());
            let lines = tracing_subscriber::registry().with(format(kind, to));
            tracing::subscriber::with_default(lines, || {
                tracing::info!(
                    request_id = hostile,
                    model = Some(hostile),
                    path = hostile,
                    status = 404
                );
                tracing::warn!(request = %hostile, "no backend serves {hostile}");
            });
            drop(guard);
            let text = page.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let text = String::from_utf8(text).unwrap();
            assert_eq!(text.lines().count(), 2, "{kind:?}: {text:?}");
            // JSON escapes no characters beyond ASCII.
            let is_text = kind == LogFormat::Text;
            let is_raw = |c: char| c.is_control() && c != '\n' && (is_text || c.is_ascii());
            assert!(!text.contains(is_raw), "{kind:?}: {text:?}");
            let first = text.lines().next().unwrap_or_default();
            let bare = first.matches("\" status=200").count();
            let escaped = first.matches("\\\" status=200").count();
            assert_eq!(bare, escaped, "quotes are escaped: {text:?}");
        }
    }
}
