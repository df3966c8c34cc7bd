//! The leader of a static list of gateways (`gateways.peers`): the gateway that already leads, else
//! the first of the list that runs. Leadership is not fenced: during a network partition each part
//! has a leader; afterwards the leader that comes first in the list remains.

use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::exchange::LoadExchange;
use super::server::Status;
use crate::control::Leadership;

/// Interval of the queries to all gateways: with a leader, and without one.
const QUERY_INTERVAL: (Duration, Duration) =
    (Duration::from_millis(500), Duration::from_millis(100));
/// Duration of this gateway's leadership after its last round of queries.
const LEADS_FOR: Duration = Duration::from_secs(2);

/// Leadership after a round of queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeadershipState {
    /// This gateway leads.
    Leads,
    /// The gateway at this position leads.
    Follows(usize),
    /// Another gateway is about to lead.
    Waits,
}

/// The static list of gateways.
pub struct GatewayList {
    /// URLs of all gateways.
    pub urls: Vec<String>,
    /// Sends the queries.
    pub exchange: Arc<LoadExchange>,
}

impl GatewayList {
    /// Determines the leader repeatedly until the process ends.
    pub async fn run(self) {
        let mut began: Option<u64> = None;
        loop {
            let statuses = self.ask().await;
            let parts = &self.exchange.parts;
            let drains = parts.proxy.is_draining();
            let state =
                leadership_state(&parts.identity, &statuses, began.is_some() && !drains, drains);
            match state {
                LeadershipState::Leads => {
                    began = began.or_else(|| Some(parts.proxy.wall_now() as u64));
                }
                LeadershipState::Follows(_) | LeadershipState::Waits => began = None,
            }
            self.show(state, began, &statuses);
            let pause =
                if state == LeadershipState::Waits { QUERY_INTERVAL.1 } else { QUERY_INTERVAL.0 };
            sleep(pause).await;
        }
    }

    /// Returns the answers in the order of the list; `None` for a gateway without one.
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
                Err(error) => tracing::error!("a leadership query has ended: {error}"),
            }
        }
        statuses
    }

    fn show(&self, state: LeadershipState, began: Option<u64>, statuses: &[Option<Status>]) {
        let parts = &self.exchange.parts;
        let (leader, address) = match state {
            LeadershipState::Leads => (Some(parts.identity.clone()), None),
            LeadershipState::Follows(at) => {
                let status = statuses.get(at).and_then(Option::as_ref);
                (status.map(|status| status.identity.clone()), self.urls.get(at).cloned())
            }
            LeadershipState::Waits => (None, None),
        };
        parts.leadership.send_if_modified(|shown| {
            let new = Leadership {
                leads_until: began.map(|_| Instant::now() + LEADS_FOR),
                epoch: began,
                // The roles of an earlier leader stay in force until this leader sends its own.
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

/// Determines the result from the answers of all gateways. A leader yields only to a leader that
/// comes earlier in the list, so that a returning gateway does not take over.
fn leadership_state(
    own: &str,
    statuses: &[Option<Status>],
    leads: bool,
    drains: bool,
) -> LeadershipState {
    let position = statuses.iter().position(|s| s.as_ref().is_some_and(|s| s.identity == own));
    let leader = statuses
        .iter()
        .position(|status| status.as_ref().is_some_and(|s| s.identity != own && s.leads));
    match leader {
        Some(other) if !leads || position.is_some_and(|own| other < own) => {
            return LeadershipState::Follows(other);
        }
        _ if leads => return LeadershipState::Leads,
        _ => {}
    }
    let up = statuses.iter().position(|status| status.as_ref().is_some_and(|s| !s.drains));
    // A gateway that is not in the list, or that cannot reach itself, leads itself.
    let alone = position.is_none() || up.is_none();
    match !drains && (alone || up == position) {
        true => LeadershipState::Leads,
        false => LeadershipState::Waits,
    }
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
        use LeadershipState::{Follows, Leads, Waits};
        for (own, text, leads, expected) in [
            ("a", "a b c", false, Leads),
            ("b", "a b c", false, Waits),
            ("b", "A b c", false, Follows(0)),
            ("b", "- b c", false, Leads),
            ("c", "- b c", false, Waits),
            // The first gateway returns; the second remains leader.
            ("a", "a B c", false, Follows(1)),
            ("b", "a B c", true, Leads),
            // Two leaders after a partition: the first in the list remains.
            ("a", "A B c", true, Leads),
            ("b", "A B c", true, Follows(0)),
            ("c", "A B c", false, Follows(0)),
            // A draining gateway does not remain or become leader.
            ("b", "~a b c", false, Leads),
            ("a", "~a b c", false, Waits),
            ("a", "~a B c", false, Follows(1)),
            // A gateway that is not in the list, or does not reach itself.
            ("d", "a b c", false, Leads),
            ("d", "a B c", false, Follows(1)),
            ("a", "- - -", false, Leads),
        ] {
            let found =
                leadership_state(own, &statuses(text), leads, text.contains(&format!("~{own}")));
            assert_eq!(found, expected, "{own} sees {text:?}, leads: {leads}");
        }
    }
}
