//! Hand-off members in a client's request. An engine that reads them connects to the address that
//! they name, and reads or sends the KV blocks that they name, so that a client must not choose
//! them. They are searched wherever an engine reads them: at the top level, and in objects that are
//! copied into the sampling parameters. Escaped spellings count; `null` does not.

use serde_json::Value;
use serde_json::value::RawValue;

use super::Scan;
use crate::handoff_members::{is_in_requests, known};

/// Objects whose members engines copy into their sampling parameters.
const CONTAINERS: [&str; 6] =
    ["vllm_xargs", "extra_args", "sampling_params", "extra_body", "parameters", "nvext"];
/// Depth limit for nested containers, as `sampling_params.extra_args`; engines read no deeper ones.
const DEPTH_MAX: usize = 4;

/// Hand-off members in a client's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignHandoff {
    /// Name of the first one.
    pub name: String,
    /// Hosts and addresses that they name, without scheme and port.
    pub hosts: Vec<String>,
}

impl ForeignHandoff {
    /// Returns the name for `error.param`, if it is a listed one.
    pub fn param(&self) -> Option<&'static str> {
        known(self.name.as_bytes())
    }
}

impl Scan {
    /// Searches the body for hand-off members. For other requests it costs one comparison per
    /// top-level member.
    pub fn foreign_handoff(&self, body: &[u8]) -> Option<ForeignHandoff> {
        let mut found = None;
        for member in self.members.iter() {
            let name = member.name(body);
            let controls = is_in_requests(&name);
            if !controls && !CONTAINERS.iter().any(|container| container.as_bytes() == &*name) {
                continue;
            }
            let Ok(name) = std::str::from_utf8(&name) else { continue };
            // The body is valid JSON; a value that serde refuses cannot be an object.
            let Ok(value) = serde_json::from_slice::<&RawValue>(member.value.of(body)) else {
                continue;
            };
            let Ok(value) = serde_json::from_str::<Value>(value.get()) else { continue };
            match controls {
                true => note(&mut found, name, &value),
                false => search(&mut found, &value, DEPTH_MAX),
            }
        }
        found
    }
}

fn search(found: &mut Option<ForeignHandoff>, value: &Value, depth: usize) {
    let Value::Object(members) = value else { return };
    for (name, value) in members {
        if is_in_requests(name.as_bytes()) {
            note(found, name, value);
        } else if depth > 1 && CONTAINERS.contains(&name.as_str()) {
            search(found, value, depth - 1);
        }
    }
}

fn note(found: &mut Option<ForeignHandoff>, name: &str, value: &Value) {
    if value.is_null() {
        return;
    }
    let found =
        found.get_or_insert_with(|| ForeignHandoff { name: name.to_owned(), hosts: Vec::new() });
    hosts(&mut found.hosts, name, value, DEPTH_MAX * 2);
}

/// Collects strings under names that denote an address.
fn hosts(found: &mut Vec<String>, name: &str, value: &Value, depth: usize) {
    if depth == 0 {
        return;
    }
    match value {
        Value::String(text) if names_address(name) => found.push(host_of(text).to_owned()),
        Value::Array(list) => list.iter().for_each(|value| hosts(found, name, value, depth - 1)),
        Value::Object(members) => {
            members.iter().for_each(|(name, value)| hosts(found, name, value, depth - 1));
        }
        _ => {}
    }
}

fn names_address(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["host", "addr", "endpoint", "url", "ip"].iter().any(|word| name.contains(word))
}

/// Returns the host of `tcp://host:port/path`, `[v6]:port`, `host:port` or `host`.
fn host_of(text: &str) -> &str {
    let text = text.split_once("://").map_or(text, |(_, rest)| rest);
    let text = text.split('/').next().unwrap_or("");
    let text = text.rsplit_once('@').map_or(text, |(_, rest)| rest);
    if let Some(v6) = text.strip_prefix('[') {
        return v6.split(']').next().unwrap_or("");
    }
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => host,
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use crate::{Endpoint, scan};

    fn found(body: &str) -> Option<(String, Vec<String>)> {
        let scan = scan(Endpoint::ChatCompletions, body.as_bytes()).unwrap();
        scan.foreign_handoff(body.as_bytes()).map(|found| (found.name, found.hosts))
    }

    #[test]
    fn hand_off_members_are_found_wherever_engines_read_them() {
        for (body, name) in [
            (r#"{"kv_transfer_params":{"do_remote_prefill":true}}"#, "kv_transfer_params"),
            (r#"{"kv\u005ftransfer_params":{"x":1}}"#, "kv_transfer_params"),
            (r#"{"kv_transfer_params":null,"kv_transfer_params":{}}"#, "kv_transfer_params"),
            (r#"{"ec_transfer_params":{}}"#, "ec_transfer_params"),
            (r#"{"disaggregated_params":{"request_type":"context_only"}}"#, "disaggregated_params"),
            (r#"{"bootstrap_host":"h"}"#, "bootstrap_host"),
            (r#"{"bootstrap_room":7}"#, "bootstrap_room"),
            (r#"{"vllm_xargs":{"kv_transfer_params":{}}}"#, "kv_transfer_params"),
            (
                r#"{"sampling_params":{"extra_args":{"kv_transfer_params":{}}}}"#,
                "kv_transfer_params",
            ),
            (
                r#"{"sampling_params":{"extra_args":{"kv\u005ftransfer_params":{}}}}"#,
                "kv_transfer_params",
            ),
        ] {
            assert_eq!(found(body).map(|(name, _)| name).as_deref(), Some(name), "{body}");
        }
        for body in [
            "{}",
            r#"{"kv_transfer_params":null}"#,
            r#"{"messages":[{"content":"\"kv_transfer_params\":{}"}],"metadata":{"bootstrap":1}}"#,
            r#"{"messages":[{"kv_transfer_params":{}}]}"#,
            r#"{"tools":[{"function":{"parameters":{"bootstrap_host":"a tool's own"}}}]}"#,
        ] {
            assert_eq!(found(body), None, "{body}");
        }
    }

    #[test]
    fn the_named_hosts_are_collected() {
        let body = r#"{"kv_transfer_params":{"remote_host":"10.0.0.1","remote_port":5600,
            "remote_bootstrap_addr":"http://p:8998","peers":[{"endpoint":"tcp://[::1]:7"}]},
            "bootstrap_host":["a","b:9"]}"#;
        let (_, mut hosts) = found(body).unwrap();
        hosts.sort();
        assert_eq!(hosts, ["10.0.0.1", "::1", "a", "b", "p"]);
    }
}
