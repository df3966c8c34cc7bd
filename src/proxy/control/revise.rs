//! Another version of the settings in force. The control loop applies it between two plans, so that
//! the snapshot of requests, the models and the planner's parameters change together.

use tokio::sync::oneshot;

use super::{Control, KnownModel};
use crate::dispatch::settings_in_force::SettingsInForce;

/// A version of the settings that was read and verified.
pub struct Revision {
    /// The snapshot for requests.
    pub settings: SettingsInForce,
    /// The models that the settings describe, with their tokenizers.
    pub models: Vec<KnownModel>,
    /// Notified when the version is in force.
    pub reply: oneshot::Sender<()>,
}

impl Control {
    /// Puts a version in force. Requests in flight keep the one of their arrival.
    pub(super) fn revise(&mut self, revision: Revision) {
        let Revision { settings, models, reply } = revision;
        let planner = &settings.values.planner;
        (self.automatic, self.pace.interval) = (planner.enabled, planner.interval);
        let params = settings.values.planner_params();
        if params != self.params {
            self.recording.revised(&params);
            self.regressions.set_chunk(params.chunk);
            self.params = params;
        }
        self.proxy.put_in_force(settings);
        self.catalog.set_known(models);
        self.publish_pools();
        // The receiver is dropped only when the process stops.
        reply.send(()).ok();
    }
}
