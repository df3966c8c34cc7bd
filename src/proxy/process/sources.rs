//! Sources of backends beside the settings file: each is a task that sends [`FleetUpdate`]s.
//!
//! Every source is read once before the proxy listens, so that the first table contains existing
//! backends. The backends of a source that does not answer in time join later.

use tidegate_settings::reconcile::SourceId;
use tidegate_types::Seconds;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::control::FleetUpdate;
use crate::process::desired::DesiredBackends;
use crate::process::directories::Directories;
use crate::process::names::Names;
#[cfg(feature = "kubernetes")]
use crate::process::pods::Pods;

/// Time limit for all first readings: without an API server, tidegate still serves other backends.
const FIRST_MAX: Seconds = Seconds(5.0);

/// The sources of the settings.
pub struct Sources {
    /// Pods of a Kubernetes cluster.
    #[cfg(feature = "kubernetes")]
    pub pods: Option<Pods>,
    pub names: Option<Names>,
    /// Directories of files.
    pub directories: Option<Directories>,
}

impl Sources {
    /// Reads every source once; sources without an answer are absent. Blocks up to [`FIRST_MAX`],
    /// and as long as reading the directories takes.
    pub fn first(&mut self) -> Vec<(SourceId, DesiredBackends)> {
        let mut read = self.read_remote();
        if let Some(directories) = &mut self.directories {
            read.push((SourceId::Watched, directories.first()));
        }
        read
    }

    /// Reads the sources that are queried over the network.
    fn read_remote(&mut self) -> Vec<(SourceId, DesiredBackends)> {
        // The timer belongs to the runtime that polls it.
        let reading = async {
            let mut read = Vec::new();
            // What was read in time counts.
            drop(timeout(FIRST_MAX.to_duration(), self.read(&mut read)).await);
            read
        };
        // On a separate thread, as the caller may already be in a runtime.
        let read = std::thread::scope(|scope| {
            let run = || {
                let runtime = Builder::new_current_thread().enable_all().build();
                // A source without an answer is read again by its task.
                runtime.map(|runtime| runtime.block_on(reading))
            };
            scope.spawn(run).join()
        });
        match read {
            Ok(Ok(read)) => read,
            _ => {
                tracing::error!("the sources of backends could not be read at the start");
                Vec::new()
            }
        }
    }

    async fn read(&mut self, read: &mut Vec<(SourceId, DesiredBackends)>) {
        #[cfg(feature = "kubernetes")]
        if let Some(pods) = &mut self.pods {
            read.extend(pods.first().await.map(|desired| (SourceId::Kubernetes, desired)));
        }
        if let Some(names) = &mut self.names {
            read.extend(names.first().await.map(|desired| (SourceId::Dns, desired)));
        }
    }

    /// Starts the tasks.
    pub fn spawn(self, updates: &mpsc::Sender<FleetUpdate>) {
        #[cfg(feature = "kubernetes")]
        if let Some(pods) = self.pods {
            tokio::spawn(pods.run(updates.clone()));
        }
        if let Some(names) = self.names {
            tokio::spawn(names.run(updates.clone()));
        }
        if let Some(directories) = self.directories {
            tokio::spawn(directories.run(updates.clone()));
        }
    }
}
