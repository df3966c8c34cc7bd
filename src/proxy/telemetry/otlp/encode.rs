//! Spans as JSON of OTLP (`ExportTraceServiceRequest`): ids in hex, 64-bit integers as text, enums as
//! numbers.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// A span.
pub(crate) struct OtlpSpan<'a> {
    /// 32 hex digits.
    pub trace: &'a str,
    /// 16 hex digits.
    pub id: &'a str,
    pub parent: Option<&'a str>,
    pub name: &'a str,
    pub kind: SpanKind,
    /// Nanoseconds since 1970.
    pub start: u64,
    pub end: u64,
    pub attributes: Vec<SpanAttribute<'a>>,
    /// `None`: no error.
    pub status: Option<SpanStatus<'a>>,
}

/// `Span.SpanKind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpanKind {
    Internal = 1,
    Server = 2,
    Client = 3,
}

/// The status of a span that failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpanStatus<'a> {
    pub message: &'a str,
}

/// A key with its value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpanAttribute<'a> {
    key: &'a str,
    value: Value<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Text(&'a str),
    Number(u64),
}

/// `STATUS_CODE_ERROR`.
const ERROR: u8 = 2;
/// The trace is sampled.
const SAMPLED: u32 = 1;

impl<'a> SpanAttribute<'a> {
    pub(crate) fn text(key: &'a str, text: &'a str) -> SpanAttribute<'a> {
        SpanAttribute { key, value: Value::Text(text) }
    }

    pub(crate) fn number(key: &'a str, number: u64) -> SpanAttribute<'a> {
        SpanAttribute { key, value: Value::Number(number) }
    }
}

impl Serialize for SpanAttribute<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("key", self.key)?;
        map.serialize_entry("value", &self.value)?;
        map.end()
    }
}

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        match self {
            Value::Text(text) => map.serialize_entry("stringValue", text)?,
            Value::Number(number) => map.serialize_entry("intValue", &number.to_string())?,
        }
        map.end()
    }
}

impl Serialize for SpanStatus<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("code", &ERROR)?;
        map.serialize_entry("message", self.message)?;
        map.end()
    }
}

impl Serialize for OtlpSpan<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("traceId", self.trace)?;
        map.serialize_entry("spanId", self.id)?;
        if let Some(parent) = self.parent {
            map.serialize_entry("parentSpanId", parent)?;
        }
        map.serialize_entry("flags", &SAMPLED)?;
        map.serialize_entry("name", self.name)?;
        map.serialize_entry("kind", &(self.kind as u8))?;
        map.serialize_entry("startTimeUnixNano", &self.start.to_string())?;
        map.serialize_entry("endTimeUnixNano", &self.end.to_string())?;
        map.serialize_entry("attributes", &self.attributes)?;
        if let Some(status) = &self.status {
            map.serialize_entry("status", status)?;
        }
        map.end()
    }
}

/// The body of a request to the collector, while spans are added.
pub(crate) struct SpanBatch {
    head: Vec<u8>,
    bytes: Vec<u8>,
    spans: usize,
}

impl SpanBatch {
    /// A batch without spans, of this resource.
    pub(crate) fn new(resource: &[(String, String)]) -> SpanBatch {
        let attributes: Vec<_> =
            resource.iter().map(|(key, value)| SpanAttribute::text(key, value)).collect();
        let mut head = br#"{"resourceSpans":[{"resource":{"attributes":"#.to_vec();
        // Text always serialises.
        serde_json::to_writer(&mut head, &attributes).ok();
        head.extend_from_slice(br#"},"scopeSpans":[{"scope":{"name":"tidegate"},"spans":["#);
        SpanBatch { bytes: head.clone(), head, spans: 0 }
    }

    /// Adds a span.
    pub(crate) fn add(&mut self, span: &OtlpSpan<'_>) {
        if self.spans > 0 {
            self.bytes.push(b',');
        }
        serde_json::to_writer(&mut self.bytes, span).ok();
        self.spans += 1;
    }

    /// Number of spans.
    pub(crate) fn len(&self) -> usize {
        self.spans
    }

    /// Takes the body, and begins the next batch.
    pub(crate) fn take(&mut self) -> (Vec<u8>, usize) {
        let mut bytes = std::mem::replace(&mut self.bytes, self.head.clone());
        bytes.extend_from_slice(b"]}]}]}");
        (bytes, std::mem::take(&mut self.spans))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_batch_is_an_export_trace_service_request_in_json() {
        let mut batch = SpanBatch::new(&[("service.name".to_owned(), "ti\"de".to_owned())]);
        let mut span = OtlpSpan {
            trace: "0af7651916cd43dd8448eb211c80319c",
            id: "00000000000000aa",
            parent: None,
            name: "chat m",
            kind: SpanKind::Server,
            start: 1_700_000_000_000_000_001,
            end: u64::MAX,
            attributes: vec![SpanAttribute::text("a", "b\n"), SpanAttribute::number("n", 7)],
            status: None,
        };
        batch.add(&span);
        span = OtlpSpan { parent: Some("00000000000000aa"), id: "00000000000000ab", ..span };
        span.status = Some(SpanStatus { message: "no" });
        batch.add(&span);
        assert_eq!(batch.len(), 2);
        let (bytes, spans) = batch.take();
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        let resource = &value["resourceSpans"][0];
        assert_eq!(
            resource["resource"]["attributes"],
            json!([{"key": "service.name", "value": {"stringValue": "ti\"de"}}])
        );
        let first = json!({
            "traceId": "0af7651916cd43dd8448eb211c80319c",
            "spanId": "00000000000000aa",
            "flags": 1,
            "name": "chat m",
            "kind": 2,
            "startTimeUnixNano": "1700000000000000001",
            "endTimeUnixNano": "18446744073709551615",
            "attributes": [
                {"key": "a", "value": {"stringValue": "b\n"}},
                {"key": "n", "value": {"intValue": "7"}},
            ],
        });
        let mut second = first.clone();
        second["spanId"] = json!("00000000000000ab");
        second["parentSpanId"] = json!("00000000000000aa");
        second["status"] = json!({"code": 2, "message": "no"});
        assert_eq!(resource["scopeSpans"][0]["spans"], json!([first, second]));
        assert_eq!(spans, 2);
        let (empty, spans) = batch.take();
        let empty: Value = serde_json::from_slice(&empty).unwrap();
        assert_eq!(empty["resourceSpans"][0]["scopeSpans"][0]["spans"], json!([]));
        assert_eq!(spans, 0);
    }
}
