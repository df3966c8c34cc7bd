//! Edits change the named members and no other byte.

use super::*;
use crate::testing::{json, raw_value};
use crate::{Endpoint, scan};
use proptest::prelude::*;
use serde_json::Value;

/// A key and its raw value.
type Edit<'a> = (&'a str, &'a str);

fn apply(body: &str, edits: &[Edit]) -> String {
    let body = Bytes::copy_from_slice(body.as_bytes());
    let scan = scan(Endpoint::Other, &body).expect("a JSON object");
    let mut all = Edits::new();
    for (key, raw) in edits {
        all.set(key, raw.as_bytes());
    }
    String::from_utf8(all.apply(&body, &scan).into()).expect("still UTF-8")
}

#[test]
fn edits_replace_values_and_append_members() {
    let cases: [(&str, &[Edit], &str); 8] = [
        (r#"{"a":1}"#, &[("a", "2")], r#"{"a":2}"#),
        (r#"{ "a" : 1 , "b":2 }"#, &[("a", "{}")], r#"{ "a" : {} , "b":2 }"#),
        (r#"{"a":1 }"#, &[("b", "2"), ("c", "3")], r#"{"a":1,"b":2,"c":3 }"#),
        ("{}", &[("b", "2"), ("c", "3")], r#"{"b":2,"c":3}"#),
        (" {\n} ", &[("b", "2")], " {\"b\":2\n} "),
        (r#"{"a":1,"b":0,"a":3}"#, &[("a", "9")], r#"{"a":9,"b":0,"a":9}"#),
        (r#"{"\u0061":1}"#, &[("a", "9")], r#"{"\u0061":9}"#),
        (r#"{"x":{"a":1},"y":"\"a\":1}"}"#, &[("a", "9")], r#"{"x":{"a":1},"y":"\"a\":1}","a":9}"#),
    ];
    for (body, edits, expected) in cases {
        assert_eq!(apply(body, edits), expected, "{body}");
    }
}

#[test]
fn of_two_edits_of_a_member_the_later_wins() {
    assert_eq!(apply("{}", &[("a", "1"), ("a", "2")]), r#"{"a":2}"#);
}

#[test]
fn without_edits_the_body_is_not_copied() {
    let body = Bytes::from_static(br#"{"a":1}"#);
    let scan = scan(Endpoint::Other, &body).expect("a JSON object");
    assert_eq!(Edits::new().apply(&body, &scan).as_ptr(), body.as_ptr());
}

proptest! {
    #[test]
    fn an_edited_body_parses_to_the_edited_object_and_the_rest_keeps_its_bytes(
        members in prop::collection::vec(("[a-e]", raw_value(), "[ \n\t]{0,2}"), 0..6),
        edits in prop::collection::btree_map("[a-h]", raw_value(), 0..4),
    ) {
        let written = members.iter().map(|(key, raw, space)| format!("{space}\"{key}\":{space}{raw}"));
        let body = format!("{{{} }}", written.collect::<Vec<_>>().join(" ,"));
        let list: Vec<Edit> = edits.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let edited = apply(&body, &list);

        let mut expected = json(&body);
        for (key, raw) in &edits {
            expected[key.as_str()] = json(raw);
        }
        prop_assert_eq!(&json(&edited), &expected);

        let (before, after) = (scan(Endpoint::Other, body.as_bytes()), scan(Endpoint::Other, edited.as_bytes()));
        let (before, after) = (before.expect("valid"), after.expect("valid"));
        for (key, _, _) in members.iter().filter(|(key, ..)| !edits.contains_key(key)) {
            prop_assert_eq!(before.value(body.as_bytes(), key), after.value(edited.as_bytes(), key));
        }
        // Setting a member to its present value changes no byte.
        let same = members.iter().filter(|(key, raw, _)| {
            members.iter().all(|(other, other_raw, _)| other != key || other_raw == raw)
        });
        let same: Vec<Edit> = same.map(|(k, v, _)| (k.as_str(), v.as_str())).collect();
        prop_assert_eq!(apply(&body, &same), body);
    }
}

#[test]
fn every_occurrence_of_a_repeated_member_is_replaced() {
    let edited = apply(r#"{"stream":true,"stream":true}"#, &[("stream", "false")]);
    assert_eq!(json(&edited)["stream"], Value::Bool(false));
    assert!(!edited.contains("true"));
}
