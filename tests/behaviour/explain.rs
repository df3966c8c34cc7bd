//! The record of recent requests: `/v1/requests?ended=N`, `/v1/requests/{id}` and `tidegate explain`.

use serde_json::Value;
use tidegate_emulator::EmulatorConfig;

use crate::client::{get, leave_later, post, send, until, within};
use crate::fake::{Act, Fake};
use crate::fleet::Emulated;
use crate::process::tidegate;
use crate::proxy::{DECODE, PREFILL, Proxy, SPLIT, chat, plain, vllm};

/// Sends a chat and returns its request id.
async fn served(proxy: &Proxy, body: &str) -> String {
    let answer = proxy.post("/v1/chat/completions", body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.headers["x-request-id"].to_str().unwrap().to_owned()
}

/// The record of a request, once it has ended.
async fn ended(proxy: &Proxy, id: &str) -> Value {
    proxy.settles().await;
    let record = proxy.admin(&format!("/v1/requests/{id}")).await;
    assert_eq!(record["stage"], "ended", "{record}");
    record
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_request_shows_its_phases_candidates_and_predictions() {
    let engines = Emulated::start(2).await;
    let fleet = [vllm("p", engines.url(0), PREFILL), vllm("d", engines.url(1), DECODE)];
    let proxy = Proxy::start(SPLIT, &fleet).await;
    let id = served(&proxy, &engines.chat(true, 500, 8)).await;
    let record = ended(&proxy, &id).await;
    assert_eq!(record["ended"], "done");
    assert_eq!((&record["prefill_backend"], &record["backend"]), (&"p".into(), &"d".into()));
    let phases = record["phases"].as_array().unwrap();
    let names: Vec<&str> = phases.iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["queue", "prefill", "handoff", "decode"]);
    let spans = phases.iter().map(|phase| phase["seconds"].as_f64().unwrap());
    let whole = record["duration_seconds"].as_f64().unwrap();
    assert!((spans.sum::<f64>() - whole).abs() < 1e-9, "the phases have no gap: {record}");
    let candidates = record["candidates"].as_array().unwrap();
    assert_eq!(candidates.len(), 2);
    assert_eq!((&candidates[0]["backend"], &candidates[0]["chosen"]), (&"p".into(), &true.into()));
    for numbers in ["predicted", "observed"] {
        for name in ["prefill_seconds", "ttft_seconds", "tpot_seconds"] {
            assert!(record[numbers][name].is_f64(), "{numbers} {name}: {record}");
        }
    }
    let choice = record["choice"].as_str().unwrap();
    assert!(choice.contains("p prefilled and d decoded"), "{choice}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_itl_target_counts_the_largest_gap_of_an_answer() {
    let engines = Emulated::with(EmulatorConfig::default()).await;
    let fleet = [vllm("a", engines.url(0), "engine = \"vllm\"")];
    // Shorter than a step of the engine.
    let proxy = Proxy::start("[slo]\nitl_seconds = 0.001\n", &fleet).await;
    let id = served(&proxy, &engines.chat(true, 10, 8)).await;
    let record = ended(&proxy, &id).await;
    let gap = record["observed"]["gap_max_seconds"].as_f64().unwrap();
    assert!(gap > 0.001 && gap <= record["duration_seconds"].as_f64().unwrap(), "{record}");
    assert_eq!(record["targets"]["itl_seconds"], 0.001);
    let counted = async {
        loop {
            let targets = proxy.admin("/v1/targets").await;
            if targets["models"][0]["requests"] == 1 {
                return targets;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let targets = within(counted).await;
    let model = &targets["models"][0];
    assert_eq!((&model["itl_attainment"], &model["attainment"]), (&0.0.into(), &0.0.into()));
    let page = send(proxy.admin, get("/metrics")).await;
    assert!(page.body.contains("tidegate_largest_gap_seconds_count"), "{}", page.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_has_requests_in_flight_first_and_is_bounded() {
    let fake = Fake::start([], Act::Silent).await;
    let engines = Emulated::with(EmulatorConfig::default()).await;
    let fleet = [vllm("a", engines.url(0), "engine = \"vllm\"")];
    let proxy = Proxy::start("[admin]\nrequests_kept = 2\n", &fleet).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(served(&proxy, &engines.chat(false, 20, 2)).await);
        proxy.settles().await;
    }
    let list = proxy.admin("/v1/requests?ended=9").await;
    let names = list[0]["phases"].as_array().unwrap().iter().map(|phase| &phase["name"]);
    assert_eq!(names.collect::<Vec<_>>(), ["queue", "unstreamed"], "it was not streamed");
    let listed: Vec<&str> =
        list.as_array().unwrap().iter().map(|each| each["request_id"].as_str().unwrap()).collect();
    assert_eq!(listed, [&ids[2], &ids[1]], "the latest first, and only the last two");
    let lost = send(proxy.admin, get(&format!("/v1/requests/{}", ids[0]))).await;
    assert_eq!(lost.status, 404, "{}", lost.body);
    assert_eq!(send(proxy.admin, get("/v1/requests?ended=x")).await.status, 400);
    assert_eq!(proxy.admin("/v1/requests").await.as_array().unwrap().len(), 0, "none in flight");

    let slow = Proxy::start("", &[plain("a", &fake)]).await;
    let client = leave_later(slow.data, post("/v1/chat/completions", chat(true)));
    until("the engine has it", || fake.hanging() == 1).await;
    let list = slow.admin("/v1/requests?ended=9").await;
    assert_eq!(list[0]["stage"], "waiting");
    client.abort();
    slow.settles().await;
    let list = slow.admin("/v1/requests?ended=9").await;
    assert_eq!((&list[0]["stage"], &list[0]["ended"]), (&"ended".into(), &"client_left".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_prints_a_waterfall_or_json() {
    let engines = Emulated::start(2).await;
    let fleet = [vllm("p", engines.url(0), PREFILL), vllm("d", engines.url(1), DECODE)];
    let proxy = Proxy::start(SPLIT, &fleet).await;
    let id = served(&proxy, &engines.chat(true, 500, 8)).await;
    proxy.settles().await;
    let explain = |args: &[&str]| {
        let admin = proxy.admin.to_string();
        let output = tidegate().args(["explain", "--admin", &admin]).args(args).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), text)
    };
    let explain = |args: &[&str]| tokio::task::block_in_place(|| explain(args));
    let (code, text) = explain(&[&id]);
    assert_eq!(code, Some(0), "{text}");
    for word in ["queue", "prefill", "hand-off", "decode", "TTFT", "chosen", "p prefilled"] {
        assert!(text.contains(word), "{word} in\n{text}");
    }
    assert!(!text.contains('\x1b'), "no colours without a terminal");
    let (code, text) = explain(&[&id, "--json"]);
    let record: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &record["request_id"]), (Some(0), &id.as_str().into()));
    let (code, text) = explain(&[]);
    assert!(code == Some(0) && text.contains(&id), "{text}");
    let (code, text) = explain(&["unknown"]);
    assert!(code == Some(1) && text.contains("unknown"), "{text}");
}
