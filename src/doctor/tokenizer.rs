//! Compares a model's tokenizer with the engine's `/tokenize` on ten samples.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use tidegate_engine::EngineKind;
use tidegate_filters::ModelTokenizer;
use tidegate_settings::{BackendSettings, ModelSettings};

use super::{DoctorReport, Level};
use crate::ask::{AskError, Client, HttpAnswer};

const CHECK: &str = "tokenizer";

/// Texts on which both tokenizers must agree: languages, code, digits, blanks, control tokens.
const SAMPLES: [&str; 10] = [
    "The tide turns twice a day.",
    "Größe, Übermaß, naïve, façade, Ærø",
    "東京は夜の七時。上海自来水来自海上。",
    "Приливы и отливы зависят от Луны.",
    "def f(x):\n\treturn [i**2 for i in range(x) if i % 3]\n",
    "  leading and   inner    blanks\n\n\n and lines  ",
    "1234567890 3.14159 0xDEADBEEF 1e-9",
    "🌊🚢⚓ 👩‍👩‍👧‍👦",
    "{\"name\":\"tide\",\"args\":{\"at\":[1,2,3],\"ok\":true}}",
    "https://example.org/a/b?c=d&e=%20#f don't can't I'll",
];

/// Longest part of an engine's error that is shown, in characters.
const SHOWN: usize = 160;

/// Reports that no tokenizer is configured for the models of an engine.
pub fn none(backend: &BackendSettings, report: &mut DoctorReport) {
    report.add(
        Level::Ok,
        &backend.name,
        CHECK,
        "none: prompt tokens are estimated".to_owned(),
        Some("for exact counts set tokenizer in [[models]], or --tokenizer PATH"),
    );
}

/// Checks the tokenizer of one model against one engine.
pub async fn check(
    model: &ModelSettings,
    backend: &BackendSettings,
    client: &Client,
    report: &mut DoctorReport,
) {
    let Some(path) = &model.tokenizer else { return };
    let name = &backend.name;
    let loaded = std::fs::read(path).map_err(|error| error.to_string()).and_then(|json| {
        ModelTokenizer::load(&json, None, None).map_err(|error| error.to_string())
    });
    let tokenizer = match loaded {
        Ok(tokenizer) => tokenizer,
        Err(why) => {
            let detail = format!("{} cannot be loaded: {why}", path.display());
            return report.error(name, CHECK, detail, "replace it by the model's tokenizer.json");
        }
    };
    let mut same = 0;
    let mut first = None;
    for (compared, sample) in SAMPLES.iter().enumerate() {
        match engine_ids(&model.name, sample, backend, client).await {
            Ok(there) => {
                let here = tokenizer.encode_text(sample, false).unwrap_or_default();
                same += usize::from(here == there);
                if here != there && first.is_none() {
                    first = Some(format!("{sample:?}: {} here, {} there", here.len(), there.len()));
                }
            }
            Err(failure) => {
                if let Some(first) = first {
                    differs(name, (same, compared), &first, report);
                }
                return failure.report(name, compared, report);
            }
        }
    }
    match first {
        None => report.ok(name, CHECK, format!("equal to the engine's on {same} samples")),
        Some(first) => differs(name, (same, SAMPLES.len()), &first, report),
    }
}

fn differs(name: &str, (same, of): (usize, usize), first: &str, report: &mut DoctorReport) {
    report.error(
        name,
        CHECK,
        format!("equal on {same} of {of} samples; tokens of {first}"),
        "use the tokenizer.json of the model that the engine serves",
    );
}

/// Reason why a sample could not be compared.
enum TokenizeFailure {
    /// The engine does not have the path.
    NoPath(StatusCode),
    /// The engine refuses the credentials.
    Refused(StatusCode),
    /// Any other status.
    Status(StatusCode, String),
    /// A success without token ids.
    Unreadable(String),
    /// No answer.
    NoAnswer(AskError),
}

impl TokenizeFailure {
    fn report(&self, name: &str, compared: usize, report: &mut DoctorReport) {
        let after = match compared {
            0 => String::new(),
            compared => format!(", after {compared} samples"),
        };
        let (level, detail, advice) = match self {
            TokenizeFailure::NoPath(status) => {
                let detail = format!("not compared: the engine has no /tokenize ({status})");
                return report.ok(name, CHECK, detail);
            }
            TokenizeFailure::Refused(status) => (
                Level::Error,
                format!("/tokenize answers {status}"),
                "set api_key_file of the backend to a key that the engine accepts",
            ),
            TokenizeFailure::Status(status, text) if is_passing(*status) => (
                Level::Warning,
                format!("/tokenize answers {status}: {text}"),
                "the engine is busy or starting: run doctor again",
            ),
            TokenizeFailure::Status(status, text) if status.is_server_error() => (
                Level::Warning,
                format!("/tokenize answers {status}: {text}"),
                "the engine's tokenizer fails: see its log",
            ),
            TokenizeFailure::Status(status, text) => (
                Level::Warning,
                format!("/tokenize answers {status}: {text}"),
                "the engine refuses the request: compare its model name and version with the settings",
            ),
            TokenizeFailure::Unreadable(text) => (
                Level::Warning,
                format!("the answer of /tokenize has no token ids: {text}"),
                "check that url is the engine itself and not another proxy",
            ),
            TokenizeFailure::NoAnswer(error) => (
                Level::Warning,
                format!("/tokenize: {error}"),
                "see the engine's log, and run doctor again",
            ),
        };
        report.add(level, name, CHECK, format!("{detail}{after}"), Some(advice));
    }
}

/// Returns whether the status describes a temporary condition.
fn is_passing(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
}

/// Returns the engine's token ids of a text.
async fn engine_ids(
    model: &str,
    sample: &str,
    backend: &BackendSettings,
    client: &Client,
) -> Result<Vec<u32>, TokenizeFailure> {
    let mut body = json!({ "model": model, "prompt": sample, "add_special_tokens": false });
    if backend.kind() == EngineKind::Plain {
        // llama.cpp reads the text from this member.
        body["content"] = sample.into();
    }
    let asked = client.post(&backend.url, "/tokenize", Bytes::from(body.to_string()), None);
    read(asked.await.map_err(TokenizeFailure::NoAnswer)?)
}

fn read(answer: HttpAnswer) -> Result<Vec<u32>, TokenizeFailure> {
    let text = || -> String { String::from_utf8_lossy(&answer.body).chars().take(SHOWN).collect() };
    match answer.status {
        status if status.is_success() => {
            ids(&answer.body).ok_or_else(|| TokenizeFailure::Unreadable(text()))
        }
        status @ (StatusCode::NOT_FOUND
        | StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::NOT_IMPLEMENTED) => Err(TokenizeFailure::NoPath(status)),
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            Err(TokenizeFailure::Refused(status))
        }
        status => Err(TokenizeFailure::Status(status, text())),
    }
}

fn ids(answer: &[u8]) -> Option<Vec<u32>> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    let ids = answer["tokens"].as_array()?.iter().map(|id| id.as_u64()?.try_into().ok());
    ids.collect()
}
