//! Multipart forms (`multipart/form-data`, RFC 7578): the model named by an audio or image request.
//! The body is searched in place; file contents are skipped. It must never refuse a form: a
//! malformed one names no model, and the engine answers it.

use crate::Span;
use memchr::memmem::Finder;
use std::borrow::Cow;

/// Longest accepted boundary in bytes: RFC 2046 allows 70, some clients use more.
const BOUNDARY_MAX: usize = 256;
/// Longest part head read, in bytes. Browsers and SDKs write about 200.
const PART_HEAD_MAX: usize = 16 << 10;
/// Longest model name read, in bytes; file paths are model names too.
const NAME_MAX: usize = 4096;

/// Returns the span of the form's `model` value. Of several the last counts, as in Starlette, on
/// which vLLM and SGLang are built. `None` if `content_type` is not a form, or it names no model.
pub fn model_in_form(content_type: &[u8], body: &[u8]) -> Option<Span> {
    let boundary = boundary(content_type)?;
    let delimiter = [b"--", &*boundary].concat();
    let finder = Finder::new(&delimiter);
    let mut model = None;
    // Start of the current part.
    let mut part: Option<usize> = None;
    let mut from = 0;
    while let Some(found) = finder.find(body.get(from..)?) {
        let at = from + found;
        from = at + delimiter.len();
        let Some(ends) = line_before(body, at) else { continue };
        let Some(after) = delimiter_end(body, from) else { continue };
        if let Some(value) = part.and_then(|begin| value_of_model(body, begin, ends)) {
            model = Some(value);
        }
        match after {
            AfterBoundary::Part(begin) => part = Some(begin),
            AfterBoundary::Form => return model,
        }
    }
    model
}

/// Returns whether this content type is a multipart form.
pub fn is_form(content_type: &[u8]) -> bool {
    const FORM: &[u8] = b"multipart/form-data";
    let kind = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
    kind.trim_ascii().eq_ignore_ascii_case(FORM)
}

fn boundary(content_type: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !is_form(content_type) {
        return None;
    }
    let boundary = parameter(content_type, b"boundary")?;
    (1..=BOUNDARY_MAX).contains(&boundary.len()).then_some(boundary)
}

/// Returns the value of a header parameter: a token or a quoted string (RFC 9110, 5.6.6).
fn parameter<'a>(header: &'a [u8], wanted: &[u8]) -> Option<Cow<'a, [u8]>> {
    let mut rest = header;
    loop {
        // Parameters are read in order, so that quoted strings are skipped correctly.
        let next = memchr::memchr(b';', rest)? + 1;
        rest = rest[next..].trim_ascii_start();
        let end = rest.iter().position(|byte| matches!(byte, b'=' | b';')).unwrap_or(rest.len());
        let name = rest[..end].trim_ascii();
        let is_wanted = name.eq_ignore_ascii_case(wanted);
        let Some(after) = rest[end..].strip_prefix(b"=") else { continue };
        let after = after.trim_ascii_start();
        let (value, left) = match after.strip_prefix(b"\"") {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = memchr::memchr(b';', after).unwrap_or(after.len());
                (Cow::Borrowed(after[..end].trim_ascii()), &after[end..])
            }
        };
        if is_wanted {
            return Some(value);
        }
        rest = left;
    }
}

/// Decodes a quoted string; returns it with the bytes that follow. A backslash escapes only a quote
/// or a backslash: old browsers send Windows paths unescaped.
fn unquote(quoted: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let mut at = 0;
    let mut escaped = false;
    loop {
        match quoted.get(at)? {
            b'"' => break,
            b'\\' if matches!(quoted.get(at + 1), Some(b'"' | b'\\')) => {
                escaped = true;
                at += 2;
            }
            _ => at += 1,
        }
    }
    let (inside, left) = (&quoted[..at], &quoted[at + 1..]);
    if !escaped {
        return Some((Cow::Borrowed(inside), left));
    }
    let mut plain = Vec::with_capacity(inside.len());
    let mut bytes = inside.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match (byte, bytes.peek()) {
            (b'\\', Some(b'"' | b'\\')) => plain.extend(bytes.next()),
            _ => plain.push(byte),
        }
    }
    Some((Cow::Owned(plain), left))
}

/// Returns the end of the line before a delimiter, which must start a line.
fn line_before(body: &[u8], at: usize) -> Option<usize> {
    match body[..at] {
        [] => Some(0),
        [.., b'\r', b'\n'] => Some(at - 2),
        [.., b'\n'] => Some(at - 1),
        _ => None,
    }
}

/// What follows a delimiter.
enum AfterBoundary {
    /// A part, whose head starts here.
    Part(usize),
    /// The end of the form.
    Form,
}

/// Parses what follows the boundary: `--`, or white space and a line end. Anything else belongs to
/// a longer boundary.
fn delimiter_end(body: &[u8], at: usize) -> Option<AfterBoundary> {
    let rest = &body[at..];
    if rest.starts_with(b"--") {
        return Some(AfterBoundary::Form);
    }
    let padding = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    match rest[padding..] {
        [b'\r', b'\n', ..] => Some(AfterBoundary::Part(at + padding + 2)),
        [b'\n', ..] => Some(AfterBoundary::Part(at + padding + 1)),
        _ => None,
    }
}

/// Returns the value of the part in `body[begin..end]`, if it is named `model` and is not a file.
fn value_of_model(body: &[u8], begin: usize, end: usize) -> Option<Span> {
    let part = body.get(begin..end)?;
    let mut at = 0;
    let mut named = false;
    loop {
        let line = part.get(at..(at + PART_HEAD_MAX).min(part.len()))?;
        let length = memchr::memchr(b'\n', line)?;
        let line = line[..length].strip_suffix(b"\r").unwrap_or(&line[..length]);
        at += length + 1;
        if line.is_empty() {
            break;
        }
        named |= names_model(line);
        if at > PART_HEAD_MAX {
            return None;
        }
    }
    let value = part.get(at..)?;
    let fits = (1..=NAME_MAX).contains(&value.len()) && std::str::from_utf8(value).is_ok();
    let span = |at: usize| u32::try_from(at).ok();
    (named && fits).then_some(Span { start: span(begin + at)?, end: span(end)? })
}

fn names_model(line: &[u8]) -> bool {
    let Some(colon) = memchr::memchr(b':', line) else { return false };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    name.trim_ascii().eq_ignore_ascii_case(b"content-disposition")
        && parameter(value, b"name").as_deref() == Some(b"model")
        && parameter(value, b"filename").is_none()
}

#[cfg(test)]
#[path = "form_tests.rs"]
mod tests;
