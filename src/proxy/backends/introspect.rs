//! Small requests to an engine: its health, its facts, its metrics page, its count of a prompt. No path used here
//! generates tokens, except the fallback health path of old SGLang versions.

use bytes::Bytes;
use http::{Method, StatusCode};
use tidegate_engine::EngineKind;
use tidegate_signals::facts::Facts;
use tidegate_types::{Seconds, Tokens};

use crate::upstream::failure::LegProblem;
use crate::upstream::read_all;
use crate::upstream::{Outgoing, Pool};

/// Largest answer that is read, in bytes.
const ANSWER_MAX: usize = 4 << 20;

/// Result of a request.
enum Reply {
    /// Status 2xx with this body.
    Body(Bytes),
    /// The engine does not have the path.
    Missing,
    /// The engine requires its API key.
    Locked(StatusCode),
    /// The engine reports a failure.
    Failed(StatusCode),
    /// The connection was refused.
    Refused(String),
    /// The connection failed or broke.
    Broken(String),
    /// No answer in time.
    TimedOut,
}

/// Health as seen by a probe.
#[derive(Debug)]
pub(crate) enum ProbeResult {
    /// A health path reports health, or the engine has no health path and answers.
    Healthy,
    /// The engine reports a failure, with the reason.
    Unhealthy(String),
    /// The connection was refused.
    Refused(String),
    /// No answer in time or a broken connection: the engine may be hung or busy.
    Unanswered(String),
}

/// Shortest time-out of a health path at which the engine generates a token: SGLang waits a second
/// for it, and longer behind a long prompt.
const GENERATES_TIMEOUT: Seconds = Seconds(5.0);

/// Facts reported by an engine.
#[derive(Clone, Debug)]
pub(crate) struct ReportedFacts {
    /// Parsed facts.
    pub facts: Facts,
    /// Its `/v1/models` answer; empty if it has none.
    pub models: Bytes,
}

/// The body of a 2xx answer; `None` for any other result.
pub(crate) async fn get(pool: &Pool, path: &'static str, timeout: Seconds) -> Option<Bytes> {
    match fetch(pool, path, timeout).await {
        Reply::Body(body) => Some(body),
        _ => None,
    }
}

/// Answer to a query of an optional path.
pub(crate) enum Answered {
    /// The body of a 2xx answer.
    Body(Bytes),
    /// The engine does not have the path.
    Missing,
    /// No usable answer.
    None,
}

/// Queries an optional path.
pub(crate) async fn read(pool: &Pool, path: &'static str, timeout: Seconds) -> Answered {
    match fetch(pool, path, timeout).await {
        Reply::Body(body) => Answered::Body(body),
        Reply::Missing => Answered::Missing,
        _ => Answered::None,
    }
}

/// The tokens that the engine counts in a prompt; `None` without an answer that has them.
pub(crate) async fn count_tokens(pool: &Pool, body: Bytes, limit: Seconds) -> Option<Tokens> {
    let request = || Outgoing::own(&Method::POST, pool.address(), "/tokenize", body.clone());
    let exchange = async {
        let answer = pool.send(request).await.map_err(LegProblem::from)?;
        let status = answer.head.status;
        Ok::<_, LegProblem>((status, read_all(answer.body, ANSWER_MAX).await?))
    };
    let answer = tokio::time::timeout(limit.to_duration(), exchange).await.ok()?;
    let (status, body) = answer.ok()?;
    let counted: TokenCount = serde_json::from_slice(&body).ok().filter(|_| status.is_success())?;
    Some(Tokens(counted.count)).filter(|tokens| *tokens > Tokens::ZERO)
}

/// Answer of `/tokenize`; the token ids are not kept.
#[derive(serde::Deserialize)]
struct TokenCount {
    count: u64,
}

/// Checks an engine's health: the first health path that is not answered with 404 decides.
pub(crate) async fn check_health(pool: &Pool, kind: EngineKind, timeout: Seconds) -> ProbeResult {
    for path in kind.health_paths() {
        let generates = kind.generates_at(path);
        let timeout = if generates { timeout.max(GENERATES_TIMEOUT) } else { timeout };
        match fetch(pool, path, timeout).await {
            Reply::Body(_) => return ProbeResult::Healthy,
            Reply::Missing | Reply::Locked(_) => {}
            Reply::Failed(status) => {
                return ProbeResult::Unhealthy(format!("{path} answers {status}"));
            }
            Reply::Refused(error) => return ProbeResult::Refused(error),
            Reply::Broken(error) => return ProbeResult::Unanswered(format!("{path}: {error}")),
            Reply::TimedOut => {
                return ProbeResult::Unanswered(format!("{path}: no answer within {timeout}"));
            }
        }
    }
    // The engine answers and has no health path.
    ProbeResult::Healthy
}

/// Reads an engine's facts; `None` without an answer. A missing path contributes no facts.
pub(crate) async fn read_facts(
    pool: &Pool,
    kind: EngineKind,
    timeout: Seconds,
) -> Option<ReportedFacts> {
    let about = async {
        match kind.about_path() {
            Some(path) => fetch(pool, path, timeout).await,
            None => Reply::Missing,
        }
    };
    let (about, models) = tokio::join!(about, fetch(pool, "/v1/models", timeout));
    // If the engine has an API key, it protects the list of models.
    let locked = models.locked();
    let (about, models) = (about.body()?, models.body()?);
    let facts = Facts::read(kind, about.as_deref(), models.as_deref());
    let facts = Facts { key_required: locked, ..facts };
    Some(ReportedFacts { facts, models: models.unwrap_or_default() })
}

impl Reply {
    /// `None` without an answer; `Some(None)` if the path is missing or locked.
    fn body(self) -> Option<Option<Bytes>> {
        match self {
            Reply::Body(body) => Some(Some(body)),
            Reply::Missing | Reply::Locked(_) => Some(None),
            Reply::Failed(_) | Reply::Refused(_) | Reply::Broken(_) | Reply::TimedOut => None,
        }
    }

    fn locked(&self) -> Option<u16> {
        match self {
            Reply::Locked(status) => Some(status.as_u16()),
            _ => None,
        }
    }
}

async fn fetch(pool: &Pool, path: &'static str, timeout: Seconds) -> Reply {
    let request = || Outgoing::own(&Method::GET, pool.address(), path, Bytes::new());
    let exchange = async {
        let answer = pool.send(request).await.map_err(LegProblem::from)?;
        let body = read_all(answer.body, ANSWER_MAX).await?;
        Ok::<_, LegProblem>((answer.head.status, body))
    };
    match tokio::time::timeout(timeout.to_duration(), exchange).await {
        Ok(Ok((status, body))) if status.is_success() => Reply::Body(body),
        Ok(Ok((StatusCode::NOT_IMPLEMENTED, _))) => Reply::Missing,
        Ok(Ok((status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN), _))) => {
            Reply::Locked(status)
        }
        Ok(Ok((status, _))) if !status.is_server_error() => Reply::Missing,
        Ok(Ok((status, _))) => Reply::Failed(status),
        Ok(Err(problem)) if problem.is_refused() => Reply::Refused(problem.to_string()),
        Ok(Err(problem)) => Reply::Broken(problem.to_string()),
        Err(_) => Reply::TimedOut,
    }
}
