//! Several gateways of one fleet: one of them leads and plans, the others adopt its roles.
//!
//! The leader applies its plan at once and shares it afterwards. Without a leader the roles in
//! force stay, and no gateway plans.

use std::collections::BTreeMap;
use std::sync::Arc;
use tidegate_types::{BackendId, PlanNumber, Role};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Control;
use crate::backends::fleet::RoutingTable;
use crate::telemetry::journal::Numbers;

/// Roles by backend name.
pub type NamedRoles = Arc<BTreeMap<String, Role>>;

/// State of the leader election.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Leadership {
    /// End of this gateway's leadership if its Lease is not renewed; `None`: it does not lead.
    pub leads_until: Option<Instant>,
    /// Its fencing epoch while it leads.
    pub epoch: Option<u64>,
    /// Identity of the leading gateway, if there is one.
    pub leader: Option<String>,
    /// URL at which that gateway exchanges loads, if it is another one and does.
    pub address: Option<String>,
    /// Epoch, plan number and roles that were shared last.
    pub plan: Option<(u64, u64, NamedRoles)>,
}

/// Connects the control loop with the election.
pub struct Gateways {
    /// State of the election.
    pub leadership: watch::Receiver<Leadership>,
    /// Channel for the number and the roles of this gateway's plan, which is shared while it leads.
    pub plans: watch::Sender<Option<(u64, NamedRoles)>>,
    /// Number of the plan shared last during this leadership.
    shared: Option<PlanNumber>,
    /// Epoch and number of the leader's plan adopted last, and the number of this gateway's
    /// resulting plan.
    followed: Option<(u64, u64, PlanNumber)>,
}

impl Gateways {
    /// Creates the state before any plan was shared or adopted.
    pub fn new(
        leadership: watch::Receiver<Leadership>,
        plans: watch::Sender<Option<(u64, NamedRoles)>>,
    ) -> Gateways {
        Gateways { leadership, plans, shared: None, followed: None }
    }

    /// Resolves when the state of the election changes; never without an election.
    pub async fn changed(gateways: &mut Option<Gateways>) {
        if let Some(gateways) = gateways
            && gateways.leadership.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    fn leads(&self) -> bool {
        // The election task may be delayed, for example by SIGSTOP: the deadline is checked present.
        self.leadership.borrow().leads_until.is_some_and(|until| Instant::now() < until)
    }
}

/// Permission to change an engine's role: the leadership during which the change was planned. It ends with
/// that leadership, so that a former leader calls no engine.
pub(super) struct Mandate(Option<(watch::Receiver<Leadership>, Option<u64>)>);

impl Mandate {
    /// The permission of this gateway present; without an election it does not end.
    pub(super) fn of(gateways: &Option<Gateways>) -> Mandate {
        Mandate(gateways.as_ref().map(|gateways| {
            let epoch = gateways.leadership.borrow().epoch;
            (gateways.leadership.clone(), epoch)
        }))
    }

    /// Whether the leadership has not ended.
    pub(super) fn holds(&self) -> bool {
        self.0.as_ref().is_none_or(|(leadership, epoch)| {
            let present = leadership.borrow();
            present.epoch == *epoch
                && present.leads_until.is_some_and(|until| Instant::now() < until)
        })
    }
}

impl Control {
    /// Whether this gateway decides about roles.
    pub(super) fn leads(&self) -> bool {
        self.gateways.as_ref().is_none_or(Gateways::leads)
    }

    /// Returns why an operator's command is refused present.
    pub(super) fn refusal(&self) -> Option<String> {
        let gateways = self.gateways.as_ref().filter(|gateways| !gateways.leads())?;
        Some(match &gateways.leadership.borrow().leader {
            Some(leader) => format!("gateway {leader} leads: change roles there"),
            None => "no gateway leads: roles stay as they are".to_owned(),
        })
    }

    /// Shares the roles in force while this gateway leads, and takes the leader's otherwise.
    pub(super) fn share_roles(&mut self) {
        let leads = self.leads();
        let Some(gateways) = &mut self.gateways else { return };
        let leadership = gateways.leadership.borrow().clone();
        self.proxy.metrics.leads(leads.then_some(leadership.epoch).flatten());
        let table = Arc::clone(&self.proxy.fleet.table());
        let number = table.plan.number();
        if leads {
            gateways.followed = None;
            if gateways.shared != Some(number) {
                gateways.shared = Some(number);
                let backends = self.proxy.fleet.backends();
                let present = backends.iter().filter(|backend| !backend.is_leaving());
                let role = |id: BackendId| table.plan.role(id);
                let roles = present.map(|backend| (backend.name.to_string(), role(backend.id)));
                gateways.plans.send_replace(Some((number.0, Arc::new(roles.collect()))));
            }
            return;
        }
        gateways.shared = None;
        let Some((epoch, seq, roles)) = leadership.plan else { return };
        if gateways.followed != Some((epoch, seq, number)) {
            self.follow(&table, &roles);
            let now_in_force = self.proxy.fleet.table().plan.number();
            if let Some(gateways) = &mut self.gateways {
                gateways.followed = Some((epoch, seq, now_in_force));
            }
        }
    }

    /// Publishes the leader's roles for the backends that this gateway knows. Role switches by
    /// engines are requested by the leader only.
    fn follow(&mut self, table: &RoutingTable, leaders: &BTreeMap<String, Role>) {
        let mut roles = table.plan.roles().to_vec();
        for backend in self.proxy.fleet.backends().iter().filter(|b| !b.is_leaving()) {
            let Some(role) = leaders.get(&*backend.name) else { continue };
            let is_free = self.pins.get(backend.id).is_none();
            let can = backend.allowed.contains(*role) || *role == Role::Draining;
            if let Some(own) = roles.get_mut(backend.id.index()).filter(|_| is_free && can) {
                *own = *role;
            }
        }
        let plan = table.plan.next(roles);
        let flips = plan.flips_since(&table.plan);
        if flips.is_empty() {
            return;
        }
        let (number, now) = (plan.number(), self.proxy.clock.now());
        self.publish(RoutingTable { plan, ..table.clone() });
        for flip in flips {
            let calls = self.calls_for(flip.backend, flip.from, flip.to);
            if calls {
                self.verified(flip.backend, flip.to);
            }
            self.state.flipped(flip.backend);
            self.recording.flipped(now, flip.backend);
            self.record_flip(number, flip, ("leader", "applied"), Numbers::new(), now);
        }
    }
}
