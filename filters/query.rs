//! The model named by a query string: `?model=` of a websocket, which has no body.

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

const MODEL: &str = "model";

/// Returns the value of `model` in an `application/x-www-form-urlencoded` query, of several the
/// last (as in Starlette); `None` if absent or empty.
pub fn model_in_query(query: &str) -> Option<String> {
    let named = query.split('&').rev().find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        (decoded(name) == MODEL).then(|| decoded(value))
    });
    named.filter(|name| !name.is_empty())
}

/// Replaces all `model` parameters of `query` by one with `name`; others are kept.
pub fn with_model(query: &str, name: &str) -> String {
    let others = query.split('&').filter(|pair| {
        let name = pair.split_once('=').map_or(*pair, |(name, _)| name);
        !pair.is_empty() && decoded(name) != MODEL
    });
    let mut text: String = others.flat_map(|pair| [pair, "&"]).collect();
    text += MODEL;
    text.push('=');
    text.extend(utf8_percent_encode(name, NON_ALPHANUMERIC));
    text
}

fn decoded(text: &str) -> String {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_model_of_a_query_counts() {
        for (query, model) in [
            ("model=m", Some("m")),
            ("a=b&model=org%2Fm&c", Some("org/m")),
            ("model=a&model=b", Some("b")),
            ("m%6fdel=a+b", Some("a b")),
            ("", None),
            ("model", None),
            ("model=", None),
            ("models=m&xmodel=m", None),
        ] {
            assert_eq!(model_in_query(query).as_deref(), model, "{query}");
        }
    }

    #[test]
    fn a_model_is_replaced_and_other_parameters_are_kept() {
        for (query, named) in [
            ("model=a", "model=org%2Fb%20c"),
            ("x=1&model=a&y=%2F&model=c&z", "x=1&y=%2F&z&model=org%2Fb%20c"),
            ("", "model=org%2Fb%20c"),
        ] {
            let replaced = with_model(query, "org/b c");
            assert_eq!(replaced, named);
            assert_eq!(model_in_query(&replaced).as_deref(), Some("org/b c"));
        }
    }
}
