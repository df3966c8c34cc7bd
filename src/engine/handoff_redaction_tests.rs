//! Redaction of answers and streams, for every split.

use super::*;
use crate::handoff_members::IN_ANSWERS;
use crate::testing::{CHAT, json, raw_value};
use proptest::prelude::*;

const NULL: &str = r#"{"id":1,"kv_transfer_params":null,"x":[]}"#;

fn check(answer: &str, expected: &str) {
    assert_eq!(String::from_utf8_lossy(&redact_answer(answer.as_bytes())), expected, "{answer}");
}

/// Passes the stream through one redactor, split at these positions.
fn pieces(stream: &str, cuts: &[usize]) -> String {
    let (mut filter, mut out, mut start) = (HandoffRedactor::new(), Vec::new(), 0);
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
    cuts.push(stream.len());
    cuts.sort_unstable();
    for cut in cuts {
        let piece = Bytes::copy_from_slice(&stream.as_bytes()[start..cut]);
        out.extend_from_slice(&filter.pass(piece));
        start = cut;
    }
    String::from_utf8(out).expect("still UTF-8")
}

#[test]
fn values_become_null_and_no_other_byte_changes() {
    check(r#"{"id":1,"kv_transfer_params":{"a":["}",{"b\"{":1}]},"x":[]}"#, NULL);
    check(r#"{"id":1,"kv_transfer_params":[{"a":1}],"x":[]}"#, NULL);
    check(r#"{"kv_transfer_params" : {"a":1} }"#, r#"{"kv_transfer_params" : null }"#);
    check(r#"{"kv_transfer_params":{}}"#, r#"{"kv_transfer_params":null}"#);
    for value in [r#""a,}\"]""#, "1", "-1.5e3", "true", "false", r#"{"a":{"b":[]}}"#] {
        let answer = format!(r#"{{"id":1,"kv_transfer_params":{value},"x":[]}}"#);
        check(&answer, NULL);
    }
    let pretty = "{\n  \"kv_transfer_params\": {\n    \"a\": 1\n  }\n}";
    check(pretty, "{\n  \"kv_transfer_params\": null\n}");
}

/// Joins the data lines of each event, as an SSE reader does.
fn events(stream: &str) -> Vec<String> {
    let event = |event: &str| {
        let lines = event.lines().filter_map(|line| line.strip_prefix("data:"));
        lines.map(|data| data.strip_prefix(' ').unwrap_or(data)).collect::<Vec<_>>().join("\n")
    };
    let stream = stream.replace("\r\n", "\n").replace('\r', "\n");
    stream.split("\n\n").filter(|e| !e.is_empty()).map(event).collect()
}

#[test]
fn names_and_values_on_different_data_lines_are_redacted() {
    for between in [
        ":\ndata: ",
        "\ndata:: ",
        "\ndata: :\ndata:",
        ":\r\ndata: ",
        ":\nid: 7\n: a comment\ndata: ",
        ":\ndata:\ndata\nevent: x\nretry: 5\ndata:   ",
        // Comments and unknown fields before the colon, and line ends by carriage returns alone.
        "\n: a comment\ndata: : ",
        "\n: {\"a\"}\ndata::",
        "\nx-trace: 1\nfoo\ndata: :",
        "\rdata: :\r: x\rdata: ",
        ":\r\n: } \"\r\ndata: ",
    ] {
        for value in [
            r#"{"remote_host":"h"}"#,
            "{\"remote_host\":\ndata: \"h\"}",
            "{\"a\":\n: }\" a comment\ndata: [\"remote_host\"]}",
            "17",
            r#""h""#,
        ] {
            let stream = format!(
                "data: {{\"kv_transfer_params\"{between}{value},\"x\":1}}\n\ndata: {{\"y\":[2]}}\n\n"
            );
            for cut in 0..stream.len() {
                let left = pieces(&stream, &[cut]);
                assert!(
                    !left.contains("remote_host") && !left.contains("17"),
                    "{stream:?} {left:?}"
                );
                let seen = events(&left);
                assert_eq!(
                    json(&seen[0]),
                    json(r#"{"kv_transfer_params":null,"x":1}"#),
                    "{left:?}"
                );
                assert_eq!(seen[1], "{\"y\":[2]}");
            }
        }
    }
    // An event truncated before the value leaves the next event unchanged.
    for next in ["data: {\"y\":[2]}", ": comment\ndata: {\"y\":[2]}", "id: 1\ndata: [2]"] {
        for colon in ["", ":"] {
            let cut = format!("data: {{\"kv_transfer_params\"{colon}\n\n{next}\n\n");
            for at in 0..cut.len() {
                assert_eq!(pieces(&cut, &[at]), cut);
            }
        }
    }
    // Blank lines are white space of JSON, within a value too.
    check("{\"kv_transfer_params\":{\n\n\"remote_host\":1}}", "{\"kv_transfer_params\":null}");
    for space in ["\n\n", "\n\r\r\n", "\r\n\r\n \n"] {
        let with = |value: &str| format!("{{\"kv_transfer_params\"{space}:{space}{value}}}");
        check(&with("{\"remote_host\":1}"), &with("null"));
    }
}

#[test]
fn every_occurrence_of_every_member_is_redacted_at_any_depth() {
    for name in IN_ANSWERS {
        let with = |value: &str| {
            format!(r#"{{"c":[{{"m":{{"{name}":{value}}}}}],"{name}" : {value},"{name}":{value}}}"#)
        };
        check(&with(r#"{"remote_host":"h"}"#), &with("null"));
        check(&with("5"), &with("null"));
    }
}

#[test]
fn escaped_names_are_recognised() {
    for name in [
        r"kv\u005ftransfer_params",
        r"\u006bv_transfer_params",
        r"kv_transfer_param\u0073",
        r"\u006B\u0076_transfer_params",
    ] {
        let answer = format!(r#"{{"a":"\u00e9","{name}":{{"remote_host":"h"}},"b":1}}"#);
        let expected = format!(r#"{{"a":"\u00e9","{name}":null,"b":1}}"#);
        check(&answer, &expected);
        let every: Vec<usize> = (0..answer.len()).collect();
        assert_eq!(pieces(&answer, &every), expected);
        let lines = [format!("data: {answer}\n\n"), "data: [DONE]\n\n".into()].concat();
        assert_eq!(pieces(&lines, &[]), format!("data: {expected}\n\ndata: [DONE]\n\n"));
    }
    for other in [
        r"kv\u005Ftransfer\u005fparamsx",
        r"\u006b",
        r"kv\ntransfer_params",
        r"kv_transfer_params\",
    ] {
        let answer = format!(r#"{{"{other}":{{"a":1}}}}"#);
        assert!(matches!(redact_answer(answer.as_bytes()), Cow::Borrowed(_)), "{answer}");
    }
}

#[test]
fn strings_that_are_not_member_names_are_kept() {
    for answer in [
        NULL,
        r#"{"content":"\"kv_transfer_params\":{\"a\":1}"}"#,
        r#"{"content":"kv_transfer_params","x":{"a":1}}"#,
        r#"{"content":["kv_transfer_params",{"a":1}]}"#,
        r#"{"content":"kv_transfer_params"} "#,
        r#"{"my_kv_transfer_params":{"a":1},"kv_transfer_params_too":{"a":1}}"#,
        "{}",
        "",
    ] {
        assert!(matches!(redact_answer(answer.as_bytes()), Cow::Borrowed(_)), "{answer}");
        let every: Vec<usize> = (0..answer.len()).collect();
        assert_eq!(pieces(answer, &every), answer);
    }
}

#[test]
fn text_before_the_json_hides_no_member() {
    let object = |value: &str| format!("{{\"id\":1,\"kv_transfer_params\":{value},\"b\":\"{{\"}}");
    for before in ["\"", "say \"hello ", "data: \"cut\r\rdata: ", "\"kv_transfer", "\\\"", "\"\"\""]
    {
        let (with, without) = (object(r#"{"remote_host":"h"}"#), object("null"));
        let (text, expected) = (format!("{before}{with}"), format!("{before}{without}"));
        check(&text, &expected);
        for cut in 0..text.len() {
            assert_eq!(pieces(&text, &[cut, cut + 7]), expected, "{before:?}, {cut}");
        }
    }
}

#[test]
fn a_redactor_can_keep_the_length() {
    for (value, expected) in [
        (r#"{"remote_host":[1,"}"]}"#, r#"{                     }"#),
        (r#"["a"]"#, "[   ]"),
        (r#""10.0.0.1""#, r#""        ""#),
        ("true", "0   "),
        ("7", "0"),
        ("null", "null"),
    ] {
        let with = |value: &str| format!("audio \"{{\"bootstrap_host\" : {value},\"b\":2}}\n");
        let (text, expected) = (with(value), with(expected));
        for cut in 0..text.len() {
            let mut filter = HandoffRedactor::keeping_length();
            let halves = [&text[..cut], &text[cut..]];
            let out = halves.map(|half| filter.pass(Bytes::copy_from_slice(half.as_bytes())));
            assert_eq!(String::from_utf8(out.concat()).unwrap(), expected, "{cut}");
        }
    }
}

#[test]
fn a_chunk_without_members_is_not_copied() {
    let piece = Bytes::from_static(b"data: {\"choices\":[],\"kv_transfer_params\":null}\n\n");
    assert_eq!(HandoffRedactor::new().pass(piece.clone()).as_ptr(), piece.as_ptr());
}

#[test]
fn a_recorded_prefill_answer_loses_its_parameters_only() {
    let mut answer = json(CHAT)["prefill_response"].clone();
    let text = answer.to_string();
    let stripped = redact_answer(text.as_bytes());
    answer["kv_transfer_params"] = serde_json::Value::Null;
    assert_eq!(json(stripped), answer);
}

#[test]
fn truncated_parameters_do_not_drop_the_next_event() {
    for (end, left) in [("\n\n", "\n\n"), ("\r\n\r\n", "\r\r\n"), ("\r\r", "\r\r")] {
        let stream = format!("data: {{\"kv_transfer_params\":{{\"a\":\"{end}data: [DONE]\n\n");
        let expected = format!("data: {{\"kv_transfer_params\":null{left}data: [DONE]\n\n");
        let every: Vec<usize> = (0..stream.len()).collect();
        assert_eq!(pieces(&stream, &[]), expected);
        assert_eq!(pieces(&stream, &every), expected);
    }
}

proptest! {
    #[test]
    fn the_output_is_the_same_for_every_split(
        events in prop::collection::vec((raw_value(), raw_value()), 0..4),
        cuts in prop::collection::vec(0..4096_usize, 0..12),
    ) {
        let (mut stream, mut expected) = (String::new(), String::new());
        for (params, other) in &events {
            let event = |params: &str| format!(
                "data: {{\"o\":{other},\"kv_transfer_params\":{params},\"text\":\"\\\"kv_transfer_params\\\":\"}}\n\n"
            );
            stream += &event(params);
            expected += &event(if params.starts_with('n') { params } else { "null" });
        }
        prop_assert_eq!(pieces(&stream, &cuts), expected);
    }
}
