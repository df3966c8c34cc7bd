//! One line of a watch: `{"type": …, "object": …}`.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::pod::Metadata;

/// An event of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent<T> {
    /// The object is new or has changed.
    Applied(T),
    /// The object was deleted, or its labels left the selector.
    Deleted(T),
    /// No change up to this resourceVersion.
    Bookmark(String),
    /// The server ends the watch with this HTTP status.
    Error {
        /// 410: the resourceVersion is too old.
        code: u16,
        /// The server's message.
        message: String,
        /// Seconds after which to try again, if the server names them.
        retry_after: Option<u32>,
    },
}

#[derive(Deserialize)]
struct WatchLine<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: Metadata,
}

/// A `Status` object of the API.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct KubeStatus {
    pub(crate) code: u16,
    pub(crate) message: String,
    pub(crate) details: StatusDetails,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct StatusDetails {
    pub(crate) retry_after_seconds: Option<u32>,
}

/// Parses a line.
///
/// # Errors
/// The line is not an event, or its object not a `T`.
pub fn parse<T: for<'de> Deserialize<'de>>(
    line: &[u8],
) -> Result<WatchEvent<T>, serde_json::Error> {
    let WatchLine { kind, object } = serde_json::from_slice(line)?;
    let object = object.get();
    match kind {
        "ADDED" | "MODIFIED" => serde_json::from_str(object).map(WatchEvent::Applied),
        "DELETED" => serde_json::from_str(object).map(WatchEvent::Deleted),
        "BOOKMARK" => {
            let bookmark: Bookmark = serde_json::from_str(object)?;
            Ok(WatchEvent::Bookmark(bookmark.metadata.resource_version))
        }
        "ERROR" => {
            let status: KubeStatus = serde_json::from_str(object)?;
            let retry_after = status.details.retry_after_seconds;
            Ok(WatchEvent::Error { code: status.code, message: status.message, retry_after })
        }
        other => Err(serde::de::Error::custom(format!("unknown type of event {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Pod;

    #[test]
    fn each_type_of_event_is_parsed() {
        let pod = r#"{"metadata":{"name":"a","resourceVersion":"7"},"spec":{"nodeName":"n"}}"#;
        let line =
            |kind: &str, object: &str| format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n");
        for kind in ["ADDED", "MODIFIED"] {
            let event = parse::<Pod>(line(kind, pod).as_bytes()).unwrap();
            assert!(matches!(event, WatchEvent::Applied(pod) if pod.metadata.name == "a"));
        }
        let event = parse::<Pod>(line("DELETED", pod).as_bytes()).unwrap();
        assert!(matches!(event, WatchEvent::Deleted(pod) if pod.metadata.resource_version == "7"));
        let event = parse::<Pod>(line("BOOKMARK", pod).as_bytes()).unwrap();
        assert_eq!(event, WatchEvent::Bookmark("7".into()));
        let status =
            r#"{"kind":"Status","code":429,"message":"busy","details":{"retryAfterSeconds":3}}"#;
        let event = parse::<Pod>(line("ERROR", status).as_bytes()).unwrap();
        let expected =
            WatchEvent::Error { code: 429, message: "busy".into(), retry_after: Some(3) };
        assert_eq!(event, expected);
        for wrong in
            ["", "{}", "{\"type\":\"NEW\",\"object\":{}}", "{\"type\":\"ADDED\",\"object\":[]"]
        {
            assert!(parse::<Pod>(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
