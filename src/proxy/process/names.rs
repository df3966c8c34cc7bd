//! DNS names as a source of backends (`[backends.dns]`). A name that does not resolve, or without an
//! address that can be used, keeps its last known backends. A target of SRV records that cannot be
//! looked up keeps its last known addresses.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tidegate_settings::discovered::host_of;
use tidegate_settings::reconcile::SourceId;
use tidegate_settings::{BackendSettings, DnsSettings, Settings};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::control::FleetUpdate;
use crate::process::desired::{DesiredBackends, checked, send_changes};
use crate::process::srv;

/// Longest wait for one resolution; glibc's resolver gives up after 10 s per server by default
/// (resolv.conf(5): timeout 5 s, 2 attempts).
const RESOLUTION_MAX: Duration = Duration::from_secs(10);

/// An address of an engine, and the host that a certificate of it names.
type Located = (IpAddr, u16, String);
/// What a resolver knows of a name.
#[derive(Debug, Default)]
struct Resolved {
    found: BTreeSet<Located>,
    /// Port and host of targets that could not be looked up.
    unknown: BTreeSet<(u16, String)>,
}

/// Answer of a resolver.
type Answer = Pin<Box<dyn Future<Output = io::Result<Resolved>> + Send>>;
/// Resolves a name; replaced in tests.
type Resolver = Arc<dyn Fn(&DnsSettings) -> Answer + Send + Sync>;

/// The DNS names of all entries.
pub struct Names {
    entries: Vec<DnsEntry>,
    resolve: Resolver,
}

/// The DNS name of one entry.
struct DnsEntry {
    dns: DnsSettings,
    template: BackendSettings,
    /// The last known addresses.
    located: BTreeSet<Located>,
    /// The last known backends; `None` before the first answer.
    known: Option<Vec<BackendSettings>>,
}

impl Names {
    /// `None` without `[backends.dns]`.
    pub fn new(settings: &Settings) -> Option<Names> {
        Names::resolved_by(settings, Arc::new(|dns: &DnsSettings| system(dns)))
    }

    fn resolved_by(settings: &Settings, resolve: Resolver) -> Option<Names> {
        let entry = |template: &BackendSettings| {
            let (dns, template) = (template.dns.clone()?, template.clone());
            Some(DnsEntry { dns, template, located: BTreeSet::new(), known: None })
        };
        let entries: Vec<DnsEntry> = settings.sources.iter().filter_map(entry).collect();
        (!entries.is_empty()).then_some(Names { entries, resolve })
    }

    /// Resolves each name once; `None` if no name has an address.
    pub async fn first(&mut self) -> Option<DesiredBackends> {
        let mut known = Vec::with_capacity(self.entries.len());
        for entry in &mut self.entries {
            known.push(entry.resolved(&self.resolve).await);
        }
        // Only now: backends that the caller has not received would count as sent.
        self.entries.iter_mut().zip(known).for_each(|(entry, known)| entry.known = known);
        let lists: Vec<_> = self.entries.iter().filter_map(|entry| entry.known.clone()).collect();
        (!lists.is_empty()).then(|| checked(lists.into_iter().flatten()))
    }

    /// Follows the names until the control loop ends.
    pub async fn run(self, updates: mpsc::Sender<FleetUpdate>) {
        let mut tasks = JoinSet::new();
        let mut lists = Vec::new();
        for entry in self.entries {
            let (sender, list) = watch::channel(entry.known.clone());
            tasks.spawn(entry.follow(Arc::clone(&self.resolve), sender));
            lists.push(list);
        }
        let desired = |all: Vec<BackendSettings>| checked(all.into_iter());
        send_changes(SourceId::Dns, lists, updates, desired).await;
    }
}

impl DnsEntry {
    async fn follow(
        mut self,
        resolve: Resolver,
        list: watch::Sender<Option<Vec<BackendSettings>>>,
    ) {
        loop {
            tokio::time::sleep(self.dns.refresh.to_duration()).await;
            let Some(found) = self.resolved(&resolve).await else { continue };
            list.send_if_modified(|known| {
                let differs = known.as_ref() != Some(&found);
                *known = Some(found);
                differs
            });
        }
    }

    /// Resolves the backends; `None` if the name has no address that can be used.
    async fn resolved(&mut self, resolve: &Resolver) -> Option<Vec<BackendSettings>> {
        let name = &self.dns.name;
        let Resolved { mut found, unknown } =
            match tokio::time::timeout(RESOLUTION_MAX, resolve(&self.dns)).await {
                Ok(Ok(resolved)) => resolved,
                Ok(Err(error)) => {
                    tracing::warn!(
                        name,
                        "name cannot be resolved, its known backends stay: {error}"
                    );
                    return None;
                }
                Err(_) => {
                    tracing::warn!(name, "resolution timed out, the name's known backends stay");
                    return None;
                }
            };
        for (port, host) in &unknown {
            tracing::warn!(
                name,
                host,
                port,
                "target cannot be looked up, its known addresses stay"
            );
            let of_target = |at: &&Located| at.1 == *port && at.2 == *host;
            found.extend(self.located.iter().filter(of_target).cloned());
        }
        // Resolvers that block names answer with the unspecified address.
        found.retain(|(ip, ..)| !ip.is_unspecified() && !ip.is_multicast());
        let backends: Vec<BackendSettings> =
            found.iter().map(|at| self.backend(at.clone())).collect();
        if !backends.iter().any(|backend| backend.problems().is_empty()) {
            tracing::warn!(name, "name has no usable address, its known backends stay");
            return None;
        }
        self.located = found;
        Some(backends)
    }

    /// Returns the backend at one address. A certificate is verified against the DNS name, or against
    /// the host in the SRV record.
    fn backend(&self, (ip, port, host): Located) -> BackendSettings {
        let by_port = if self.dns.srv { format!("-{port}") } else { String::new() };
        let name = format!("{}-{ip}{by_port}", self.template.name).replace(':', "-");
        match self.template.is_https() {
            true => self.template.at(name, &host, ip, port, 0),
            false => self.template.at(name, &host_of(ip), ip, port, 0),
        }
    }
}

/// The system's resolver: A and AAAA records, and the hosts file; SRV records from a name server.
fn system(dns: &DnsSettings) -> Answer {
    let DnsSettings { name, port, srv, server, .. } = dns.clone();
    Box::pin(async move {
        if srv {
            let all = srv::resolve(&name, server).await?;
            let found = all.found.into_iter().map(|(at, ip)| (ip, at.port, at.host));
            let unknown = all.unknown.into_iter().map(|at| (at.port, at.host));
            return Ok(Resolved { found: found.collect(), unknown: unknown.collect() });
        }
        let found = tokio::net::lookup_host((name.as_str(), port)).await?;
        let found = found.map(|address| (address.ip(), port, name.clone())).collect();
        Ok(Resolved { found, ..Resolved::default() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Desired;
    use std::collections::VecDeque;
    use std::sync::Mutex;

    type Script = Arc<Mutex<VecDeque<io::Result<Vec<&'static str>>>>>;

    /// A name resolved to these answers in order; afterwards every resolution fails.
    fn names(url: &str, answers: Vec<io::Result<Vec<&'static str>>>) -> (Names, Script) {
        let text = format!(
            "[upstream]\nca_file = \"ca\"\n[[backends]]\nname = \"e\"\nurl = \"{url}\"\n\
             [backends.dns]\nname = \"engines.example\"\nport = 81\nrefresh_seconds = 1\n"
        );
        let settings = Settings::parse(&text).unwrap();
        let script: Script = Arc::new(Mutex::new(answers.into()));
        let answers = Arc::clone(&script);
        let resolve = move |dns: &DnsSettings| -> Answer {
            let at = |ip: &&str| (ip.parse().unwrap(), dns.port, dns.name.clone());
            let next = answers.lock().unwrap().pop_front();
            let next = next.unwrap_or_else(|| Err(io::Error::other("no further answer")));
            // "?": the target cannot be looked up.
            let parsed = next.map(|all| Resolved {
                unknown: all
                    .iter()
                    .filter(|ip| **ip == "?")
                    .map(|_| (dns.port, dns.name.clone()))
                    .collect(),
                found: all.iter().filter(|ip| **ip != "?").map(at).collect(),
            });
            Box::pin(std::future::ready(parsed))
        };
        (Names::resolved_by(&settings, Arc::new(resolve)).unwrap(), script)
    }

    fn lines(desired: DesiredBackends) -> Vec<String> {
        let line = |one: BackendSettings| format!("{} {} {}", one.name, one.url, one.ip.unwrap());
        desired.into_iter().map(|one| line(one.unwrap())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_come_and_go_and_failures_keep_the_last_ones() {
        let failed = || Err(io::Error::other("SERVFAIL"));
        let answers = vec![
            Ok(vec!["10.0.0.1"]),
            failed(),
            Ok(vec![]),
            Ok(vec!["10.0.0.1"]),
            // A failed target, and an answer that blocks the name.
            Ok(vec!["?"]),
            Ok(vec!["0.0.0.0", "::"]),
            Ok(vec!["fd00::7", "10.0.0.2"]),
        ];
        let (mut names, script) = names("http://any/base", answers);
        let first = names.first().await.unwrap();
        assert_eq!(lines(first), ["e-10.0.0.1 http://10.0.0.1:81/base 10.0.0.1"]);
        let (updates, mut sent) = mpsc::channel(4);
        tokio::spawn(names.run(updates));
        let update = sent.recv().await.unwrap();
        assert!(update.source == SourceId::Dns && script.lock().unwrap().is_empty());
        let Desired::All(desired) = update.desired else { panic!("a whole list") };
        let expected = [
            "e-10.0.0.2 http://10.0.0.2:81/base 10.0.0.2",
            "e-fd00--7 http://[fd00::7]:81/base fd00::7",
        ];
        assert_eq!(lines(desired), expected);
        drop(sent);
    }

    #[tokio::test]
    async fn certificates_are_verified_against_the_name() {
        let (mut names, _) = names("https://any", vec![Ok(vec!["10.0.0.1"])]);
        let first = names.first().await.unwrap();
        assert_eq!(lines(first), ["e-10.0.0.1 https://engines.example:81 10.0.0.1"]);
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_at_the_start_is_no_empty_list() {
        let (mut names, _) = names("http://any", vec![Ok(vec![])]);
        assert!(names.first().await.is_none());
    }
}
