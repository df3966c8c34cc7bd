//! Top-level members of a body and their simple types, with pydantic's error messages. `null`
//! counts as absent. Values stay raw until they are read, so prompts are not copied.

use serde_json::value::RawValue;

use super::BodyMembers;
use crate::error_response::ErrorResponse;

/// Parses the members of a body.
pub fn raw_members(body: &[u8]) -> Result<BodyMembers<'_>, ErrorResponse> {
    serde_json::from_slice(body).map_err(|error| {
        if error.is_data() {
            let message = "Input should be a valid dictionary";
            return ErrorResponse::wrong_type("", "model_attributes_type", message, "...");
        }
        let message = format!("JSON decode error: {error}").replace('\'', "`");
        ErrorResponse::wrong_type(&error.column().to_string(), "json_invalid", &message, "{}")
    })
}

/// Returns a member that is present and not null.
pub fn given<'a>(members: &BodyMembers<'a>, member: &str) -> Option<&'a RawValue> {
    members.get(member).copied().filter(|raw| raw.get() != "null")
}

/// Reads a boolean member.
pub fn boolean(members: &BodyMembers<'_>, member: &str) -> Result<Option<bool>, ErrorResponse> {
    typed(members, member, "bool_parsing", "Input should be a valid boolean")
}

/// Reads an integer member.
pub fn integer(members: &BodyMembers<'_>, member: &str) -> Result<Option<i64>, ErrorResponse> {
    typed(members, member, "int_type", "Input should be a valid integer")
}

/// Reads a string member.
pub fn string(members: &BodyMembers<'_>, member: &str) -> Result<Option<String>, ErrorResponse> {
    typed(members, member, "string_type", "Input should be a valid string")
}

/// Formats a value as pydantic does: strings in single quotes, containers described.
pub fn shown(raw: &RawValue) -> String {
    match raw.get().as_bytes().first() {
        Some(b'"') => {
            let text: String = serde_json::from_str(raw.get()).unwrap_or_default();
            let cut: String = text.chars().take(200).collect();
            format!("'{cut}'")
        }
        Some(b'[' | b'{') => "...".to_owned(),
        _ => raw.get().to_owned(),
    }
}

fn typed<'a, T: serde::Deserialize<'a>>(
    members: &BodyMembers<'a>,
    member: &str,
    kind: &str,
    message: &str,
) -> Result<Option<T>, ErrorResponse> {
    let Some(raw) = given(members, member) else { return Ok(None) };
    serde_json::from_str(raw.get())
        .map(Some)
        .map_err(|_| ErrorResponse::wrong_type(member, kind, message, &shown(raw)))
}
