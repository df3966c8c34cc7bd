//! TensorRT-LLM's signature of a generation leg (docs/spec/engine-protocols.md#trtllm-auth):
//! HMAC-SHA256 of the two protected parameters in Python's canonical JSON. The key appears in no
//! message.

use ring::hmac;
use serde::Deserialize;
use serde_json::Value;
use std::fmt::Write;

/// Name of the header.
const HEADER: &str = "x-trtllm-disagg-auth";

#[derive(Deserialize)]
struct Protected {
    #[serde(default)]
    ctx_info_endpoint: Value,
    #[serde(default)]
    encoded_opaque_state: Value,
}

/// Returns the header for a generation leg with these parameters; `None` without a key, or if no
/// protected parameter is present.
pub(super) fn header(params: &[u8], key: Option<&[u8]>) -> Option<(&'static str, Box<str>)> {
    let protected: Protected = serde_json::from_slice(params).ok()?;
    if protected.ctx_info_endpoint.is_null() && protected.encoded_opaque_state.is_null() {
        return None;
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, key?);
    let tag = hmac::sign(&key, canonical(&protected).as_bytes());
    let mut signature = String::from("sha256=");
    for byte in tag.as_ref() {
        // Writing to a string does not fail.
        write!(signature, "{byte:02x}").ok();
    }
    Some((HEADER, signature.into()))
}

/// Formats as `json.dumps(sort_keys=True, separators=(",", ":"))` does.
fn canonical(protected: &Protected) -> String {
    let endpoint = match &protected.ctx_info_endpoint {
        Value::Array(several) => several.first().unwrap_or(&Value::Null),
        one => one,
    };
    let json = format!(
        "{{\"ctx_info_endpoint\":{endpoint},\"encoded_opaque_state\":{}}}",
        protected.encoded_opaque_state
    );
    let mut ascii = String::with_capacity(json.len());
    for character in json.chars() {
        if matches!(character, ' '..='~') {
            ascii.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            write!(ascii, "\\u{unit:04x}").ok();
        }
    }
    ascii
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values were made with Python's json and hmac.
    #[test]
    fn the_signature_equals_pythons() {
        for (params, expected) in GOLDEN {
            let header = header(params.as_bytes(), Some(b"secret"));
            assert_eq!(header.map(|(_, value)| value.into_string()), Some((*expected).to_owned()));
        }
    }

    #[test]
    fn there_is_no_signature_without_a_key_or_a_protected_parameter() {
        assert_eq!(header(GOLDEN[0].0.as_bytes(), None), None);
        let open = br#"{"request_type":"generation_only","encoded_opaque_state":null}"#;
        assert_eq!(header(open, Some(b"secret")), None);
    }

    const GOLDEN: &[(&str, &str)] = &[
        (
            r#"{"request_type":"generation_only","encoded_opaque_state":"aGk=","ctx_info_endpoint":null}"#,
            "sha256=03a72b5fca6f61e574f9c066c6a1a3c558f82745ffcd70e3d78e2a327c3fd963",
        ),
        (
            r#"{"ctx_dp_rank":0,"encoded_opaque_state":null,"ctx_info_endpoint":"tcp://10.0.0.1:5000"}"#,
            "sha256=9f231f1556947f2cc0d68b742964cb16e8662f6b41262d536be4f2692f786130",
        ),
        (
            r#"{"encoded_opaque_state":"\u00e9\"\ud83d\ude00\u007f/","ctx_info_endpoint":["tcp://a","tcp://b"]}"#,
            "sha256=a2aed9a789e03cb343b95c898e5023df29d9327ab69966a8d4a8d374e9eebbc3",
        ),
    ];
}
