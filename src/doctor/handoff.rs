//! A trial hand-off between two engines: one short prompt, prefilled on the first and decoded on the
//! second, with the legs that the proxy sends.

use std::time::{Duration, Instant};
use tidegate_engine::trial::{TRIAL_PATH, TrialRequest, tokens_received};
use tidegate_engine::{Family, LegBody, Legs, Peer, RendezvousInfo};
use tidegate_settings::{BackendSettings, Settings};
use tidegate_types::Role;

use super::DoctorReport;
use crate::ask::{Client, HttpAnswer, host_of};

/// Length of the prompt in words: several KV blocks of any engine.
const WORDS: usize = 96;

/// Runs a trial hand-off in one direction of a pair.
pub async fn check(
    settings: &Settings,
    (from, to): (&BackendSettings, &BackendSettings),
    model: &str,
    limit: Duration,
    report: &mut DoctorReport,
) {
    let groups = settings.groups();
    let group = |of: &BackendSettings| {
        settings.backends.iter().position(|each| each.name == of.name).map(|at| groups[at])
    };
    let family = from.family();
    let may =
        from.allowed_roles().contains(Role::Prefill) && to.allowed_roles().contains(Role::Decode);
    if !family.can_split() || !may || group(from) != group(to) {
        return;
    }
    let subject = format!("{} → {}", from.name, to.name);
    let clients = super::client(settings, from, limit)
        .and_then(|first| Ok((first, super::client(settings, to, limit)?)));
    let Ok((first, second)) = clients else { return };
    let began = Instant::now();
    let before = moved(&second, to).await;
    let trial = Trial { family, from, to, first: &first, second: &second };
    match trial.run(model).await {
        Err((engine, problem)) => report.error(
            &subject,
            "hand-off",
            format!("{engine}: {problem}"),
            "check the connector's hosts and ports from the second engine's machine, and both engines' logs",
        ),
        Ok(()) => {
            let took = format!("{:.0} ms", began.elapsed().as_secs_f64() * 1e3);
            let after = moved(&second, to).await;
            match (before, after) {
                (Some(before), Some(after)) if after <= before => report.warn(
                    &subject,
                    "hand-off",
                    format!("answered in {took}, but the second engine computed the prompt itself"),
                    "with kv_load_failure_policy=recompute a failed transfer is silent: see the engine's log",
                ),
                (Some(before), Some(after)) => {
                    let tokens = after - before;
                    report.ok(&subject, "hand-off", format!("{tokens:.0} tokens moved, {took}"));
                }
                _ => report.ok(&subject, "hand-off", format!("answered in {took}")),
            }
        }
    }
}

struct Trial<'a> {
    family: Family,
    from: &'a BackendSettings,
    to: &'a BackendSettings,
    first: &'a Client,
    second: &'a Client,
}

/// Name of the failed engine, and the problem.
type Failed = (String, String);

impl Trial<'_> {
    async fn run(&self, model: &str) -> Result<(), Failed> {
        // A unique number, so that no prefix cache holds the prompt.
        let id = fastrand::u64(..);
        let failed = |error: String| (self.from.name.clone(), error);
        let request = TrialRequest::new(model, id, WORDS).map_err(|e| failed(e.to_string()))?;
        let host = host_of(&self.from.url).map_err(|error| failed(error.to_string()))?;
        let key = self.key().map_err(failed)?;
        let peer = self.peer(&host).await.map_err(failed)?;
        let rendezvous = RendezvousInfo {
            host: &host,
            port: self.from.rendezvous_port(),
            id,
            peer: peer.as_ref(),
            key: key.as_deref(),
        };
        match request.legs(self.family, &rendezvous) {
            Legs::Colocated => {
                Err(failed("the engine family cannot split a completion".to_owned()))
            }
            Legs::PrefillFirst { prefill } => {
                let answer = self.leg(self.first, self.from, prefill.into()).await?;
                let decode = request.decode_leg(self.family, &answer.body, key.as_deref());
                self.leg(self.second, self.to, decode.map_err(failed)?).await.map(drop)
            }
            Legs::Concurrent(pair) => {
                let prefill = self.leg(self.first, self.from, pair.prefill);
                let decode = self.leg(self.second, self.to, pair.decode);
                let (prefill, decode) = tokio::join!(prefill, decode);
                prefill.and(decode).map(drop)
            }
        }
    }

    async fn leg(
        &self,
        client: &Client,
        on: &BackendSettings,
        leg: LegBody,
    ) -> Result<HttpAnswer, Failed> {
        let header = leg.header.as_ref().map(|(name, value)| (*name, &**value));
        let answer = client.post(&on.url, TRIAL_PATH, leg.body, header).await;
        let answer = answer.map_err(|error| (on.name.clone(), error.to_string()))?;
        match answer.status.is_success() {
            true => Ok(answer),
            false => {
                let text: String =
                    String::from_utf8_lossy(&answer.body).chars().take(200).collect();
                Err((on.name.clone(), format!("{}: {text}", answer.status)))
            }
        }
    }

    /// Returns the rank for the rendezvous, if the family queries it before the legs.
    async fn peer(&self, host: &str) -> Result<Option<Peer>, String> {
        let Some(ask) = self.family.peer_query() else { return Ok(None) };
        let url = match ask.at_bootstrap {
            true => format!("http://{host}:{}", self.from.rendezvous_port()),
            false => self.from.url.clone(),
        };
        let answer = self.first.get(&url, ask.path).await;
        let answer = answer.map_err(|error| format!("{url}{}: {error}", ask.path))?;
        let peers = self.family.read_peers(&answer.body).map_err(|error| error.to_string())?;
        Ok(peers.into_iter().next())
    }

    /// TensorRT-LLM's key for hand-offs.
    fn key(&self) -> Result<Option<Vec<u8>>, String> {
        match (&self.from.disagg_key, &self.from.disagg_key_file) {
            (Some(key), _) => Ok(Some(key.0.clone().into_bytes())),
            (None, Some(path)) => {
                let key = tidegate_proxy::files::secret(path).map_err(|error| error.to_string())?;
                Ok(Some(key.into_bytes()))
            }
            (None, None) => Ok(None),
        }
    }
}

/// Returns the prompt tokens that an engine received from others according to its metrics.
async fn moved(client: &Client, on: &BackendSettings) -> Option<f64> {
    let page = client.get(&on.url, "/metrics").await.ok()?;
    tokens_received(&String::from_utf8_lossy(&page.body))
}
