//! Concurrent legs and shared-store legs, against
//! docs/spec/engine-protocols.md#vllm-other-connectors.

use super::*;
use crate::scan;
use crate::testing::json;
use serde_json::{Value, json as value};
use tidegate_types::Tokens;

const ID: u64 = 0x0123_4567_89ab_cdef;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn peer(name: &str, rank: Option<u32>) -> Peer {
    Peer { name: name.into(), rank }
}

fn rendezvous(peer: Option<&Peer>) -> RendezvousInfo<'_> {
    RendezvousInfo { host: "10.0.0.1", port: 8998, id: ID, peer, key: None }
}

const CHAT: &str = r#"{ "model":"m", "messages":[], "stream":true, "max_tokens":256,
    "stop":["x"], "temperature":0.70, "unknown":[1.50] }"#;

fn legs(family: Family, rendezvous: &RendezvousInfo<'_>) -> Legs {
    let body = bytes(CHAT);
    let read = scan(Endpoint::ChatCompletions, &body).expect("a body");
    family.legs(Endpoint::ChatCompletions, &body, &read, rendezvous)
}

fn pair(family: Family, rendezvous: &RendezvousInfo<'_>) -> ConcurrentLegs {
    match legs(family, rendezvous) {
        Legs::Concurrent(pair) => pair,
        other => panic!("{other:?}"),
    }
}

/// The client's chat as a vLLM prefill leg.
fn one_token(params: Option<Value>) -> Value {
    let mut body = value!({
        "model": "m", "messages": [], "stream": false, "max_tokens": 1, "stop": [],
        "temperature": 0.7, "unknown": [1.5], "max_completion_tokens": 1, "ignore_eos": true,
    });
    if let Some(params) = params {
        body["kv_transfer_params"] = params;
    }
    body
}

/// The client's chat byte for byte, with these parameters.
fn with(params: &str) -> Bytes {
    let rest = CHAT.trim_end_matches(" }");
    bytes(&format!("{rest},{params} }}"))
}

#[test]
fn mooncake_legs_share_a_transfer_id_and_name_the_prefill_engine() {
    let engine = peer("e-\"1", None);
    let pair = pair(Family::VllmMooncake, &rendezvous(Some(&engine)));
    let params = value!({"do_remote_prefill": false, "do_remote_decode": true,
        "transfer_id": "xfer-0123456789abcdef"});
    assert_eq!(json(&pair.prefill.body), one_token(Some(params)));
    let params = concat!(
        r#""kv_transfer_params":{"do_remote_prefill":true,"do_remote_decode":false,"#,
        r#""transfer_id":"xfer-0123456789abcdef","remote_bootstrap_addr":"http://10.0.0.1:8998","#,
        r#""remote_engine_id":"e-\"1"}"#
    );
    assert_eq!(pair.decode.body, with(params));
    assert_eq!((pair.prefill.header, pair.decode.header), (None, None), "one rank needs no pin");
    assert!(!pair.decode_first);
}

#[test]
fn the_prefill_leg_is_pinned_to_the_rank_that_the_decode_leg_names() {
    let answer = br#"{"1":{"engine_id":"e1","worker_addr":{"0":{"0":"tcp://10.0.0.1:7001"}}},
        "0":{"engine_id":"e0","worker_addr":{"0":{"0":"tcp://10.0.0.1:7000"}}}}"#;
    let peers = Family::VllmMooncake.read_peers(answer).expect("the bootstrap server's answer");
    assert_eq!(peers, [peer("e0", Some(0)), peer("e1", Some(1))]);
    let pair = pair(Family::VllmMooncake, &rendezvous(peers.get(1)));
    assert_eq!(pair.prefill.header, Some(("x-data-parallel-rank", "1".into())));
    assert_eq!(pair.decode.header, None, "the decode engine has ranks of its own");
    let decode = json(&pair.decode.body);
    assert_eq!(decode["kv_transfer_params"]["remote_engine_id"], "e1");
}

#[test]
fn a_bootstrap_answer_without_ranks_is_refused() {
    let read = |answer: &str| Family::VllmMooncake.read_peers(answer.as_bytes());
    let one = r#"{"0":{"engine_id":"e","worker_addr":{}}}"#;
    assert_eq!(read(one), Ok(vec![peer("e", None)]));
    assert_eq!(read("{}"), Err(ProtocolError::NotParams));
    for answer in ["<html>", "[]", r#"{"0":{}}"#, r#"{"x":{"engine_id":"e"}}"#] {
        assert!(matches!(read(answer), Err(ProtocolError::Unreadable(_))), "{answer}");
    }
    assert_eq!(Family::VllmNixl.read_peers(one.as_bytes()), Err(ProtocolError::NotParams));
}

#[test]
fn a_request_without_a_known_peer_runs_colocated() {
    for family in Family::ALL {
        if family.peer_query().is_some() {
            assert_eq!(legs(family, &rendezvous(None)), Legs::Colocated);
            assert!(family.serves_colocated());
        }
    }
}

#[test]
fn offloading_legs_name_each_other() {
    let six = RendezvousInfo { host: "[fd00::1]", port: 5710, ..rendezvous(None) };
    for (rendezvous, host) in
        [(RendezvousInfo { port: 5710, ..rendezvous(None) }, "10.0.0.1"), (six, "fd00::1")]
    {
        let pair = pair(Family::VllmOffloading, &rendezvous);
        let params = value!({"remote_decoder": {"kv_request_id": "tidegate-0123456789abcdef"}});
        assert_eq!(json(&pair.prefill.body), one_token(Some(params)));
        let params = format!(
            r#""kv_transfer_params":{{"remote_prefiller":{{"kv_request_id":"tidegate-0123456789abcdef","remote_host":"{host}","remote_port":5710}}}}"#
        );
        assert_eq!(pair.decode.body, with(&params));
        assert!(!pair.decode_first && pair.prefill.header.is_none());
    }
}

#[test]
fn with_a_shared_store_the_prefill_makes_one_token_and_the_decode_is_unchanged() {
    let Legs::PrefillFirst { prefill } = legs(Family::VllmSharedStore, &rendezvous(None)) else {
        panic!("sequential legs");
    };
    assert_eq!(json(prefill), one_token(None));
    // LMCache reports a count under this name; it is not a hand-off.
    let answer = br#"{"kv_transfer_params":{"num_lmcache_extra_cached_tokens":3},
        "usage":{"prompt_tokens":7,"completion_tokens":1,"total_tokens":8}}"#;
    let handoff = Family::VllmSharedStore.read_prefill(answer).expect("an answer");
    assert_eq!(handoff.params, None);
    assert_eq!(handoff.usage.map(|usage| usage.prompt), Some(Tokens(7)));
    let body = bytes(CHAT);
    let read = scan(Endpoint::ChatCompletions, &body).expect("a body");
    let decode = Family::VllmSharedStore.decode_leg(&body, &read, &handoff, None);
    assert_eq!(decode.body.as_ptr(), body.as_ptr());
}

/// Parameters of vLLM before hybrid KV caches (one flat block list), and of the push connector.
#[test]
fn flat_block_lists_and_push_parameters_are_forwarded() {
    let body = bytes(r#"{"model":"m","prompt":"a"}"#);
    let read = scan(Endpoint::Completions, &body).expect("a body");
    for params in [
        r#"{"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":[17,18,19],"remote_engine_id":"e","remote_host":"h","remote_port":5600,"tp_size":1}"#,
        r#"{"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":[[17, 18]],"remote_engine_id":"e","remote_request_id":"r","remote_host":"h","remote_port":5600,"tp_size":1,"transfer_mode":"push"}"#,
    ] {
        let answer = format!(r#"{{"choices":[],"kv_transfer_params":{params}}}"#);
        let handoff = Family::VllmNixl.read_prefill(answer.as_bytes()).expect("an answer");
        let decode = Family::VllmNixl.decode_leg(&body, &read, &handoff, None).body;
        let expected = format!(r#"{{"model":"m","prompt":"a","kv_transfer_params":{params}}}"#);
        assert_eq!(decode, bytes(&expected));
    }
}

const INFO: &str =
    r#"{"disaggregated_params":{"ctx_dp_rank":0,"ctx_info_endpoint":["tcp://10.0.0.1:5000","b"]}}"#;

#[test]
fn generation_first_legs_contain_the_context_engines_endpoint() {
    let family = Family::TrtLlmGenerationFirst;
    let peers = family.read_peers(INFO.as_bytes()).expect("the server's answer");
    assert_eq!(peers, [peer("tcp://10.0.0.1:5000", Some(0))]);
    let pair = pair(family, &rendezvous(peers.first()));
    assert!(pair.decode_first);
    let id = (ID >> 1) | 1 << 40;
    let mut context = json(CHAT);
    context["stream"] = value!(false);
    context["disaggregated_params"] =
        value!({"request_type": "context_only", "disagg_request_id": id, "schedule_style": 1});
    assert_eq!(json(&pair.prefill.body), context, "max_tokens stays");
    let params = format!(
        r#""disaggregated_params":{{"request_type":"generation_only","ctx_request_id":{id},"disagg_request_id":{id},"schedule_style":1,"ctx_dp_rank":0,"ctx_info_endpoint":"tcp://10.0.0.1:5000"}}"#
    );
    assert_eq!(pair.decode.body, with(&params));
    assert_eq!(pair.decode.header, None, "without a key");
}

#[test]
fn generation_first_requires_a_context_endpoint() {
    let read = |answer: &str| Family::TrtLlmGenerationFirst.read_peers(answer.as_bytes());
    let one = INFO.replace("[\"tcp://10.0.0.1:5000\",\"b\"]", "\"tcp://h:1\"").replace('0', "null");
    assert_eq!(read(&one), Ok(vec![peer("tcp://h:1", None)]));
    for endpoint in ["null", "[]", "7"] {
        let answer = format!(
            r#"{{"disaggregated_params":{{"ctx_dp_rank":0,"ctx_info_endpoint":{endpoint}}}}}"#
        );
        assert_eq!(read(&answer), Err(ProtocolError::NotParams), "{endpoint}");
    }
    assert_eq!(read("{}"), Err(ProtocolError::NotParams));
}

#[test]
fn a_key_signs_the_generation_leg_only() {
    let key = Some(&b"secret"[..]);
    let engine = peer("tcp://10.0.0.1:5000", Some(0));
    let signed = RendezvousInfo { key, ..rendezvous(Some(&engine)) };
    let pair = pair(Family::TrtLlmGenerationFirst, &signed);
    let (name, value) = pair.decode.header.expect("a signature");
    assert_eq!(name, "x-trtllm-disagg-auth");
    let expected = "sha256=9f231f1556947f2cc0d68b742964cb16e8662f6b41262d536be4f2692f786130";
    assert_eq!(&*value, expected);
    assert_eq!(pair.prefill.header, None);

    let answer = br#"{"choices":[{"finish_reason":"length","disaggregated_params":{"request_type":
        "context_only","ctx_request_id":1,"disagg_request_id":2,"encoded_opaque_state":"aGk="}}]}"#;
    let handoff = Family::TrtLlm.read_prefill(answer).expect("a context's answer");
    let body = bytes(CHAT);
    let read = scan(Endpoint::ChatCompletions, &body).expect("a body");
    let leg = Family::TrtLlm.decode_leg(&body, &read, &handoff, key);
    let expected = "sha256=03a72b5fca6f61e574f9c066c6a1a3c558f82745ffcd70e3d78e2a327c3fd963";
    assert_eq!(leg.header.map(|(_, value)| value.into_string()), Some(expected.to_owned()));
    assert_eq!(Family::TrtLlm.decode_leg(&body, &read, &handoff, None).header, None);
}
