//! Ask an engine something small: whether it is well, what it is, a page of its numbers. It must
//! never ask for work: no path here generates a token, but for the last resort of an old SGLang.

use bytes::Bytes;
use http::{Method, StatusCode};
use tidegate_engine::EngineKind;
use tidegate_signals::facts::Facts;
use tidegate_terms::Seconds;

use crate::answer::read_all;
use crate::upstream::{Outgoing, Pool};

/// The largest answer read.
const ANSWER_MAX: usize = 4 << 20;

/// What came back.
enum Reply {
    /// 2xx, and this body.
    Body(Bytes),
    /// It is there, but has no such path, or does not tell us.
    Lacks,
    /// Nothing, or a 5xx: it may tell later.
    Nothing,
}

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
        Reply::Lacks | Reply::Nothing => None,
    }
}

/// Is it well? The first of its paths that it has decides.
pub(crate) async fn is_well(pool: &Pool, kind: EngineKind, timeout: Seconds) -> bool {
    for path in kind.health_paths() {
        match ask(pool, path, timeout).await {
            Reply::Body(_) => return true,
            Reply::Lacks => {}
            Reply::Nothing => return false,
        }
    }
    false
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
    let (about, models) = (about.body()?, models.body()?);
    let facts = Facts::read(kind, about.as_deref(), models.as_deref());
    Some(Told { facts, models: models.unwrap_or_default() })
}

impl Reply {
    /// `None` if nothing came; `Some(None)` if it does not tell.
    fn body(self) -> Option<Option<Bytes>> {
        match self {
            Reply::Body(body) => Some(Some(body)),
            Reply::Lacks => Some(None),
            Reply::Nothing => None,
        }
    }
}

async fn ask(pool: &Pool, path: &'static str, timeout: Seconds) -> Reply {
    let request = || Outgoing::own(&Method::GET, pool.address(), path, Bytes::new());
    let exchange = async {
        let answer = pool.send(request).await.ok()?;
        let body = read_all(answer.body, ANSWER_MAX).await.ok()?;
        Some((answer.head.status, body))
    };
    match tokio::time::timeout(timeout.to_duration(), exchange).await {
        Ok(Some((status, body))) if status.is_success() => Reply::Body(body),
        Ok(Some((StatusCode::NOT_IMPLEMENTED, _))) => Reply::Lacks,
        Ok(Some((status, _))) if !status.is_server_error() => Reply::Lacks,
        _ => Reply::Nothing,
    }
}
