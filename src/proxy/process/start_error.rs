//! Failures of a proxy to start or to run.

use std::path::PathBuf;
use thiserror::Error;

use crate::backends::startup_verification::Misfits;
use crate::listener::sockets::ListenError;
use crate::process::factory::BackendError;
use crate::process::files::FileErrors;
use crate::process::handover::HandOverError;

/// Failure of a proxy to start or to run.
#[derive(Debug, Error)]
pub enum StartError {
    /// A backend cannot be built.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A file in the settings cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The planner's recording cannot be created.
    #[error("cannot write {path}: {source}")]
    Record {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Files in the settings cannot be used.
    #[error("files named in the configuration cannot be used:\n{0}")]
    Files(#[from] FileErrors),
    /// `--upgrade` without a socket on which to receive the listeners.
    #[error("serve --upgrade needs [server] upgrade_socket, in both processes' configuration")]
    NoSocket,
    /// The listeners were not received.
    #[error("serve --upgrade: {0}")]
    HandOver(#[from] HandOverError),
    /// `--upgrade` without a running proxy.
    #[error("serve --upgrade: no proxy listens on {addresses}: start without --upgrade")]
    NoPredecessor {
        /// The configured addresses.
        addresses: String,
    },
    /// An essential task ended with a panic.
    #[error("{0} ended with a panic, see the log")]
    Died(&'static str),
    /// Facts of engines contradict the settings (`strict_start`).
    #[error(transparent)]
    Misfits(#[from] Misfits),
    /// The metrics recorder cannot be built.
    #[error("metrics: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// The API server of Kubernetes has no address.
    #[cfg(feature = "kubernetes")]
    #[error("kubernetes: {0}")]
    Kubernetes(#[from] tidegate_kubernetes::access::AccessError),
    /// Settings that need the API server, in a build without it.
    #[error(
        "sidecar.inference_pool, kubernetes.role_labels, backends.kubernetes and gateways.kubernetes need a tidegate with the feature `kubernetes`"
    )]
    NoKubernetes,
    /// A socket cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
}
