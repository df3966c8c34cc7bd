//! A message's content: a string, or a list of parts. Contents of images and audio are dropped:
//! only the engine can count them.

use minijinja::Value;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// A message's content.
#[derive(Default)]
pub(super) enum Content<'a> {
    /// `null` or absent.
    #[default]
    Absent,
    Text(Cow<'a, str>),
    Parts(Vec<ContentPart>),
}

/// A part of a content.
pub(super) enum ContentPart {
    Text(Value),
    /// `image`, `audio`, `video` or `unknown`.
    Other(&'static str),
}

impl Content<'_> {
    /// Returns whether all parts are text.
    pub(super) fn is_text(&self) -> bool {
        match self {
            Content::Parts(parts) => parts.iter().all(|part| matches!(part, ContentPart::Text(_))),
            _ => true,
        }
    }

    pub(super) fn starts_with(&self, prefix: &str) -> bool {
        let starts = |text: &Value| text.as_str().is_some_and(|text| text.starts_with(prefix));
        match self {
            Content::Absent => false,
            Content::Text(text) => text.starts_with(prefix),
            Content::Parts(parts) => {
                parts.iter().any(|part| matches!(part, ContentPart::Text(text) if starts(text)))
            }
        }
    }

    /// Converts to one string: the texts, joined by newlines. `mark` follows the last text; `None`
    /// if there is no text to follow.
    pub(super) fn string(self, mark: Option<&str>) -> Option<Value> {
        let text = match self {
            Content::Text(text) if mark.is_none() => return Some(Value::from(&*text)),
            Content::Text(text) => text.into_owned(),
            Content::Absent => String::new(),
            Content::Parts(parts) => {
                let texts = parts.iter().filter_map(|part| match part {
                    ContentPart::Text(text) => text.as_str(),
                    ContentPart::Other(_) => None,
                });
                texts.collect::<Vec<_>>().join("\n")
            }
        };
        Some(Value::from(text + mark.unwrap_or_default()))
    }

    /// Converts to a list of parts in OpenAI's format; `mark` as above.
    pub(super) fn parts(self, mark: Option<&str>) -> Option<Value> {
        let mut parts = match self {
            Content::Absent => Vec::new(),
            Content::Text(text) => vec![ContentPart::Text(Value::from(&*text))],
            Content::Parts(parts) => parts,
        };
        if let Some(mark) = mark {
            let last = parts.iter_mut().rev().find_map(|part| match part {
                ContentPart::Text(text) => Some(text),
                ContentPart::Other(_) => None,
            })?;
            *last = Value::from(format!("{last}{mark}"));
        }
        Some(parts.into_iter().map(ContentPart::value).collect())
    }
}

impl ContentPart {
    fn value(self) -> Value {
        match self {
            ContentPart::Text(text) => {
                Value::from_pairs([("type", Value::from("text")), ("text", text)])
            }
            ContentPart::Other(kind) => Value::from_pairs([("type", kind)]),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Content<'a> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Content<'a>, D::Error> {
        json.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of parts")
    }

    fn visit_unit<E>(self) -> Result<Content<'de>, E> {
        Ok(Content::Absent)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Content<'de>, E> {
        Ok(Content::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Content<'de>, E> {
        Ok(Content::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content<'de>, A::Error> {
        let mut parts = Vec::new();
        while let Some(part) = seq.next_element()? {
            parts.push(part);
        }
        Ok(Content::Parts(parts))
    }
}

impl<'de> Deserialize<'de> for ContentPart {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<ContentPart, D::Error> {
        json.deserialize_any(PartVisitor)
    }
}

struct PartVisitor;

impl<'de> Visitor<'de> for PartVisitor {
    type Value = ContentPart;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a part")
    }

    fn visit_str<E>(self, text: &str) -> Result<ContentPart, E> {
        Ok(ContentPart::Text(Value::from(text)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ContentPart, A::Error> {
        let (mut text, mut refusal, mut other) = (None, None, None);
        while let Some(key) = map.next_key::<PartKey>()? {
            match key {
                PartKey::Type => other = modality(&map.next_value::<String>()?),
                PartKey::Text => text = Some(map.next_value::<Value>()?),
                PartKey::Refusal => refusal = Some(map.next_value::<Value>()?),
                PartKey::Unread => {
                    map.next_value::<serde::de::IgnoredAny>()?;
                }
            }
        }
        let text = text.or(refusal).filter(|text| text.as_str().is_some());
        Ok(match (other, text) {
            (None, Some(text)) => ContentPart::Text(text),
            (other, _) => ContentPart::Other(other.unwrap_or("unknown")),
        })
    }
}

#[derive(serde::Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum PartKey {
    Type,
    Text,
    Refusal,
    #[serde(other)]
    Unread,
}

/// Returns the modality of a part type; `None` for text.
fn modality(kind: &str) -> Option<&'static str> {
    match kind {
        "text" | "input_text" | "output_text" | "refusal" => None,
        "image_url" | "input_image" | "image_pil" | "image_embeds" => Some("image"),
        "audio_url" | "input_audio" | "audio_embeds" => Some("audio"),
        "video_url" | "video_embeds" => Some("video"),
        _ => Some("unknown"),
    }
}
