//! Backends that join and leave while the proxy runs. Sources send [`FleetUpdate`]s; the reconciler
//! turns them into changes, and the control loop, the only writer, applies them.
//!
//! A joining backend is down until its first probe, which reads its facts and models. It begins
//! with slow start and the costs that its group has learned. A leaving backend is removed from
//! every pool at once (a replaced one when its successor is up), finishes its requests, and is then
//! removed from every index.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tidegate_scheduler::learn::Priors;
use tidegate_settings::BackendSettings;
use tidegate_settings::reconcile::{BackendChange, BadEntry, Reconciler, SourceId};
use tidegate_types::{BACKENDS_MAX, BackendId, Flip, GroupId, Moment, Role, Seconds};
use tokio::sync::{mpsc, oneshot};

use super::operator_backends::OperatorBackends;
use super::{ConfiguredModels, Control};
use crate::backends::fleet::{Backend, Pin, RoutingTable, TableEntry};
use crate::backends::probe::{self, ProbeParams, ProbeReport};
use crate::backends::startup_verification::configured;
use crate::signals::{self, SignalHost};
use crate::telemetry::journal::{JournalEntry, Numbers};

/// Time after which requests that still wait for the first byte of a leaving backend are retried
/// elsewhere. Its streams run to their end.
const DRAIN_MAX: Seconds = Seconds(300.0);
/// Longest time for which a replaced backend takes new work while its successor has not answered.
const SUCCESSOR_MAX: Seconds = Seconds(30.0);

/// Desired backends of a source. A source is a task with a clone of the `mpsc::Sender` of this
/// type; it sends its whole list at the start and after each change.
pub struct FleetUpdate {
    pub source: SourceId,
    pub desired: Desired,
    /// Receives the result, or the reasons of the refusal.
    pub reply: Option<oneshot::Sender<Result<ChangeCounts, String>>>,
}

/// The desired backends of a source.
pub enum Desired {
    /// All backends of the source; entries that cannot be used keep their previous version.
    All(Vec<Result<BackendSettings, BadEntry>>),
    /// Adds or replaces one backend; with its text for the state file.
    One(Box<BackendSettings>, serde_json::Value),
    /// Removes one backend.
    Without {
        name: String,
        /// Whether requests that wait for its first byte are retried elsewhere at once.
        now: bool,
    },
}

/// Number of backends that an update changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ChangeCounts {
    /// Backends that joined.
    pub joined: usize,
    /// Backends whose removal began.
    pub left: usize,
    /// Backends replaced by another version.
    pub replaced: usize,
}

/// Backends with what is wrong with each.
type Problems = Vec<(String, String)>;
/// Most problems in one message: a source may list any number of backends.
const PROBLEMS_SHOWN: usize = 20;

/// Returns problems one a line.
fn lines(problems: Problems) -> String {
    let more = problems.len().saturating_sub(PROBLEMS_SHOWN);
    let shown = problems.into_iter().take(PROBLEMS_SHOWN);
    let mut lines: Vec<String> = shown.map(|(name, why)| format!("{name}: {why}")).collect();
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines.join("\n")
}

/// Builds a backend from its settings for a slot and a configured group.
pub type BuildBackend =
    Box<dyn Fn(&BackendSettings, BackendId, GroupId) -> Result<Backend, String> + Send>;

/// Inputs of the control loop for changes of the fleet.
pub struct Membership {
    reconciler: Reconciler,
    make: BuildBackend,
    probe: ProbeParams,
    found: mpsc::Sender<ProbeReport>,
    operator_backends: OperatorBackends,
    /// Group name and configured group, by slot.
    groups: Vec<(String, GroupId)>,
    leaving: Vec<Leaving>,
    /// Why changes could not be made that are tried again, by backend.
    failed: BTreeMap<String, String>,
}

/// A backend that is being removed.
#[derive(Clone, Copy)]
struct Leaving {
    backend: BackendId,
    /// Successor, and the deadline until which this backend takes new work while the successor is
    /// not up.
    successor: Option<(BackendId, Moment)>,
    /// Deadline after which requests that wait for its first byte are retried elsewhere.
    until: Moment,
}

impl Membership {
    /// Creates the state for the backends in force in `reconciler`, with group names and groups by
    /// slot.
    pub fn new(
        reconciler: Reconciler,
        make: BuildBackend,
        probe: ProbeParams,
        found: mpsc::Sender<ProbeReport>,
        operator_backends: OperatorBackends,
        groups: Vec<(String, GroupId)>,
    ) -> Membership {
        Membership {
            reconciler,
            make,
            probe,
            found,
            operator_backends,
            groups,
            leaving: Vec::new(),
            failed: BTreeMap::new(),
        }
    }
}

impl Control {
    /// Applies an update and sends its result.
    pub(super) fn change_fleet(&mut self, update: FleetUpdate) {
        let FleetUpdate { source, desired, reply } = update;
        let now = self.proxy.clock.now();
        let done = match desired {
            Desired::All(all) => {
                let (mut changes, bad) = self.membership.reconciler.set(source, all);
                if source == SourceId::File {
                    let rekeyed = self.rekeyed(&changes);
                    changes.extend(rekeyed);
                }
                let done = self.apply_changes(changes, now + DRAIN_MAX);
                let bad = bad.into_iter().map(|bad| (bad.name, bad.problem));
                let lines = lines(bad.chain(done.1).collect());
                if lines.is_empty() { Ok(done.0) } else { Err(lines) }
            }
            Desired::One(backend, text) => {
                let name = backend.name.clone();
                let before = self.membership.reconciler.clone();
                let changes = self.membership.reconciler.put(source, *backend);
                let (done, mut problems) = self.apply_changes(changes, now + DRAIN_MAX);
                // The changes include those of other backends that failed before.
                problems.retain(|(failed, _)| *failed == name);
                if problems.is_empty() {
                    self.membership.operator_backends.add(&name, text);
                    Ok(done)
                } else {
                    self.membership.reconciler = before;
                    self.membership.failed.remove(&name);
                    Err(lines(problems))
                }
            }
            Desired::Without { name, now: at_once } => match self.proxy.fleet.named(&name) {
                None => Err(format!("no backend is named {name:?}")),
                Some(_) => {
                    let changes = self.membership.reconciler.remove(&name);
                    let is_hidden = self.membership.reconciler.is_hidden(&name);
                    self.membership.operator_backends.remove(&name, is_hidden);
                    let until = if at_once { now } else { now + DRAIN_MAX };
                    Ok(self.apply_changes(changes, until).0)
                }
            },
        };
        if let Err(problems) = &done {
            tracing::error!(?source, "backends: {problems}");
        }
        if let Some(reply) = reply {
            // The receiver is dropped if the operator closed the connection.
            reply.send(done).ok();
        }
    }

    /// Replaces the backends of all sources whose key files hold another key than the one in use. A
    /// file that cannot be read changes nothing. `changes`: others that are made anyway.
    fn rekeyed(&mut self, changes: &[BackendChange]) -> Vec<BackendChange> {
        let is_changed = |name: &str| {
            changes.iter().any(|change| match change {
                BackendChange::Join(one) | BackendChange::Replace(one) => one.name == name,
                BackendChange::Leave(_) => false,
            })
        };
        let has_other_key = |settings: &&BackendSettings| {
            let named = settings.api_key_file.is_some() || settings.disagg_key_file.is_some();
            let named = named && !is_changed(&settings.name);
            let Some(old) = self.proxy.fleet.named(&settings.name).filter(|_| named) else {
                return false;
            };
            let new = (self.membership.make)(settings, old.id, old.group);
            new.is_ok_and(|new| !new.has_keys_of(&old))
        };
        let in_force = self.membership.reconciler.in_force().values();
        let names: Vec<String> =
            in_force.filter(has_other_key).map(|settings| settings.name.clone()).collect();
        self.membership.reconciler.replace(&names)
    }

    /// Retries the changes that failed: a slot or an address was in use, or a key file was missing.
    /// A problem is logged once.
    pub(super) fn retry_failed(&mut self, now: Moment) {
        let before = std::mem::take(&mut self.membership.failed);
        let changes = self.membership.reconciler.again();
        let (_, mut problems) = self.apply_changes(changes, now + DRAIN_MAX);
        problems.retain(|(name, problem)| before.get(name) != Some(problem));
        if !problems.is_empty() {
            tracing::error!("backends: {}", lines(problems));
        }
    }

    /// Applies changes. Returns their counts, and the problems by backend. A backend that cannot be built does
    /// not replace its previous version.
    fn apply_changes(
        &mut self,
        changes: Vec<BackendChange>,
        until: Moment,
    ) -> (ChangeCounts, Problems) {
        let (mut done, mut problems) = (ChangeCounts::default(), Vec::new());
        for change in changes {
            match change {
                BackendChange::Leave(name) => {
                    if let Some(backend) = self.proxy.fleet.named(&name) {
                        self.leave(&backend, None, until);
                        done.left += 1;
                    }
                }
                BackendChange::Join(settings) | BackendChange::Replace(settings) => {
                    let old = self.proxy.fleet.named(&settings.name);
                    match self.built(&settings) {
                        Ok(backend) => {
                            let id = backend.id;
                            if let Some(old) = &old {
                                self.leave(old, Some(id), until);
                            }
                            self.join(backend, &settings);
                            let count =
                                if old.is_some() { &mut done.replaced } else { &mut done.joined };
                            *count += 1;
                        }
                        Err(problem) => {
                            self.membership.reconciler.failed(&settings.name);
                            self.membership.failed.insert(settings.name.clone(), problem.clone());
                            problems.push((settings.name.clone(), problem));
                        }
                    }
                }
            }
        }
        if done != ChangeCounts::default() {
            self.publish_pools();
            tracing::info!(
                joined = done.joined,
                left = done.left,
                replaced = done.replaced,
                "backends changed"
            );
        }
        (done, problems)
    }

    /// The backend for a free slot.
    fn built(&self, settings: &BackendSettings) -> Result<Arc<Backend>, String> {
        let slot = self.proxy.fleet.free_slot();
        if slot >= BACKENDS_MAX {
            return Err(format!("all {BACKENDS_MAX} slots for backends are in use"));
        }
        let group = self.group_of(&settings.group_name());
        let backend = (self.membership.make)(settings, BackendId(slot as u16), group)?;
        self.refuse_own_address(&backend)?;
        let address = |backend: &Backend| {
            let address = backend.pool.address();
            (address.to_string(), address.ip)
        };
        let (own, backends) = (address(&backend), self.proxy.fleet.backends());
        let mut others = backends.iter().filter(|b| !b.is_leaving() && b.name != backend.name);
        match others.find(|other| address(other) == own) {
            Some(other) => Err(format!("its url is that of {}: one entry per engine", other.name)),
            None => Ok(Arc::new(backend)),
        }
    }

    /// Refuses a backend at an address of this gateway: requests would loop.
    fn refuse_own_address(&self, backend: &Backend) -> Result<(), String> {
        let address = backend.pool.address();
        let scheme = if address.tls { "https" } else { "http" };
        let fixed =
            address.ip.map(|ip| format!("{scheme}://{}", SocketAddr::new(ip, address.port)));
        let named = format!("{scheme}://{}", address.authority);
        let settings = self.proxy.settings.load();
        let own = |url: &String| settings.values.own_address(url);
        match std::iter::once(&named).chain(&fixed).find_map(own) {
            Some(setting) => {
                Err(format!("its url is that of {setting}, an address of this gateway"))
            }
            None => Ok(()),
        }
    }

    /// The configured group with this name, else the lowest unused one.
    fn group_of(&self, name: &str) -> GroupId {
        let in_fleet = |backend: &&Arc<Backend>| !backend.has_left();
        let backends = self.proxy.fleet.backends();
        let known = &self.membership.groups;
        let mut present =
            backends.iter().filter(in_fleet).map(|backend| &known[backend.id.index()]);
        if let Some((_, group)) = present.find(|(known, _)| known == name) {
            return *group;
        }
        let table = self.proxy.fleet.table();
        let used = |group: GroupId| {
            backends
                .iter()
                .filter(in_fleet)
                .any(|backend| table.entry(backend.id).group == group || backend.group == group)
        };
        (0..u16::MAX).map(GroupId).find(|group| !used(*group)).unwrap_or_default()
    }

    /// Adds a backend to the fleet. Its table entry is published first, so that a reader that sees
    /// the backend finds the entry; the pools are published last.
    fn join(&mut self, backend: Arc<Backend>, settings: &BackendSettings) {
        let (id, now) = (backend.id, self.proxy.clock.now());
        let priors = Priors { prefill: settings.prefill_prior, decode: settings.decode_prior };
        backend.health.joins();
        let role = settings.role.unwrap_or_else(|| self.first_role(&backend));
        id.put(&mut self.membership.groups, (settings.group_name(), backend.group));
        self.regressions.join(id, priors);
        self.pins.join(id, settings.role.filter(|_| settings.pin));
        self.compatibility.join(id, configured(settings, backend.group));
        self.catalog.join(id, ConfiguredModels::of(settings));
        self.proxy.metrics.join(&backend);
        self.proxy.signals.join(id, settings, &self.proxy.metrics);
        let (kv, block) = (backend.kv_capacity(), self.proxy.prefix_block);
        self.proxy.fleet.prefixes.forget(id);
        self.proxy.fleet.prefixes.set_kv_capacity(id, kv, block);
        let table = Arc::clone(&self.proxy.fleet.table());
        let peers = table.entries.iter().enumerate();
        let peers =
            peers.filter(|(slot, entry)| entry.group == backend.group && *slot != id.index());
        let peers: Vec<BackendId> = peers.map(|(slot, _)| BackendId(slot as u16)).collect();
        let (prefill, decode) = self.regressions.models(id, peers.into_iter());
        let group = backend.group;
        let transfer = self.regressions.transfer(group);
        let entry = TableEntry { role, group, prefill, decode, transfer };
        let (mut entries, mut roles) = (table.entries.clone(), table.plan.roles().to_vec());
        id.put(&mut entries, entry);
        id.put(&mut roles, role);
        let plan = table.plan.next(roles);
        self.proxy.fleet.publish(RoutingTable { entries, plan: plan.clone(), ..(*table).clone() });
        self.proxy.fleet.join(Arc::clone(&backend));
        self.state.flipped(id);
        self.recording.flipped(now, id);
        let flip = Flip { backend: id, from: Role::Draining, to: role };
        let (number, wall) = (plan.number(), self.proxy.clock.wall(now));
        let name = backend.name.to_string();
        let numbers = Numbers::new();
        self.note(JournalEntry::new(number, wall, name, flip, "joined", "applied", numbers));
        self.check_compatibility();
        self.note_holds();
        let host = Arc::clone(&self.proxy) as Arc<dyn SignalHost>;
        signals::follow(&host, &backend);
        let found = self.membership.found.clone();
        tokio::spawn(probe::run(backend, self.membership.probe, self.proxy.clock, found));
    }

    /// Chooses the first role of a backend: mixed if its peers are mixed or absent, else the rarer
    /// of prefill and decode among its peers; always a role that its launch flags allow.
    fn first_role(&self, backend: &Backend) -> Role {
        let table = self.proxy.fleet.table();
        let backends = self.proxy.fleet.backends();
        let peers = backends.iter().filter(|peer| {
            !peer.is_leaving() && peer.group == backend.group && peer.id != backend.id
        });
        let (mut prefills, mut decodes, mut mixed) = (0, 0, 0);
        for peer in peers {
            match table.plan.role(peer.id) {
                Role::Prefill => prefills += 1,
                Role::Decode => decodes += 1,
                Role::Mixed => mixed += 1,
                Role::Draining => {}
            }
        }
        let rarer = if prefills < decodes { Role::Prefill } else { Role::Decode };
        let wanted = if mixed > 0 || prefills + decodes == 0 { Role::Mixed } else { rarer };
        let order = [wanted, rarer, Role::Mixed, Role::Decode, Role::Prefill];
        let allowed = |role: &Role| backend.allowed.contains(*role);
        order.into_iter().find(allowed).unwrap_or(Role::Mixed)
    }

    /// Begins the removal of a backend: no new work from now on, or once its successor is up.
    fn leave(&mut self, backend: &Arc<Backend>, successor: Option<BackendId>, until: Moment) {
        let limit = self.proxy.clock.now() + SUCCESSOR_MAX;
        let successor = successor.map(|successor| (successor, limit));
        backend.set_leaving();
        if successor.is_none() {
            self.withdraw(backend.id);
        }
        self.membership.leaving.push(Leaving { backend: backend.id, successor, until });
    }

    /// Takes a backend out of every pool. The caller publishes the pools.
    fn withdraw(&mut self, id: BackendId) {
        let now = self.proxy.clock.now();
        self.catalog.leave(id);
        self.pins.set(id, Some(Pin { role: Role::Draining, until: None }));
        let from = self.proxy.fleet.table().plan.role(id);
        if from != Role::Draining {
            let flip = Flip { backend: id, from, to: Role::Draining };
            self.apply(flip, "left", "applied", Numbers::new(), now);
        }
    }

    /// Withdraws replaced backends whose successors are up.
    fn withdraw_replaced(&mut self, now: Moment) {
        let mut ready = Vec::new();
        for leaving in &mut self.membership.leaving {
            let up = |(successor, limit): &(BackendId, Moment)| {
                let health = &self.proxy.fleet.backend(*successor).health;
                (health.is_up() && health.is_usable()) || now >= *limit
            };
            if leaving.successor.as_ref().is_some_and(up) {
                leaving.successor = None;
                ready.push(leaving.backend);
            }
        }
        if !ready.is_empty() {
            ready.into_iter().for_each(|id| self.withdraw(id));
            self.publish_pools();
        }
    }

    /// Publishes pools, directory and model list after a change of the catalog.
    pub(super) fn publish_pools(&mut self) {
        let mut next = (**self.proxy.fleet.table()).clone();
        self.catalog.pools(&mut next);
        next.set_mean_costs();
        self.publish(next);
        self.proxy.directory.store(Arc::new(self.catalog.directory()));
        self.proxy.models.store(Arc::new(self.catalog.list()));
    }

    /// Ends the removal of backends that are drained.
    pub(super) fn release_drained(&mut self, now: Moment) {
        if self.membership.leaving.is_empty() {
            return;
        }
        self.withdraw_replaced(now);
        let fleet = &self.proxy.fleet;
        let (metrics, compatibility) = (&self.proxy.metrics, &mut self.compatibility);
        self.membership.leaving.retain(|leaving| {
            let Leaving { backend: id, successor, until } = leaving;
            let backend = fleet.backend(*id);
            if successor.is_some() {
                return true;
            }
            if !backend.account.balance().is_settled() {
                if now >= *until && backend.health.refused() {
                    backend.health.set_reason("was removed".to_owned());
                }
                return true;
            }
            backend.set_left();
            fleet.prefixes.set_kv_events(*id, false);
            fleet.prefixes.forget(*id);
            fleet.stored.forget(*id);
            compatibility.leave(*id);
            if fleet.named(&backend.name).is_none() {
                metrics.leave(&backend.name);
            }
            tracing::info!(backend = %backend.name, "backend has left");
            false
        });
    }
}
