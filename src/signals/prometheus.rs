//! Parser of Prometheus' text format: names, labels, values. Lines that are not samples, or too
//! long, are skipped. The samples borrow from the page.

use std::borrow::Cow;

/// Limit of a line in bytes; vLLM's longest lines (its configuration as labels) have about 2 KB.
const LINE_MAX: usize = 64 << 10;

/// One sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MetricSample<'a> {
    /// Metric name.
    pub name: &'a str,
    /// Text between the braces.
    labels: &'a str,
    /// Value; may be infinite or NaN.
    pub value: f64,
}

/// Returns the samples of a page in order.
pub fn samples(page: &[u8]) -> impl Iterator<Item = MetricSample<'_>> {
    page.split(|byte| *byte == b'\n')
        .filter(|line| line.len() <= LINE_MAX)
        .filter_map(|line| sample(std::str::from_utf8(line).ok()?.trim()))
}

impl<'a> MetricSample<'a> {
    /// Returns a label's value, unescaped.
    pub fn label(&self, name: &str) -> Option<Cow<'a, str>> {
        let mut rest = self.labels;
        loop {
            let (key, quoted) = rest.split_once("=\"")?;
            let end = string_end(quoted)?;
            if key.trim_start_matches([',', ' ']).trim_end() == name {
                return Some(unescaped(&quoted[..end]));
            }
            rest = &quoted[end + 1..];
        }
    }
}

fn sample(line: &str) -> Option<MetricSample<'_>> {
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let end = line.find(|c: char| c == '{' || c.is_ascii_whitespace())?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => {
            let end = labels_end(inside)?;
            (&inside[..end], &inside[end + 1..])
        }
        None => ("", rest),
    };
    // A timestamp may follow the value.
    let value = rest.split_ascii_whitespace().next()?;
    Some(MetricSample { name, labels, value: value.parse().ok()? })
        .filter(|sample| is_name(sample.name))
}

fn is_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':');
    !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.bytes().all(letter)
}

/// Returns the position of the closing brace outside of strings.
fn labels_end(labels: &str) -> Option<usize> {
    let mut at = 0;
    loop {
        at += labels.get(at..)?.find(['"', '}'])?;
        if labels.as_bytes()[at] == b'}' {
            return Some(at);
        }
        at += 1;
        at += string_end(&labels[at..])? + 1;
    }
}

/// Returns the position of the closing quote of a string that starts at 0.
fn string_end(string: &str) -> Option<usize> {
    let bytes = string.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    None
}

fn unescaped(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut escaped = false;
    for letter in text.chars() {
        match (std::mem::take(&mut escaped), letter) {
            (false, '\\') => escaped = true,
            (true, 'n') => plain.push('\n'),
            (_, letter) => plain.push(letter),
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn samples_with_and_without_labels_and_timestamps_are_read() {
        let page = b"# HELP a b\n# TYPE a gauge\na 1\nvllm:b_total{x=\"1\",y=\"2\"} 2.5e+09 1700\n\
            c{} +Inf\n d{x=\"}\"} 4 \r\n";
        let read: Vec<(&str, f64)> = samples(page).map(|s| (s.name, s.value)).collect();
        assert_eq!(read, [("a", 1.0), ("vllm:b_total", 2.5e9), ("c", f64::INFINITY), ("d", 4.0)]);
        let labels: Vec<Option<String>> =
            samples(page).map(|s| s.label("x").map(Cow::into_owned)).collect();
        assert_eq!(labels, [None, Some("1".to_owned()), None, Some("}".to_owned())]);
    }

    #[test]
    fn lines_that_are_not_samples_are_skipped() {
        let page = b"a\n{x=\"1\"} 1\na{x=\"1} 2\na b\n1a 3\na{x=\"\\\n\xff 1\n=\n}\n\"\na-b 1\n";
        assert_eq!(samples(page).count(), 0);
    }

    proptest! {
        #[test]
        fn any_label_round_trips(
            value in ".{0,20}", other in ".{0,20}", number in -1e9..1e9_f64,
        ) {
            let escape = |text: &str| {
                text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
            };
            let line = format!("n{{a=\"{}\", b=\"{}\"}} {number}", escape(&other), escape(&value));
            let read: Vec<MetricSample> = samples(line.as_bytes()).collect();
            prop_assert_eq!(read.len(), 1);
            prop_assert_eq!(read[0].value, number);
            prop_assert_eq!(read[0].label("b").unwrap(), value);
            prop_assert_eq!(read[0].label("a").unwrap(), other);
            prop_assert_eq!(read[0].label("c"), None);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(page in prop::collection::vec(any::<u8>(), 0..300)) {
            for sample in samples(&page) {
                prop_assert!(is_name(sample.name));
                sample.label("x");
            }
        }
    }
}
