//! A prefill leg paired with its decode leg by a shared transfer name: SGLang's bootstrap rooms,
//! TensorRT-LLM's generation-first mode. The response is sent only after the decode engine has read
//! the KV; a proxy that closes the leg earlier aborts the transfer.

use http::{Response, StatusCode};
use std::sync::Arc;
use std::time::Duration;

use crate::engine::EmulatedState;
use crate::error_response::ErrorResponse;
use crate::generate::{ActiveAnswers, json, refuse};
use crate::response_body::ResponseBody;
use crate::response_format::ResponseFormat;
use crate::scheduler::SchedulerCommand;
use crate::stats::EmulatorCounters;

/// Polling interval for the end of the transfer.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Releases the KV if the proxy disconnects before it was read: an aborted transfer.
struct PendingTransfer<'a> {
    engine: &'a Arc<EmulatedState>,
    name: &'a str,
}

impl Drop for PendingTransfer<'_> {
    fn drop(&mut self) {
        if let Ok(held) = self.engine.leases.end(self.name) {
            EmulatorCounters::add(&self.engine.counters.aborts, 1);
            self.engine.send_command(SchedulerCommand::Release(held.sequence));
        }
    }
}

/// Prefills, waits for the decode engine's read, and answers with the one token.
pub async fn prefill(
    mut answers: ActiveAnswers,
    shape: &ResponseFormat,
    name: &str,
) -> Response<ResponseBody> {
    let Some(feed) = answers.prefilled().await else {
        return refuse(&ErrorResponse::internal());
    };
    let engine = Arc::clone(&answers.engine);
    let room = PendingTransfer { engine: &engine, name };
    let taken = async {
        while engine.leases.holds(name) {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    let timeout = engine.config.handshake_timeout.to_duration();
    if tokio::time::timeout(timeout, taken).await.is_err() {
        EmulatorCounters::add(&engine.counters.errors, 1);
        return refuse(&ErrorResponse::internal());
    }
    drop(room);
    answers.finish();
    json(StatusCode::OK, shape.whole(&[&feed], None))
}
