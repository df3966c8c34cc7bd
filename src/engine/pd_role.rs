//! vLLM's role switch (docs/spec/engine-protocols.md#vllm-pd-role, RFC 56133): the status, the call
//! and the headers of each leg as values. The proxy drains, calls and waits for the new epoch.

use bytes::Bytes;
use serde::Deserialize;
use tidegate_types::{Role, Seconds};

/// Path of the status (GET) and of the call (POST); requires `pd_role` in `--kv-transfer-config`.
pub const PATH: &str = "/v1/pd_role";
/// Header of each leg: the engine's role.
pub const ROLE_HEADER: &str = "x-vllm-pd-role";
/// Header of each leg: the engine's epoch.
pub const EPOCH_HEADER: &str = "x-vllm-pd-epoch";
/// Longest `drain_timeout` that the engine accepts.
const DRAIN_TIMEOUT_MAX: Seconds = Seconds(3600.0);

/// State of an engine's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwitchPhase {
    /// It admits legs of its role and epoch.
    Ready,
    /// It is changing its role, or going back to the old one, and admits nothing.
    Changing,
    /// It admits nothing until an operator restarts it.
    Failed,
}

/// Role, epoch and phase of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PdRoleStatus {
    /// The role in force.
    pub role: Role,
    /// Number of role switches since its start.
    pub epoch: u64,
    /// Whether it admits legs.
    pub phase: SwitchPhase,
    /// Reason for the failure of the last switch.
    pub error: Option<String>,
}

#[derive(Deserialize)]
struct StatusWire {
    role: String,
    epoch: u64,
    phase: String,
    #[serde(default)]
    error: Option<String>,
}

/// Parses a status: the answer to GET and to an accepted POST, and the body of a refused leg (409).
/// `None` for any other body.
pub fn read_status(answer: &[u8]) -> Option<PdRoleStatus> {
    let wire: StatusWire = serde_json::from_slice(answer).ok()?;
    let role = match wire.role.as_str() {
        "prefill" => Role::Prefill,
        "decode" => Role::Decode,
        _ => return None,
    };
    let phase = match wire.phase.as_str() {
        "ready" => SwitchPhase::Ready,
        "failed" => SwitchPhase::Failed,
        // draining, preparing, committing, rolling_back
        _ => SwitchPhase::Changing,
    };
    Some(PdRoleStatus { role, epoch: wire.epoch, phase, error: wire.error })
}

/// Formats the body of the call. The engine refuses an `epoch` that is no longer its own. It goes back
/// to its old role if it is not drained within `drain`.
pub fn switch_body(role: Role, epoch: u64, drain: Seconds) -> Bytes {
    let drain = drain.max(Seconds(1.0)).min(DRAIN_TIMEOUT_MAX).get();
    let body =
        format!("{{\"role\":\"{role}\",\"expected_epoch\":{epoch},\"drain_timeout\":{drain:.0}}}");
    Bytes::from(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_from_answers_and_refusals() {
        let status = |phase: &str| {
            read_status(
                format!(
                    "{{\"error\":\"P/D admission rejected\",\"role\":\"decode\",\"epoch\":3,\
                     \"phase\":\"{phase}\",\"target_role\":null,\"active_requests\":0,\
                     \"transition_seconds\":0.1}}"
                )
                .as_bytes(),
            )
            .map(|status| (status.role, status.epoch, status.phase))
        };
        assert_eq!(status("ready"), Some((Role::Decode, 3, SwitchPhase::Ready)));
        for phase in ["draining", "preparing", "committing", "rolling_back"] {
            assert_eq!(status(phase), Some((Role::Decode, 3, SwitchPhase::Changing)), "{phase}");
        }
        assert_eq!(status("failed"), Some((Role::Decode, 3, SwitchPhase::Failed)));
        let refused = b"{\"error\":\"This endpoint is unsupported with runtime P/D switching\"}";
        assert_eq!(read_status(refused), None);
        assert_eq!(read_status(b"{\"detail\":\"Stale role epoch\"}"), None);
    }

    #[test]
    fn the_call_names_the_epoch_that_it_replaces() {
        assert_eq!(
            switch_body(Role::Decode, 2, Seconds(119.6)),
            r#"{"role":"decode","expected_epoch":2,"drain_timeout":120}"#
        );
        let late = switch_body(Role::Prefill, 0, Seconds(-3.0));
        assert!(late.ends_with(b"\"drain_timeout\":1}"), "the engine requires a positive number");
    }
}
