//! Ask an engine something small: whether it is well, what it is, a page of its numbers. It must
//! never ask for work: no path here generates a token, but for the last resort of an old SGLang.

use bytes::Bytes;
use http::{Method, StatusCode};
use tidegate_engine::EngineKind;
use tidegate_signals::facts::Facts;
use tidegate_types::Seconds;

use crate::answer::read_all;
use crate::failure::LegProblem;
use crate::upstream::{Outgoing, Pool};

/// The largest answer read.
const ANSWER_MAX: usize = 4 << 20;

/// What came back.
enum Reply {
    /// 2xx, and this body.
    Body(Bytes),
    /// It is there, but has no such path.
    Lacks,
    /// It is there, and does not tell without its key.
    Locked(StatusCode),
    /// It says that it is not well.
    Sick(StatusCode),
    /// Nothing listens there.
    Refused(String),
    /// No connection in time, or one that broke.
    Broken(String),
    /// Nothing in time.
    Late,
}

/// How an engine is.
#[derive(Debug)]
pub(crate) enum Found {
    /// Well, or at least there.
    Well,
    /// It says that it is not, for this reason.
    Sick(String),
    /// Nothing listens there.
    Gone(String),
    /// It has not said in time, or broke the connection: it may be hung, or busy.
    Late(String),
}

/// For a path at which the engine generates a token first: SGLang waits a second for it, and longer
/// behind a long prompt.
const GENERATES_TIMEOUT: Seconds = Seconds(5.0);

/// What an engine told of itself.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// Read.
    pub facts: Facts,
    /// Its list of models, in its own words; empty if it has none.
    pub models: Bytes,
}

/// The body of a 2xx answer.
pub(crate) async fn get(pool: &Pool, path: &'static str, timeout: Seconds) -> Option<Bytes> {
    match ask(pool, path, timeout).await {
        Reply::Body(body) => Some(body),
        _ => None,
    }
}

/// Is it well? The first of its paths that it has decides.
pub(crate) async fn how(pool: &Pool, kind: EngineKind, timeout: Seconds) -> Found {
    for path in kind.health_paths() {
        let generates = kind.generates_at(path);
        let timeout = if generates { timeout.max(GENERATES_TIMEOUT) } else { timeout };
        match ask(pool, path, timeout).await {
            Reply::Body(_) => return Found::Well,
            Reply::Lacks | Reply::Locked(_) => {}
            Reply::Sick(status) => return Found::Sick(format!("{path} answers {status}")),
            Reply::Refused(error) => return Found::Gone(error),
            Reply::Broken(error) => return Found::Late(format!("{path}: {error}")),
            Reply::Late => return Found::Late(format!("{path}: no answer within {timeout}")),
        }
    }
    // It does not tell, but answers.
    Found::Well
}

/// What it is. `None` if it did not answer: ask again. A path that it does not have tells nothing.
pub(crate) async fn what(pool: &Pool, kind: EngineKind, timeout: Seconds) -> Option<Told> {
    let about = async {
        match kind.about_path() {
            Some(path) => ask(pool, path, timeout).await,
            None => Reply::Lacks,
        }
    };
    let (about, models) = tokio::join!(about, ask(pool, "/v1/models", timeout));
    // The models are behind the key wherever there is one.
    let locked = models.locked();
    let (about, models) = (about.body()?, models.body()?);
    let facts = Facts::read(kind, about.as_deref(), models.as_deref());
    let facts = Facts { locked, ..facts };
    Some(Told { facts, models: models.unwrap_or_default() })
}

impl Reply {
    /// `None` if nothing came; `Some(None)` if it does not tell.
    fn body(self) -> Option<Option<Bytes>> {
        match self {
            Reply::Body(body) => Some(Some(body)),
            Reply::Lacks | Reply::Locked(_) => Some(None),
            Reply::Sick(_) | Reply::Refused(_) | Reply::Broken(_) | Reply::Late => None,
        }
    }

    fn locked(&self) -> Option<u16> {
        match self {
            Reply::Locked(status) => Some(status.as_u16()),
            _ => None,
        }
    }
}

async fn ask(pool: &Pool, path: &'static str, timeout: Seconds) -> Reply {
    let request = || Outgoing::own(&Method::GET, pool.address(), path, Bytes::new());
    let exchange = async {
        let answer = pool.send(request).await.map_err(LegProblem::from)?;
        let body = read_all(answer.body, ANSWER_MAX).await?;
        Ok::<_, LegProblem>((answer.head.status, body))
    };
    match tokio::time::timeout(timeout.to_duration(), exchange).await {
        Ok(Ok((status, body))) if status.is_success() => Reply::Body(body),
        Ok(Ok((StatusCode::NOT_IMPLEMENTED, _))) => Reply::Lacks,
        Ok(Ok((status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN), _))) => {
            Reply::Locked(status)
        }
        Ok(Ok((status, _))) if !status.is_server_error() => Reply::Lacks,
        Ok(Ok((status, _))) => Reply::Sick(status),
        Ok(Err(problem)) if problem.is_refused() => Reply::Refused(problem.to_string()),
        Ok(Err(problem)) => Reply::Broken(problem.to_string()),
        Err(_) => Reply::Late,
    }
}
