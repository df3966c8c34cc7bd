//! Roles held by operators: without an end (a pin) or for a time (a flip with a hold). The planner
//! does not change a held role. Pure: the control loop passes the time.

use tidegate_types::{BackendId, Moment, Role};

use crate::backends::fleet::Pin;

/// Pins by backend slot.
#[derive(Clone, Debug, Default)]
pub struct Pins(Vec<Option<Pin>>);

impl Pins {
    pub fn new(pins: Vec<Option<Pin>>) -> Pins {
        Pins(pins)
    }

    /// The pin of a backend.
    pub fn get(&self, backend: BackendId) -> Option<Pin> {
        self.0.get(backend.index()).copied().flatten()
    }

    /// The role that the planner must keep.
    pub fn role(&self, backend: BackendId) -> Option<Role> {
        self.get(backend).map(|pin| pin.role)
    }

    /// Sets or removes the pin of a backend.
    pub fn set(&mut self, backend: BackendId, pin: Option<Pin>) {
        self.0[backend.index()] = pin;
    }

    /// Sets the pin of a backend that joins.
    pub fn join(&mut self, backend: BackendId, role: Option<Role>) {
        let pin = role.map(|role| Pin { role, until: None });
        backend.put(&mut self.0, pin);
    }

    /// Changes the held role after a change by another cause; the hold keeps its end.
    pub fn follow(&mut self, backend: BackendId, role: Role) {
        if let Some(pin) = &mut self.0[backend.index()] {
            pin.role = role;
        }
    }

    /// Removes holds that end at or before `now` and returns their backends.
    pub fn expire(&mut self, now: Moment) -> Vec<BackendId> {
        let mut expired = Vec::new();
        for (slot, pin) in self.0.iter_mut().enumerate() {
            if pin.is_some_and(|pin| pin.until.is_some_and(|until| until <= now)) {
                *pin = None;
                expired.push(BackendId(slot as u16));
            }
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_types::Seconds;

    #[test]
    fn a_hold_expires_and_a_pin_does_not() {
        let at = |seconds| Moment::START + Seconds(seconds);
        let (held, pinned) = (BackendId(0), BackendId(1));
        let mut pins = Pins::new(vec![None, None]);
        pins.set(held, Some(Pin { role: Role::Decode, until: Some(at(600.0)) }));
        pins.set(pinned, Some(Pin { role: Role::Prefill, until: None }));
        assert!(pins.expire(at(599.0)).is_empty());
        assert_eq!(pins.role(held), Some(Role::Decode));
        pins.follow(held, Role::Draining);
        assert_eq!(
            pins.get(held).unwrap().until,
            Some(at(600.0)),
            "a changed role does not change the end of the hold"
        );
        assert_eq!(pins.expire(at(600.0)), [held]);
        assert_eq!((pins.role(held), pins.role(pinned)), (None, Some(Role::Prefill)));
    }
}
