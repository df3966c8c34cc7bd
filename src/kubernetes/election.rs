//! Leader election by a Lease in the API server. The Lease is read every `retry`; only its holder
//! writes it, with the plan as an annotation. Each write has the resourceVersion of the last read
//! as precondition, so that a replaced leader gets 409.
//!
//! Without the API server the last plan stays in force, and there is no leader.

use bytes::Bytes;
use http::Method;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tidegate_types::{Moment, Seconds};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::access::Access;
use crate::api::{self, KubeApiError};
use crate::lease::{ElectionParams, ElectionStep, Elector, Lease, LeaseMetadata, LeaseSpec};
use crate::plan::{ADDRESS, ANNOTATION, SharedPlan};

/// Time-out of one request. A later answer is not used.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Shortest time between two writes of plans: at most five a second.
const WRITE_GAP: Duration = Duration::from_millis(200);

/// State of an election.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elected {
    /// The fencing epoch while this process leads.
    pub epoch: Option<u64>,
    /// Until when this process leads if it does not renew the Lease.
    pub until: Option<Instant>,
    /// Identity of the Lease's holder; `None`: it is free, or was never read.
    pub holder: Option<String>,
    /// URL at which the holder exchanges loads, if it says one.
    pub address: Option<String>,
    /// The plan in force, written by this or another leader.
    pub plan: Option<SharedPlan>,
}

/// One contender for a Lease.
pub struct Election {
    access: Access,
    name: String,
    params: ElectionParams,
    elector: Elector,
    started: Instant,
    /// URL at which this process exchanges loads.
    address: Option<String>,
    /// The Lease as it was last read.
    lease: Option<Lease>,
}

impl Election {
    /// Creates a contender for the Lease `name` in the namespace of `access`. `identity` must be
    /// unique to this process.
    pub fn new(access: Access, name: &str, identity: String, params: ElectionParams) -> Election {
        let elector = Elector::new(identity, params);
        Election {
            access,
            name: name.to_owned(),
            params,
            elector,
            started: Instant::now(),
            address: None,
            lease: None,
        }
    }

    /// Sets the URL at which this process exchanges loads; the Lease carries it while the process leads.
    #[must_use]
    pub fn with_address(self, address: Option<String>) -> Election {
        Election { address, ..self }
    }

    /// Contends until the other end of a channel is dropped, then releases the Lease. While this
    /// process leads, plans sent to `plans` are written with its epoch. `elected` receives the
    /// holder and the plan in force.
    pub async fn run(
        mut self,
        mut plans: watch::Receiver<Option<SharedPlan>>,
        elected: watch::Sender<Elected>,
    ) {
        let mut is_failing = false;
        loop {
            let plan = plans.borrow_and_update().clone();
            match self.turn(&plan).await {
                Ok(()) => is_failing = false,
                Err(error) if !is_failing => {
                    is_failing = true;
                    tracing::warn!("the last plan stays in force: {error}");
                }
                Err(error) => tracing::debug!("access to the Lease failed: {error}"),
            }
            self.show(&elected);
            // Leadership expires when renewals fail, so that it is checked at least every `retry`.
            let rest = self.params.retry.to_duration();
            tokio::select! {
                () = sleep(rest) => {}
                changed = plans.changed() => match changed {
                    Ok(()) => sleep(WRITE_GAP).await,
                    Err(_) => return self.release().await,
                },
                () = elected.closed() => return self.release().await,
            }
        }
    }

    /// Releases the Lease, so that the next leader need not wait for its expiry.
    async fn release(&mut self) {
        let Some(record) = self.elector.released(self.now()) else { return };
        if let Err(error) = self.write(Method::PUT, record, None).await {
            tracing::info!("the Lease was not released: {error}");
        }
    }

    /// Reads the Lease and performs the elector's next step.
    async fn turn(&mut self, plan: &Option<SharedPlan>) -> Result<(), KubeApiError> {
        self.lease = self.read().await?;
        let now = self.now();
        self.elector.observe(self.lease.as_ref().map(|lease| &lease.spec), now);
        let wall = rfc3339(SystemTime::now());
        match self.elector.step(now, &wall) {
            ElectionStep::Create(record) => self.write(Method::POST, record, None).await,
            ElectionStep::Write(record) => {
                let plan = self.due(plan, &record);
                self.write(Method::PUT, record, plan).await
            }
            ElectionStep::Wait => match (self.elector.epoch(now), self.lease.as_ref()) {
                (Some(_), Some(lease)) => {
                    let record = LeaseSpec { renew_time: Some(wall), ..lease.spec.clone() };
                    match self.due(plan, &record) {
                        Some(plan) => self.write(Method::PUT, record, Some(plan)).await,
                        None => Ok(()),
                    }
                }
                _ => Ok(()),
            },
        }
    }

    /// Returns the plan to write, if it differs from the one in the Lease. A new leader keeps its
    /// predecessor's plan until it has made one.
    fn due(&self, plan: &Option<SharedPlan>, record: &LeaseSpec) -> Option<SharedPlan> {
        let plan = SharedPlan { epoch: record.lease_transitions, ..plan.clone()? };
        let written = self.lease.as_ref().and_then(SharedPlan::of).unwrap_or_default();
        plan.replaces(&written).then_some(plan)
    }

    async fn write(
        &mut self,
        method: Method,
        spec: LeaseSpec,
        plan: Option<SharedPlan>,
    ) -> Result<(), KubeApiError> {
        let mut metadata = self.lease.as_ref().map(|lease| lease.metadata.clone());
        let mut metadata = metadata.take().unwrap_or_else(|| LeaseMetadata {
            name: self.name.clone(),
            ..LeaseMetadata::default()
        });
        match &self.address {
            Some(address) => drop(metadata.annotations.insert(ADDRESS.to_owned(), address.clone())),
            // That of an earlier holder.
            None => drop(metadata.annotations.remove(ADDRESS)),
        }
        if let Some(plan) = plan {
            metadata.annotations.insert(ANNOTATION.to_owned(), plan.to_text());
        }
        let lease = Lease {
            api_version: "coordination.k8s.io/v1".to_owned(),
            kind: "Lease".to_owned(),
            metadata,
            spec: spec.clone(),
        };
        let path = match method {
            Method::POST => self.collection(),
            _ => format!("{}/{}", self.collection(), self.name),
        };
        let body = Bytes::from(serde_json::to_vec(&lease)?);
        let began = self.now();
        let sending = api::send(&self.access, method, &path, Some(("application/json", body)));
        let answer = async { Ok(serde_json::from_slice(&sending.await?.read_list().await?)?) };
        let written: Lease = within(answer).await?;
        self.elector.written(spec, began);
        self.lease = Some(written);
        Ok(())
    }

    /// Reads the Lease; `None`: it does not exist. Writes nothing.
    ///
    /// # Errors
    /// [`KubeApiError`] when it cannot be read.
    pub async fn read(&self) -> Result<Option<Lease>, KubeApiError> {
        let path = format!("{}/{}", self.collection(), self.name);
        let reading = async {
            let body = api::get(&self.access, &path).await?.read_list().await?;
            Ok(Some(serde_json::from_slice(&body)?))
        };
        match within(reading).await {
            Err(error) if error.is_not_found() => Ok(None),
            read => read,
        }
    }

    /// Publishes the plan of the Lease if it is later than the published one.
    fn show(&self, elected: &watch::Sender<Elected>) {
        let epoch = self.elector.epoch(self.now());
        let until = self.elector.leads_until().filter(|_| epoch.is_some());
        let until = until.map(|until| self.started + (until - Moment::START).to_duration());
        let holder = self.lease.as_ref().and_then(|lease| lease.spec.holder_identity.clone());
        let lease = self.lease.as_ref().filter(|_| holder.as_ref().is_some_and(|h| !h.is_empty()));
        let address = lease.and_then(|lease| lease.metadata.annotations.get(ADDRESS).cloned());
        let read = self.lease.as_ref().and_then(SharedPlan::of);
        elected.send_if_modified(|shown| {
            let plan = match (&shown.plan, read) {
                (Some(known), Some(read)) if !read.replaces(known) => Some(known.clone()),
                (known, None) => known.clone(),
                (_, read) => read,
            };
            let new = Elected { epoch, until, holder, address, plan };
            let differs = *shown != new;
            *shown = new;
            differs
        });
    }

    fn collection(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.access.namespace)
    }

    fn now(&self) -> Moment {
        Moment::START + Seconds::from(self.started.elapsed())
    }
}

async fn within<T>(what: impl Future<Output = Result<T, KubeApiError>>) -> Result<T, KubeApiError> {
    timeout(TIMEOUT, what).await.unwrap_or(Err(KubeApiError::Late(TIMEOUT)))
}

/// A time as Kubernetes' MicroTime: `2026-11-26T15:00:00.000000Z`.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days since 0000-03-01, in eras of 400 years (Howard Hinnant's civil_from_days).
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let micros = since.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_kubernetes_micro_time_format() {
        let at = |seconds, micros: u64| {
            let since = Duration::from_secs(seconds) + Duration::from_micros(micros);
            rfc3339(UNIX_EPOCH + since)
        };
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_782_399, 7), "2000-02-28T23:59:59.000007Z");
        assert_eq!(at(951_782_400, 0), "2000-02-29T00:00:00.000000Z");
        assert_eq!(at(1_795_705_200, 123_456), "2026-11-26T15:00:00.123456Z");
        assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000000Z");
    }
}
