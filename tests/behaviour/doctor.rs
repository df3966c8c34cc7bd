//! `tidegate doctor`: the findings of each check on a scripted engine.

use serde_json::{Value, json};
use tidegate_filters::ModelTokenizer;

use crate::cluster::Cluster;
use crate::fake::{Act, Fake};
use crate::process::{ran, write};

const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/filters/testdata/tiny_llama.json");

/// Runs doctor with a configuration and returns its exit code and the findings of one check as
/// level, detail and advice.
pub fn findings(config: &str, check: &str) -> (Option<i32>, Vec<(String, String, String)>) {
    let (_directory, path) = write(config);
    let args = ["doctor", "--config", path.to_str().unwrap(), "--no-trial", "--json"];
    let (code, text, told) = ran(&args);
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{told}"));
    let of = report["findings"].as_array().unwrap().iter().filter(|each| each["check"] == check);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let parts = of.map(|each| (text(&each["level"]), text(&each["detail"]), text(&each["advice"])));
    (code, parts.collect())
}

/// The tokenizer's finding for an engine that answers `/tokenize` by a script.
async fn tokenizer(script: Vec<Act>) -> (Option<i32>, (String, String, String), Vec<Value>) {
    let engine = Fake::start(script, Act::Json(200, json!({ "tokens": [] }).to_string())).await;
    engine.set_version("0.32.0");
    engine.script_tokenize();
    let config = format!(
        "[[models]]\nname = \"m\"\ntokenizer = \"{TOKENIZER}\"\n\
         [[backends]]\nname = \"a\"\nurl = \"{}\"\nengine = \"vllm\"\n",
        engine.url()
    );
    let (code, mut found) = findings(&config, "tokenizer");
    assert_eq!(found.len(), 1, "{found:?}");
    (code, found.remove(0), engine.sent().iter().map(|sent| sent.json()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tokenizer_is_compared_with_the_engines_on_ten_samples() {
    // An engine that returns no token for any sample differs; its requests show the samples.
    let (code, (level, detail, advice), sent) = tokenizer(Vec::new()).await;
    assert_eq!((code, level.as_str(), sent.len()), (Some(1), "error", 10), "{detail}");
    assert!(detail.starts_with("equal on 0 of 10 samples"), "{detail}");
    assert!(advice.contains("tokenizer.json"), "{advice}");

    let tiny = ModelTokenizer::load(&std::fs::read(TOKENIZER).unwrap(), None, None).unwrap();
    let same = |body: &Value| {
        assert_eq!((&body["model"], &body["add_special_tokens"]), (&json!("m"), &json!(false)));
        let ids = tiny.encode_text(body["prompt"].as_str().unwrap(), false).unwrap();
        Act::Json(200, json!({ "count": ids.len(), "tokens": ids }).to_string())
    };
    let equal: Vec<Act> = sent.iter().map(same).collect();
    let (code, (level, detail, _), _) = tokenizer(equal.clone()).await;
    assert_eq!((code, level.as_str()), (Some(0), "ok"), "{detail}");
    assert!(detail.contains("10 samples"), "{detail}");

    // One sample of ten differs.
    let mut once = equal.clone();
    once[6] = Act::Json(200, json!({ "tokens": [1, 2, 3] }).to_string());
    let (code, (level, detail, _), _) = tokenizer(once).await;
    assert_eq!((code, level.as_str()), (Some(1), "error"));
    assert!(
        detail.starts_with("equal on 9 of 10 samples") && detail.contains("3 there"),
        "{detail}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_tokenize_is_not_reported_as_ok() {
    let status = |status: u16| Act::Json(status, json!({ "error": "why it failed" }).to_string());
    for missing in [404, 405, 501] {
        let (code, (level, detail, advice), sent) = tokenizer(vec![status(missing)]).await;
        assert_eq!((code, level.as_str(), sent.len()), (Some(0), "ok", 1), "{missing}: {detail}");
        assert!(detail.contains("no /tokenize") && advice.is_empty(), "{detail}: {advice}");
    }
    let failures = [
        (status(401), "error", "401", "api_key_file"),
        (status(403), "error", "403", "api_key_file"),
        (status(400), "warning", "why it failed", "model name"),
        (status(500), "warning", "why it failed", "log"),
        (status(503), "warning", "503", "again"),
        (status(200), "warning", "no token ids", "url"),
        (Act::Drop, "warning", "/tokenize", "log"),
    ];
    for (act, expected, detail, advice) in failures {
        let words = format!("{act:?}");
        let (code, found, _) = tokenizer(vec![act]).await;
        assert_eq!(found.0, expected, "{words}: {found:?}");
        assert_eq!(code, Some(i32::from(expected == "error")), "{words}");
        assert!(found.1.contains(detail) && found.2.contains(advice), "{words}: {found:?}");
    }
}

/// The settings of a gateway in the fake cluster: pods by label, role labels and a Lease.
fn in_cluster(cluster: &Cluster, port: u16) -> String {
    let api = cluster.settings.api_server.as_ref().unwrap();
    format!(
        "[kubernetes]\napi_server = \"{api}\"\nnamespace = \"llm\"\n\
         [kubernetes.role_labels]\nlabel = \"tidegate.dev/role\"\nselector = \"app=vllm\"\n\
         [gateways.kubernetes]\nlease = \"tide\"\n\
         [[backends]]\nname = \"pods\"\nengine = \"vllm\"\nconnector = \"none\"\n\
         [backends.kubernetes]\nselector = \"app=vllm\"\nports = [{port}]\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_all_permissions_has_no_finding() {
    let cluster = Cluster::fake().await;
    let engine = Fake::start([], Act::Silent).await;
    engine.set_version("0.32.0");
    cluster.pod("vllm-0", "127.0.0.1", json!({"app": "vllm"})).await;
    cluster.workload("statefulsets", "vllm", json!({"app": "vllm"})).await;
    cluster.owned("vllm-0", "apps/v1", "StatefulSet", "vllm").await;
    let config = in_cluster(&cluster, engine.address.port());
    for (check, lines, word) in [
        ("api server", 1, "v1.34.1"),
        ("permissions", 6, " in llm"),
        ("lease", 1, "does not exist"),
        ("pods", 1, "1 pods in llm by app=vllm, backends: 1"),
        ("role labels", 1, "on 1 pods"),
        ("reach", 1, "127.0.0.1"),
    ] {
        let (code, found) = findings(&config, check);
        assert_eq!((code, found.len()), (Some(0), lines), "{check}: {found:?}");
        for (level, detail, _) in found {
            assert!(level == "ok" && detail.contains(word), "{check}: {level} {detail}");
        }
    }
    let leases = "/apis/coordination.k8s.io/v1/namespaces/llm/leases";
    assert!(cluster.fake.as_ref().unwrap().objects(leases).is_empty(), "nothing was written");
    assert_eq!(cluster.label_of("vllm-0", "tidegate.dev/role"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_permissions_and_wrong_labels_are_reported_with_advice() {
    let cluster = Cluster::fake().await;
    let fake = cluster.fake.as_ref().unwrap();
    let config = in_cluster(&cluster, 8000);
    fake.deny("update", "leases");
    fake.deny("create", "events");
    let (code, found) = findings(&config, "permissions");
    assert_eq!(code, Some(1));
    let of = |level: &str| found.iter().filter(|each| each.0 == level).collect::<Vec<_>>();
    let (errors, warnings) = (of("error"), of("warning"));
    assert_eq!((errors.len(), warnings.len(), found.len()), (1, 1, 6), "{found:?}");
    assert!(errors[0].1.contains("may not update leases/tide in llm"), "{errors:?}");
    let rule = "resources: [leases], resourceNames: [tide], verbs: [update]";
    assert!(errors[0].2.contains(rule), "{errors:?}");
    assert!(warnings[0].1.contains("create events"), "an Event is lost: {warnings:?}");

    let (_, found) = findings(&config, "pods");
    assert!(
        found[0].0 == "warning" && found[0].1.contains("no pod in llm by app=vllm"),
        "{found:?}"
    );

    // A pod that is not ready, and one whose owner selects by the label.
    cluster.pod("vllm-0", "127.0.0.1", json!({"app": "vllm"})).await;
    cluster.status("vllm-0", "127.0.0.1", "False").await;
    let selector = json!({"app": "vllm", "tidegate.dev/role": "decode"});
    cluster.workload("replicasets", "vllm-d", selector).await;
    cluster.owned("vllm-0", "apps/v1", "ReplicaSet", "vllm-d").await;
    cluster.pod("epp", "127.0.0.1", json!({"app": "vllm", "llm-d.ai/role": "epp"})).await;
    cluster.owned("epp", "batch/v1", "Job", "epp").await;
    let (_, found) = findings(&config, "pods");
    let not_ready = found.iter().find(|each| each.1.contains("not ready: vllm-0"));
    assert!(not_ready.is_some_and(|each| each.0 == "warning"), "{found:?}");
    let (_, found) = findings(&config, "labels");
    assert!(found.len() == 1 && found[0].1.contains("epp") && found[0].0 == "warning", "{found:?}");
    let (_, found) = findings(&config, "role labels");
    let levels: Vec<&str> = found.iter().map(|each| each.0.as_str()).collect();
    assert_eq!(levels, ["error", "warning"], "{found:?}");
    assert!(found[0].1.contains("vllm-0") && found[1].1.contains("epp"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_does_not_answer_is_an_error() {
    let mut cluster = Cluster::fake().await;
    let config = in_cluster(&cluster, 8000);
    cluster.fake.as_mut().unwrap().stop();
    let (code, found) = findings(&config, "api server");
    assert_eq!((code, found.len()), (Some(1), 1), "{found:?}");
    assert!(found[0].0 == "error" && found[0].2.contains("api_server"), "{found:?}");
    let (_, found) = findings(&config, "permissions");
    assert!(found.is_empty(), "no further check runs: {found:?}");
}
