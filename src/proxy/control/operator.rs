//! Commands of operators: the role of a backend, held for a time or pinned.

use std::sync::Arc;
use tidegate_types::{BackendId, Flip, Moment, Plan, Role, Seconds};
use tokio::sync::oneshot;

use super::Control;
use super::operator_roles::OperatorRole;
use crate::backends::fleet::Pin;
use crate::telemetry::journal::Numbers;

/// How long a role set by an operator is held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Hold {
    /// Until an operator releases it.
    Pinned,
    /// For a time; afterwards the planner may change it.
    For(Seconds),
    /// Not at all: the planner may change it immediately.
    Released,
}

/// An operator's change of one backend's role.
pub struct RoleCommand {
    pub backend: BackendId,
    /// The role to set; `None` keeps the current one.
    pub role: Option<Role>,
    /// How long to hold it; `None` keeps an existing pin or hold.
    pub hold: Option<Hold>,
    /// Receives the new plan or the reason for the refusal.
    pub reply: oneshot::Sender<Result<Plan, String>>,
}

impl Control {
    /// Executes a command if the backend allows the role.
    pub(super) fn execute(&mut self, command: RoleCommand) {
        let RoleCommand { backend, role, hold, reply } = command;
        let now = self.proxy.clock.now();
        let answer = match self.refusal() {
            Some(refusal) => Err(refusal),
            None => self.set_role(backend, role, hold, now),
        };
        // The receiver is dropped if the operator closed the connection.
        reply.send(answer).ok();
    }

    fn set_role(
        &mut self,
        backend: BackendId,
        role: Option<Role>,
        hold: Option<Hold>,
        now: Moment,
    ) -> Result<Plan, String> {
        let table = Arc::clone(&self.proxy.fleet.table());
        let known = Arc::clone(&self.proxy.fleet.backend(backend));
        if known.is_leaving() {
            return Err(format!("backend {} is being removed", known.name));
        }
        let from = table.plan.role(backend);
        let to = role.unwrap_or(from);
        let flip = Flip { backend, from, to };
        if !known.allowed.contains(to) {
            self.proxy.metrics.flipped(&flip, "operator", "refused");
            let allowed: Vec<_> = known.allowed.iter().map(Role::as_str).collect();
            let name = &known.name;
            return Err(format!(
                "backend {name} does not allow role {to}, only {}",
                allowed.join(", ")
            ));
        }
        let calls = self.calls_for(backend, from, to);
        if calls && self.switching.contains_key(&backend) {
            return Err(format!("backend {} is already switching its role", known.name));
        }
        match hold {
            Some(Hold::Pinned) => self.pins.set(backend, Some(Pin { role: to, until: None })),
            Some(Hold::For(span)) => {
                self.pins.set(backend, Some(Pin { role: to, until: Some(now + span) }));
            }
            Some(Hold::Released) => self.pins.set(backend, None),
            None => self.pins.follow(backend, to),
        }
        self.note_holds();
        if calls {
            return Ok(self.begin_switch(flip, "operator", Numbers::new(), now));
        }
        self.keep(backend, to);
        if from == to {
            return Ok(table.plan.clone());
        }
        Ok(self.apply(flip, "operator", "applied", Numbers::new(), now))
    }

    /// Writes a role set by an operator to the state file, with its pin or hold.
    pub(super) fn keep(&mut self, backend: BackendId, role: Role) {
        let pin = self.pins.get(backend);
        let until = pin.and_then(|pin| pin.until).map(|until| self.proxy.clock.wall(until));
        let pinned = pin.is_some_and(|pin| pin.until.is_none());
        let name = Arc::clone(&self.proxy.fleet.backend(backend).name);
        self.operator_roles.set(&name, OperatorRole { role, pin: pinned, hold_until: until });
        self.note_holds();
    }

    /// Returns backends whose timed hold has ended to the planner.
    pub(super) fn release_expired(&mut self, now: Moment) {
        for backend in self.pins.expire(now) {
            let name = &self.proxy.fleet.backend(backend).name;
            tracing::info!(backend = %name, "hold of an operator's flip has ended");
            let role = self.proxy.fleet.table().plan.role(backend);
            self.keep(backend, role);
        }
    }

    /// Copies pins and holds to the backends, for `/v1/fleet`.
    pub(super) fn note_holds(&self) {
        for backend in self.proxy.fleet.backends().iter() {
            backend.set_pin(self.pins.get(backend.id));
        }
    }
}
