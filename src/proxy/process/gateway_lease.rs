//! The Lease for which the gateways of one fleet contend (`[gateways.kubernetes]`). Its holder
//! leads and plans; an annotation shares the roles with the other gateways.

use std::net::IpAddr;
use std::sync::Arc;
use tidegate_kubernetes::access::{Access, AccessError};
use tidegate_kubernetes::election::{Elected, Election};
use tidegate_kubernetes::lease::ElectionParams;
use tidegate_kubernetes::plan::SharedPlan;
use tidegate_settings::Settings;
use tidegate_types::Seconds;
use tokio::sync::watch;
use tokio::time::{interval, timeout};

use crate::control::{Gateways, Leadership, NamedRoles};
use crate::dispatch::context::Proxy;

/// Interval at which the task checks whether the proxy drains.
const CHECK_INTERVAL: Seconds = Seconds(0.1);
/// Longest wait for the release of the Lease.
const RELEASE_MAX: Seconds = Seconds(1.0);

/// A contender for the Lease.
pub struct GatewayLease {
    election: Election,
    leadership: watch::Sender<Leadership>,
    plans: watch::Receiver<Option<(u64, NamedRoles)>>,
}

impl GatewayLease {
    /// Returns the contender and the control loop's side of it; `None` without
    /// `[gateways.kubernetes]`.
    ///
    /// # Errors
    /// [`AccessError`] without an API server.
    pub fn new(
        settings: &Settings,
        identity: &str,
        leadership: watch::Sender<Leadership>,
    ) -> Result<Option<(GatewayLease, Gateways)>, AccessError> {
        let Some(lease) = &settings.gateways.kubernetes else { return Ok(None) };
        let access = Access::of_process(&settings.kubernetes)?;
        let params = ElectionParams {
            duration: lease.duration,
            renew_deadline: lease.renew_deadline,
            retry: lease.retry,
        };
        let election = Election::new(access, &lease.name, identity.to_owned(), params);
        let address = advertised(settings);
        if settings.gateways.listen.is_some() && address.is_none() {
            tracing::warn!("loads are not exchanged: set gateways.address, or POD_IP");
        }
        let election = election.with_address(address);
        let (shared, plans) = watch::channel(None);
        let gateways = Gateways::new(leadership.subscribe(), shared);
        Ok(Some((GatewayLease { election, leadership, plans }, gateways)))
    }

    /// Contends until the proxy drains, then releases the Lease, so that the next leader need not
    /// wait for its expiry.
    pub async fn run(self, proxy: Arc<Proxy>) {
        let GatewayLease { election, leadership, mut plans } = self;
        let (sender, written) = watch::channel(None);
        let (shown, mut elected) = watch::channel(Elected::default());
        let contending = tokio::spawn(election.run(written, shown));
        let mut ticks = interval(CHECK_INTERVAL.to_duration());
        while !proxy.is_draining() {
            tokio::select! {
                _ = ticks.tick() => {}
                changed = plans.changed() => match changed {
                    Ok(()) => {
                        let plan = plans.borrow_and_update().clone();
                        sender.send_replace(plan.map(|(seq, roles)| shared(seq, &roles)));
                    }
                    Err(_) => break,
                },
                changed = elected.changed() => match changed {
                    Ok(()) => {
                        leadership.send_replace(leadership_of(&elected.borrow_and_update()));
                    }
                    Err(_) => break,
                },
            }
        }
        // Leadership ends here before the Lease is released. The roles in force stay until the
        // process ends.
        leadership.send_modify(|shown| shown.leads_until = None);
        drop((sender, elected));
        if timeout(RELEASE_MAX.to_duration(), contending).await.is_err() {
            tracing::info!("the Lease was not released in time and expires");
        }
    }
}

/// Returns the plan to share; the election fills in the epoch.
fn shared(seq: u64, roles: &NamedRoles) -> SharedPlan {
    SharedPlan { epoch: 0, seq, roles: (**roles).clone() }
}

fn leadership_of(elected: &Elected) -> Leadership {
    let plan = elected.plan.as_ref();
    Leadership {
        leads_until: elected.until,
        epoch: elected.epoch,
        leader: elected.holder.clone(),
        address: elected.address.clone().filter(|_| elected.epoch.is_none()),
        plan: plan.map(|plan| (plan.epoch, plan.seq, Arc::new(plan.roles.clone()))),
    }
}

/// URL of `gateways.listen` for other gateways; `None` if it cannot be derived.
fn advertised(settings: &Settings) -> Option<String> {
    let gateways = &settings.gateways;
    if let Some(address) = &gateways.address {
        return Some(address.clone());
    }
    let mut address = gateways.listen?;
    if address.ip().is_unspecified() {
        let pod: IpAddr = std::env::var("POD_IP").ok()?.parse().ok()?;
        address.set_ip(pod);
    }
    let scheme = if gateways.tls.is_some() { "https" } else { "http" };
    Some(format!("{scheme}://{address}"))
}
