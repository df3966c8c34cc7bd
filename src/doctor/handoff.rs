//! A trial hand-off between two engines: one short prompt, prefilled on the first and decoded on the
//! second, with the legs that the proxy sends.

use serde::Deserialize;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tidegate_engine::trial::{TRIAL_PATH, TrialRequest, tokens_received};
use tidegate_engine::{Family, LegBody, Legs, Peer, RendezvousInfo};
use tidegate_settings::{BackendSettings, Settings};
use tidegate_types::Role;

use super::{DoctorReport, Level};
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
    let mut channel = None;
    let ended = trial.run(model, &mut channel).await;
    if let Some(channel) = channel {
        side_channel((from, to), &channel, report);
    }
    match ended {
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

/// Where decode engines fetch the KV cache, as vLLM's NIXL connectors announce it with each prefill.
#[derive(Debug, Deserialize)]
struct SideChannel {
    remote_host: String,
    remote_port: u16,
}

impl SideChannel {
    fn of(answer: &[u8]) -> Option<SideChannel> {
        #[derive(Deserialize)]
        struct Announced {
            kv_transfer_params: SideChannel,
        }
        serde_json::from_slice(answer).ok().map(|answer: Announced| answer.kv_transfer_params)
    }

    fn is_loopback(&self) -> bool {
        let host = self.remote_host.trim_matches(['[', ']']);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

/// Reports the address that the first engine announces: once for each engine and result.
fn side_channel(
    (from, to): (&BackendSettings, &BackendSettings),
    channel: &SideChannel,
    report: &mut DoctorReport,
) {
    const CHECK: &str = "side channel";
    let are_apart = host_of(&from.url).ok() != host_of(&to.url).ok();
    let is_wrong = channel.is_loopback() && are_apart;
    let level = if is_wrong { Level::Error } else { Level::Ok };
    let is_known = |known: &super::Finding| {
        known.subject == from.name && known.check == CHECK && known.level == level
    };
    if report.findings.iter().any(is_known) {
        return;
    }
    let SideChannel { remote_host, remote_port } = channel;
    let detail = format!("the engine announces {remote_host}:{remote_port}");
    match is_wrong {
        false => report.ok(&from.name, CHECK, detail),
        true => report.error(
            &from.name,
            CHECK,
            format!("{detail}, which {} cannot reach", to.name),
            "start the engine with VLLM_NIXL_SIDE_CHANNEL_HOST=an address that the other engines reach",
        ),
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
    /// `channel` is what the first engine announces, also where the hand-off then fails.
    async fn run(&self, model: &str, channel: &mut Option<SideChannel>) -> Result<(), Failed> {
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
                *channel = SideChannel::of(&answer.body);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        let backend = |name: &str, host: &str| {
            format!(
                "[[backends]]\nname = \"{name}\"\nurl = \"http://{host}:8000\"\nengine = \"vllm\"\n"
            )
        };
        let text = backend("a", "10.0.0.1") + &backend("b", "10.0.0.2") + &backend("c", "10.0.0.3");
        Settings::parse(&text).unwrap()
    }

    #[test]
    fn a_side_channel_on_loopback_is_an_error_for_engines_on_other_machines() {
        let settings = settings();
        let [a, b, c] = &settings.backends[..] else { panic!("three backends") };
        let of = |host: &str| {
            let answer = format!(
                "{{\"kv_transfer_params\":{{\"remote_host\":\"{host}\",\"remote_port\":5600}}}}"
            );
            SideChannel::of(answer.as_bytes()).unwrap()
        };
        let mut report = DoctorReport::default();
        for host in ["localhost", "127.0.0.1"] {
            side_channel((a, b), &of(host), &mut report);
            side_channel((a, c), &of(host), &mut report);
        }
        side_channel((b, a), &of("10.0.0.2"), &mut report);
        let seen: Vec<(&str, Level)> =
            report.findings.iter().map(|each| (each.subject.as_str(), each.level)).collect();
        assert_eq!(seen, [("a", Level::Error), ("b", Level::Ok)]);
        assert!(report.findings[0].detail.ends_with("localhost:5600, which b cannot reach"));
        assert!(SideChannel::of(b"{\"choices\":[]}").is_none(), "another family's answer");
    }
}
