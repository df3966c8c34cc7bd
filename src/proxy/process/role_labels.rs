//! Writes the roles in force as labels of the engines' pods, asynchronously: plans take effect before
//! their labels are written.

use std::sync::Arc;
use tidegate_kubernetes::access::{Access, AccessError};
use tidegate_kubernetes::labels::HostRole;
use tidegate_kubernetes::mirror::{Mirror, Mirrored};
use tidegate_settings::Settings;
use tidegate_types::Seconds;
use tokio::sync::watch;

use crate::dispatch::context::Proxy;

/// Polling interval of the routing table. Labels are read by people and by slower controllers.
const POLL_INTERVAL: Seconds = Seconds(0.1);

/// Writer of the labels.
pub struct RoleLabels(Mirror);

impl RoleLabels {
    /// `None` without `[kubernetes.role_labels]`.
    ///
    /// # Errors
    /// [`AccessError`] without an API server.
    pub fn new(settings: &Settings) -> Result<Option<RoleLabels>, AccessError> {
        let Some(labels) = &settings.kubernetes.role_labels else { return Ok(None) };
        let access = Access::of_process(&settings.kubernetes)?;
        let namespace = labels.namespace.as_deref();
        Ok(Some(RoleLabels(Mirror::new(access, namespace, &labels.selector, &labels.label))))
    }

    /// Writes labels while the proxy runs.
    pub async fn run(self, proxy: Arc<Proxy>) {
        let (sender, roles) = watch::channel(Vec::new());
        let counting = Arc::clone(&proxy);
        let writing = self.0.run(roles, move |done| {
            counting.metrics.role_label(match done {
                Mirrored::Written => "written",
                Mirrored::Refused(_) => "refused",
                Mirrored::Failed => "failed",
            });
        });
        let publishing = async {
            loop {
                let now = roles_of(&proxy);
                sender.send_if_modified(|known| {
                    let differs = *known != now;
                    *known = now;
                    differs
                });
                tokio::time::sleep(POLL_INTERVAL.to_duration()).await;
            }
        };
        tokio::select! {
            () = writing => {}
            () = publishing => {}
        }
    }
}

fn roles_of(proxy: &Proxy) -> Vec<HostRole> {
    let table = proxy.fleet.table();
    let role = |backend: &Arc<crate::backends::fleet::Backend>| {
        let address = backend.pool.address();
        let host = address.ip.map_or_else(|| address.host.clone(), |ip| ip.to_string());
        HostRole { host, role: table.entry(backend.id).role }
    };
    let present = |backend: &&Arc<_>| !crate::backends::fleet::Backend::is_leaving(backend);
    proxy.fleet.backends().iter().filter(present).map(role).collect()
}
