//! SGLang's role switch (docs/spec/engine-protocols.md#sglang-role-switch): the call and its
//! answers as values. The proxy drains, calls and verifies.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tidegate_types::Role;

/// Path of the call; requires `--enable-pd-role-switch`.
pub const SWITCH_PATH: &str = "/pd_role_switch";
/// Path that reports the current role.
pub const INFO_PATH: &str = "/server_info";

/// Outcome of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwitchOutcome {
    /// The engine has the new role, or had it already.
    Yes,
    /// The engine still has requests; call again.
    NotIdle,
    /// Refused or failed.
    No {
        /// The engine still works in its old role; otherwise it must be restarted.
        safe_to_restore: bool,
        /// Reason given by the engine.
        message: String,
    },
}

/// CUDA graphs for decode that an engine has captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeGraphs {
    /// Batch sizes, raw JSON.
    sizes: String,
    /// Their memory in GB, raw JSON.
    memory_gb: String,
}

#[derive(Deserialize)]
struct SwitchAnswer<'a> {
    success: bool,
    #[serde(default)]
    message: String,
    #[serde(default)]
    safe_to_restore: bool,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ServerInfo<'a> {
    #[serde(borrow, default)]
    internal_states: Vec<InternalState<'a>>,
}

#[derive(Deserialize)]
struct InternalState<'a> {
    disaggregation_mode: Option<&'a str>,
    #[serde(borrow)]
    decode_cuda_graph_bs: Option<&'a RawValue>,
    #[serde(borrow)]
    decode_cuda_graph_memory_gb: Option<&'a RawValue>,
}

/// Formats the body of the call. An engine that has never decoded needs the memory size of its
/// future decode graphs; a decode peer's graphs supply it.
pub fn switch_body(role: Role, peers: Option<&DecodeGraphs>) -> Bytes {
    let graphs = peers.filter(|_| role == Role::Decode).map(|graphs| {
        let DecodeGraphs { sizes, memory_gb } = graphs;
        format!(",\"decode_cuda_graph_bs\":{sizes},\"decode_cuda_graph_memory_gb\":{memory_gb}")
    });
    Bytes::from(format!("{{\"new_role\":\"{role}\"{}}}", graphs.unwrap_or_default()))
}

/// Parses the answer, whatever its status. An unreadable answer counts as unsafe to restore.
pub fn read_switch(answer: &[u8]) -> SwitchOutcome {
    match serde_json::from_slice::<SwitchAnswer<'_>>(answer) {
        Ok(SwitchAnswer { success: true, .. }) => SwitchOutcome::Yes,
        Ok(answer) if answer.message.contains("not idle") => SwitchOutcome::NotIdle,
        Ok(SwitchAnswer { message, safe_to_restore, error, .. }) => {
            let message = error.map_or(message, |error| error.get().to_owned());
            SwitchOutcome::No { safe_to_restore, message }
        }
        Err(error) => SwitchOutcome::No { safe_to_restore: false, message: error.to_string() },
    }
}

/// Returns the current role; `None` if there is none, or it is not reported. The launch arguments
/// keep the initial role, so only the internal states count.
pub fn role_now(info: &[u8]) -> Option<Role> {
    let info: ServerInfo<'_> = serde_json::from_slice(info).ok()?;
    let (first, rest) = info.internal_states.split_first()?;
    // One state per data-parallel rank.
    if rest.iter().any(|state| state.disaggregation_mode != first.disaggregation_mode) {
        return None;
    }
    match first.disaggregation_mode? {
        "prefill" => Some(Role::Prefill),
        "decode" => Some(Role::Decode),
        _ => None,
    }
}

/// Returns the decode graphs that an engine reports.
pub fn decode_graphs(info: &[u8]) -> Option<DecodeGraphs> {
    let info: ServerInfo<'_> = serde_json::from_slice(info).ok()?;
    let state = info.internal_states.first()?;
    let sizes = given(state.decode_cuda_graph_bs)?.to_owned();
    let memory_gb = given(state.decode_cuda_graph_memory_gb)?.to_owned();
    Some(DecodeGraphs { sizes, memory_gb })
}

fn given(raw: Option<&RawValue>) -> Option<&str> {
    raw.map(RawValue::get).filter(|raw| *raw != "null")
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &[u8] = br#"{"version":"0.5.23","disaggregation_mode":"prefill","internal_states":[
        {"disaggregation_mode":"decode","decode_cuda_graph_bs":[1,2, 4],"decode_cuda_graph_memory_gb":1.70}]}"#;

    #[test]
    fn the_call_includes_the_size_of_the_decode_graphs() {
        let graphs = decode_graphs(INFO);
        let decode = switch_body(Role::Decode, graphs.as_ref());
        let expected = r#"{"new_role":"decode","decode_cuda_graph_bs":[1,2, 4],"decode_cuda_graph_memory_gb":1.70}"#;
        assert_eq!(decode, expected);
        assert_eq!(switch_body(Role::Prefill, graphs.as_ref()), r#"{"new_role":"prefill"}"#);
        assert_eq!(decode_graphs(br#"{"internal_states":[{"decode_cuda_graph_bs":null}]}"#), None);
    }

    #[test]
    fn the_role_is_that_of_the_internal_states() {
        assert_eq!(role_now(INFO), Some(Role::Decode));
        let two = |a, b| {
            let state = |mode| format!("{{\"disaggregation_mode\":\"{mode}\"}}");
            role_now(format!("{{\"internal_states\":[{},{}]}}", state(a), state(b)).as_bytes())
        };
        assert_eq!(two("prefill", "prefill"), Some(Role::Prefill));
        assert_eq!(two("prefill", "decode"), None, "half of it has switched");
        assert_eq!(two("null", "null"), None);
        assert_eq!(role_now(b"<html>"), None);
    }

    #[test]
    fn an_answer_means_done_busy_or_failed() {
        let answer = |success, message: &str, safe| {
            read_switch(
                format!(
                    "{{\"success\":{success},\"message\":\"{message}\",\"old_role\":\"prefill\",\
                     \"new_role\":\"decode\",\"safe_to_restore\":{safe}}}"
                )
                .as_bytes(),
            )
        };
        assert_eq!(answer(true, "ok", false), SwitchOutcome::Yes);
        let busy = "instance is not idle; drain all requests before switching";
        assert_eq!(answer(false, busy, true), SwitchOutcome::NotIdle);
        for safe_to_restore in [true, false] {
            let no = SwitchOutcome::No { safe_to_restore, message: "no headroom".to_owned() };
            assert_eq!(answer(false, "no headroom", safe_to_restore), no);
        }
        assert!(matches!(read_switch(b"oops"), SwitchOutcome::No { safe_to_restore: false, .. }));
    }
}
