//! The leader of a static list of gateways (`gateways.peers`): the one that leads already, else the first
//! of the list that is up. Nothing fences it: while gateways cannot reach each other, each part of the
//! list has a leader; afterwards the earlier one in the list leads.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::exchange::Exchange;
use super::server::Status;
use crate::control::Leadership;

/// Interval of questions to all gateways: with a leader, and without one.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_millis(100));
/// How long this gateway leads after its last look.
const LEADS_FOR: Duration = Duration::from_secs(2);

/// What follows from the answers of all gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// This gateway leads.
    Leads,
    /// The gateway at this position leads.
    Follows(usize),
    /// Another gateway will lead.
    Waits,
}

/// The list.
pub struct Peers {
    /// URLs of all gateways.
    pub urls: Vec<String>,
    /// Asks them.
    pub exchange: Arc<Exchange>,
}

impl Peers {
    /// Looks for the leader until the process ends.
    pub async fn run(self) {
        let mut began: Option<u64> = None;
        loop {
            let statuses = self.ask().await;
            let parts = &self.exchange.parts;
            let drains = parts.proxy.is_draining();
            let standing = standing(&parts.identity, &statuses, began.is_some() && !drains, drains);
            match standing {
                Standing::Leads => drop(began.get_or_insert_with(unix_seconds)),
                Standing::Follows(_) | Standing::Waits => began = None,
            }
            self.show(standing, began, &statuses);
            let pause = if standing == Standing::Waits { LOOK_EVERY.1 } else { LOOK_EVERY.0 };
            sleep(pause).await;
        }
    }

    /// The answers in the order of the list; `None` without one.
    async fn ask(&self) -> Vec<Option<Status>> {
        let mut asking = JoinSet::new();
        for (i, url) in self.urls.iter().cloned().enumerate() {
            let exchange = Arc::clone(&self.exchange);
            asking.spawn(async move { (i, exchange.status_of(&url).await) });
        }
        let mut statuses = vec![None; self.urls.len()];
        while let Some(asked) = asking.join_next().await {
            match asked {
                Ok((i, Ok(status))) => statuses[i] = Some(status),
                Ok((i, Err(error))) => {
                    tracing::debug!(gateway = %self.urls[i], "gateway: {error}");
                }
                Err(error) => tracing::error!("a question to a gateway has ended: {error}"),
            }
        }
        statuses
    }

    fn show(&self, standing: Standing, began: Option<u64>, statuses: &[Option<Status>]) {
        let parts = &self.exchange.parts;
        let (leader, address) = match standing {
            Standing::Leads => (Some(parts.identity.clone()), None),
            Standing::Follows(at) => {
                let status = statuses.get(at).and_then(Option::as_ref);
                (status.map(|status| status.identity.clone()), self.urls.get(at).cloned())
            }
            Standing::Waits => (None, None),
        };
        parts.leadership.send_if_modified(|shown| {
            let new = Leadership {
                leads_until: began.map(|_| Instant::now() + LEADS_FOR),
                epoch: began,
                // The roles of an earlier leader are in force until this one sends its own.
                plan: shown.plan.take().filter(|_| shown.address == address),
                leader,
                address,
            };
            let differs = (&shown.leader, &shown.address, shown.epoch)
                != (&new.leader, &new.address, new.epoch);
            if differs {
                let leader = new.leader.as_deref().unwrap_or("none");
                tracing::info!(leader, leads = began.is_some(), "leader of the gateways");
            }
            *shown = new;
            differs
        });
    }
}

/// Decides by the answers of all gateways. A leader gives way to an earlier one of the list only, so
/// that a gateway that comes back takes over no roles.
fn standing(own: &str, statuses: &[Option<Status>], leads: bool, drains: bool) -> Standing {
    let position = statuses.iter().position(|s| s.as_ref().is_some_and(|s| s.identity == own));
    let leader = statuses
        .iter()
        .position(|status| status.as_ref().is_some_and(|s| s.identity != own && s.leads));
    match leader {
        Some(other) if !leads || position.is_some_and(|own| other < own) => {
            return Standing::Follows(other);
        }
        _ if leads => return Standing::Leads,
        _ => {}
    }
    let up = statuses.iter().position(|status| status.as_ref().is_some_and(|s| !s.drains));
    // A gateway that the list lacks, or that cannot reach itself, leads itself.
    let alone = position.is_none() || up.is_none();
    match !drains && (alone || up == position) {
        true => Standing::Leads,
        false => Standing::Waits,
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `-`: no answer; upper case: leads; `~`: drains.
    fn statuses(text: &str) -> Vec<Option<Status>> {
        let status = |word: &str| {
            (word != "-").then(|| Status {
                identity: word.trim_start_matches('~').to_lowercase(),
                leads: word.chars().any(char::is_uppercase),
                drains: word.starts_with('~'),
            })
        };
        text.split(' ').map(status).collect()
    }

    #[test]
    fn the_first_that_is_up_leads_until_it_ends() {
        use Standing::{Follows, Leads, Waits};
        for (own, text, leads, expected) in [
            ("a", "a b c", false, Leads),
            ("b", "a b c", false, Waits),
            ("b", "A b c", false, Follows(0)),
            ("b", "- b c", false, Leads),
            ("c", "- b c", false, Waits),
            // The first comes back: the second leads on.
            ("a", "a B c", false, Follows(1)),
            ("b", "a B c", true, Leads),
            // Two leaders after a partition: the earlier one remains.
            ("a", "A B c", true, Leads),
            ("b", "A B c", true, Follows(0)),
            ("c", "A B c", false, Follows(0)),
            // One that drains leads no more, and does not begin to.
            ("b", "~a b c", false, Leads),
            ("a", "~a b c", false, Waits),
            ("a", "~a B c", false, Follows(1)),
            // A gateway that is not in the list, or does not reach itself.
            ("d", "a b c", false, Leads),
            ("d", "a B c", false, Follows(1)),
            ("a", "- - -", false, Leads),
        ] {
            let found = standing(own, &statuses(text), leads, text.contains(&format!("~{own}")));
            assert_eq!(found, expected, "{own} sees {text:?}, leads: {leads}");
        }
    }
}
