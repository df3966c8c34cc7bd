//! Valid and invalid request ids and trace contexts.

use super::*;
use crate::Sampler;
use http::HeaderValue;

const FRESH: FreshIds = FreshIds {
    request: 0xabc,
    trace: 0x0af7_6519,
    span: 0x77,
    unix_seconds: 0,
    sampler: Sampler::OF_CLIENT,
};
const CLIENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn headers(name: &'static str, values: &[&str]) -> HeaderMap {
    let values = values.iter().map(|value| HeaderValue::from_bytes(value.as_bytes()).unwrap());
    values.map(|value| (http::HeaderName::from_static(name), value)).fold(
        HeaderMap::new(),
        |mut headers, (name, value)| {
            headers.append(name, value);
            headers
        },
    )
}

#[test]
fn a_valid_request_id_is_kept_and_others_are_replaced() {
    let fresh = format!("{:032x}", 0xabc);
    let longest = "x".repeat(REQUEST_ID_MAX);
    let too_long = "x".repeat(REQUEST_ID_MAX + 1);
    for (given, expected) in [
        (&["chat-1"][..], "chat-1"),
        (&[" padded "], "padded"),
        (&[longest.as_str()], longest.as_str()),
        (&[], &fresh),
        (&[""], &fresh),
        (&[too_long.as_str()], &fresh),
        (&["two words"], &fresh),
        (&["tab\tin"], &fresh),
        (&["grüezi"], &fresh),
        (&["one", "two"], &fresh),
    ] {
        assert_eq!(request_id(&headers("x-request-id", given), &FRESH), expected, "{given:?}");
    }
}

#[test]
fn a_valid_trace_is_continued_with_a_new_span() {
    let trace = traceparent(&headers("traceparent", &[CLIENT]), &FRESH);
    assert_eq!(trace.as_str(), "00-0af7651916cd43dd8448eb211c80319c-0000000000000077-01");
}

#[test]
fn the_sampler_decides_the_sampled_flag_alone() {
    // Both flags of version 00: sampled, random.
    let given = format!("{}03", &CLIENT[..53]);
    for (name, flags, sampled) in [("always_off", "02", false), ("always_on", "03", true)] {
        let fresh = FRESH.sampled_by(Sampler::named(name, 1.0).unwrap());
        let trace = traceparent(&headers("traceparent", &[&given]), &fresh);
        assert_eq!(&trace.as_str()[53..], flags, "{name}");
        assert_eq!(trace.is_sampled(), sampled);
        assert_eq!(trace.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(trace.span_id(), "0000000000000077");
        assert_eq!(trace.parent(), Some(0xb7ad_6b71_6920_3331));
        let root = traceparent(&HeaderMap::new(), &fresh);
        assert_eq!((root.is_sampled(), root.parent()), (sampled, None));
    }
}

#[test]
fn a_later_traceparent_version_is_read_as_version_00() {
    let later = format!("cc{}-what-comes", &CLIENT[2..]);
    let trace = traceparent(&headers("traceparent", &[later.as_str()]), &FRESH);
    assert_eq!(trace.as_str()[..35], CLIENT[..35]);
}

#[test]
fn an_invalid_traceparent_starts_a_new_trace() {
    let fresh = "00-0000000000000000000000000af76519-0000000000000077-00";
    let zeros = format!("00-{}-b7ad6b7169203331-01", "0".repeat(32));
    let no_parent = format!("{}-{}-01", &CLIENT[..35], "0".repeat(16));
    let capital = CLIENT.to_uppercase();
    let version = format!("ff{}", &CLIENT[2..]);
    let longer = format!("{CLIENT}-more");
    for given in ["", "00", &CLIENT[..54], &zeros, &no_parent, &capital, &version, &longer, "€"] {
        let trace = traceparent(&headers("traceparent", &[given]), &FRESH);
        assert_eq!(trace.as_str(), fresh, "{given}");
    }
    let twice = traceparent(&headers("traceparent", &[CLIENT, CLIENT]), &FRESH);
    assert_eq!(twice.as_str(), fresh);
}

#[test]
fn all_zero_ids_are_not_generated() {
    let trace = traceparent(&HeaderMap::new(), &FreshIds::default());
    assert_eq!(trace.as_str(), format!("00-{:032x}-{:016x}-00", 1, 1));
}
