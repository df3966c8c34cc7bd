//! Recorded exchanges (testdata/) and JSON generators for this crate's tests.

use proptest::prelude::*;
use serde_json::Value;

pub(crate) const CHAT: &str = include_str!("testdata/vllm_0.32.0_nixl_chat.json");
pub(crate) const COMPLETIONS: [&str; 2] = [
    include_str!("testdata/vllm_0.32.0_nixl_completions_0.json"),
    include_str!("testdata/vllm_0.32.0_nixl_completions_1.json"),
];
pub(crate) const MISC: &str = include_str!("testdata/vllm_0.32.0_misc.json");

pub(crate) fn json(text: impl AsRef<[u8]>) -> Value {
    serde_json::from_slice(text.as_ref()).expect("test data is JSON")
}

/// A raw JSON value whose white space and number formats a serialiser would change.
pub(crate) fn raw_value() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "null",
        "true",
        "1.50",
        "-0",
        "1e+2",
        "\"\"",
        "\"a\\u0041\\n\"",
        "\"}\\\"{\"",
        "\"é\"",
        "{ }",
        "[ ]",
    ]);
    leaf.prop_map(str::to_owned).prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3)
                .prop_map(|items| format!("[ {} ]", items.join(" ,\t"))),
            prop::collection::vec(("[a-c]", inner), 0..3).prop_map(|members| {
                let members = members.iter().map(|(key, value)| format!("\"{key}\" :{value}"));
                format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
            }),
        ]
    })
}
