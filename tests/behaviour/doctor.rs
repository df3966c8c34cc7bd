//! `tidegate doctor`: what each check finds in a scripted engine.

use serde_json::{Value, json};
use tidegate_filters::ModelTokenizer;

use crate::fake::{Act, Fake};
use crate::process::{says, write};

const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/filters/testdata/tiny_llama.json");

/// Runs doctor with a configuration and returns its exit code and the findings of one check as
/// level, detail and advice.
pub fn findings(config: &str, check: &str) -> (Option<i32>, Vec<(String, String, String)>) {
    let (_directory, path) = write(config);
    let args = ["doctor", "--config", path.to_str().unwrap(), "--no-trial", "--json"];
    let (code, text, told) = says(&args);
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
    assert!(detail.starts_with("equal on 9 of 10 samples") && detail.contains("3 there"), "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_tokenize_is_no_success() {
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
