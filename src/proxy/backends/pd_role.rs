//! Status of a vLLM engine that enforces its role (docs/spec/engine-protocols.md#vllm-pd-role).

use tidegate_engine::Family;
use tidegate_engine::pd_role::{PATH, PdRoleStatus, SwitchPhase, read_status};
use tidegate_signals::facts::DisaggregationMode;
use tidegate_types::Seconds;

use crate::backends::fleet::Backend;
use crate::backends::introspect::{Answered, read};

/// Answer of an engine to a query of its status.
#[derive(Debug)]
pub(crate) enum PdRoleAnswer {
    /// Its status.
    Status(PdRoleStatus),
    /// The engine has no role switch: it takes legs of both roles.
    Absent,
    /// No answer, or an unreadable one.
    None,
}

/// Queries the status and keeps the epoch. Warns once about an engine without a role switch.
pub(crate) async fn query(backend: &Backend, timeout: Seconds) -> PdRoleAnswer {
    match read(&backend.pool, PATH, timeout).await {
        Answered::Body(body) => match read_status(&body) {
            Some(status) => {
                backend.epoch.set(status.epoch);
                PdRoleAnswer::Status(status)
            }
            None => PdRoleAnswer::None,
        },
        Answered::Missing => {
            if backend.epoch.set_absent() {
                tracing::warn!(backend = %backend.name, "the engine has no {PATH}: its role changes by routing alone; remove role_switch, or set pd_role in its --kv-transfer-config");
            }
            PdRoleAnswer::Absent
        }
        Answered::None => PdRoleAnswer::None,
    }
}

/// The role in which an engine of this family runs; `None` for other families, and during a switch.
pub(crate) async fn mode(backend: &Backend, timeout: Seconds) -> Option<DisaggregationMode> {
    if backend.family != Family::VllmPdRole {
        return None;
    }
    match query(backend, timeout).await {
        PdRoleAnswer::Status(status) if status.phase == SwitchPhase::Ready => {
            Some(DisaggregationMode::Half(status.role))
        }
        _ => None,
    }
}
