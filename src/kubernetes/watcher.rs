//! Lists a collection and watches it from there. After a broken or expired watch the cached objects stay
//! valid until the next list or event.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use std::time::Duration;
use tidegate_types::Seconds;
use tokio::time::{Instant, sleep, timeout};

use crate::access::Access;
use crate::api::{self, KubeApiError};
use crate::backoff::Backoff;
use crate::event::{self, WatchEvent};
use crate::objects::{Effect, Objects};
use crate::pod::{Object, ObjectList};

/// Objects per page of a list.
const PAGE: u32 = 500;
/// Shortest and longest time after which the server ends a watch, in seconds; randomised, so that replicas
/// do not reconnect at the same time.
const WATCH_SECONDS: (f64, f64) = (240.0, 300.0);
/// Time beyond that after which the client ends it.
const OVERDUE: Duration = Duration::from_secs(15);
/// A watch without an event that ended earlier counts as a failure.
const SHORT: Duration = Duration::from_secs(1);

/// A collection of objects in the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collection {
    /// `/api/v1/namespaces/NAMESPACE/pods`.
    pub path: String,
    /// Label selector; empty: all.
    pub labels: String,
    /// Field selector; empty: all.
    pub fields: String,
}

impl Collection {
    fn query(&self, more: &[(&str, &str)]) -> String {
        let own =
            [("labelSelector", self.labels.as_str()), ("fieldSelector", self.fields.as_str())];
        let pairs = own.iter().chain(more).filter(|(_, value)| !value.is_empty());
        let pair = |(key, value): &(&str, &str)| {
            format!("{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC))
        };
        format!("{}?{}", self.path, pairs.map(pair).collect::<Vec<_>>().join("&"))
    }
}

/// Returns the objects of a collection, read in pages, and the resourceVersion at which a watch
/// continues.
///
/// # Errors
/// [`KubeApiError`] when a page cannot be read.
pub async fn list<T: DeserializeOwned>(
    access: &Access,
    collection: &Collection,
) -> Result<(Vec<T>, String), KubeApiError> {
    let (mut items, mut next) = (Vec::new(), String::new());
    loop {
        let page = PAGE.to_string();
        let query = collection.query(&[("limit", &page), ("continue", &next)]);
        let body = api::get(access, &query).await?.read_list().await?;
        let page: ObjectList<T> = serde_json::from_slice(&body)?;
        items.extend(page.items);
        if page.metadata.next.is_empty() {
            return Ok((items, page.metadata.resource_version));
        }
        next = page.metadata.next;
    }
}

/// The list and watch of one collection.
pub struct Watcher<T> {
    access: Access,
    collection: Collection,
    objects: Objects<T>,
    backoff: Backoff,
    is_failing: bool,
}

impl<T: Object + PartialEq + DeserializeOwned> Watcher<T> {
    /// Creates the watcher; the first request is sent by [`Watcher::run`].
    pub fn new(access: Access, collection: Collection) -> Watcher<T> {
        Watcher {
            access,
            collection,
            objects: Objects::default(),
            backoff: Backoff::default(),
            is_failing: false,
        }
    }

    /// Calls `changed` after the first list and whenever the objects differ; ends when it is dropped.
    pub async fn run(mut self, mut changed: impl FnMut(&Objects<T>)) {
        loop {
            let step = match self.objects.version().is_empty() {
                true => self.list(&mut changed).await,
                false => self.watch(&mut changed).await,
            };
            if let Err(error) = step {
                self.failed(&error).await;
            }
        }
    }

    /// Waits before the next attempt. The first 410 lists again at once.
    async fn failed(&mut self, error: &KubeApiError) {
        let is_first = self.backoff.failures() == 0;
        let delay = self.backoff.failed(fastrand::f64(), error.retry_after());
        let path = &self.collection.path;
        if error.is_gone() {
            self.objects.expire();
            tracing::info!(path, "the watch has expired: listing again");
            if is_first {
                return;
            }
        } else if self.is_failing {
            tracing::debug!(path, "{error}");
        } else {
            self.is_failing = true;
            tracing::warn!(path, "the last known objects stay in force: {error}");
        }
        sleep(delay.to_duration()).await;
    }

    async fn list(&mut self, changed: &mut impl FnMut(&Objects<T>)) -> Result<(), KubeApiError> {
        let (items, version) = list(&self.access, &self.collection).await?;
        if std::mem::take(&mut self.is_failing) {
            tracing::info!(path = self.collection.path, "the API server answers again");
        }
        if self.objects.replace(items, version) {
            changed(&self.objects);
        }
        Ok(())
    }

    /// One watch, up to its end.
    async fn watch(&mut self, changed: &mut impl FnMut(&Objects<T>)) -> Result<(), KubeApiError> {
        let began = Instant::now();
        let (least, most) = WATCH_SECONDS;
        let seconds = (least + (most - least) * fastrand::f64()) as u32;
        let end = began + Duration::from_secs(seconds.into()) + OVERDUE;
        let seconds = seconds.to_string();
        let query = self.collection.query(&[
            ("watch", "1"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", self.objects.version()),
            ("timeoutSeconds", &seconds),
        ]);
        let mut answer = api::get(&self.access, &query).await?;
        let mut events = 0u32;
        let ended = loop {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(line) = timeout(left, answer.next_line()).await else { break Ok(()) };
            match line.and_then(|line| line.map(|line| read(&line)).transpose()) {
                Ok(Some(event)) => {
                    events += 1;
                    if self.objects.apply(event) == Effect::Changed {
                        changed(&self.objects);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // Without this back-off, a successful list and a failing watch would alternate without a delay.
        let lasted = events > 0 || began.elapsed() >= SHORT;
        if lasted {
            self.backoff.succeeded();
            self.is_failing = false;
        }
        ended.and(if lasted { Ok(()) } else { Err(KubeApiError::Short) })
    }
}

/// An ERROR event ends the watch as a refusal would.
fn read<T: DeserializeOwned>(line: &[u8]) -> Result<WatchEvent<T>, KubeApiError> {
    match event::parse(line)? {
        WatchEvent::Error { code, message, retry_after } => {
            let retry_after = retry_after.map(|seconds| Seconds(f64::from(seconds)));
            Err(KubeApiError::Status { code, message, retry_after })
        }
        event => Ok(event),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_encoded_and_leaves_out_what_is_empty() {
        let collection = Collection {
            path: "/api/v1/namespaces/llm/pods".into(),
            labels: "app=a,tier in (x,y)".into(),
            fields: String::new(),
        };
        let query = collection.query(&[("limit", "500"), ("continue", "")]);
        let expected =
            "/api/v1/namespaces/llm/pods?labelSelector=app%3Da%2Ctier%20in%20%28x%2Cy%29&limit=500";
        assert_eq!(query, expected);
    }
}
