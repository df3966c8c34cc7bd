//! Background tasks as a pingora service, on a separate runtime, so that a slow plan does not delay
//! streams.

use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;

use crate::backends::fleet::Backend;
use crate::backends::probe::{self, ProbeParams, ProbeReport};
use crate::control::{Control, FleetUpdate};
use crate::dispatch::context::Proxy;
use crate::dispatch::dispatcher::Dispatcher;
use crate::process::admin::sampler;
use crate::process::config_file::ConfigFile;
#[cfg(feature = "kubernetes")]
use crate::process::gateway_lease::GatewayLease;
use crate::process::gateways::{GatewayList, LoadExchange};
#[cfg(feature = "kubernetes")]
use crate::process::pool_pods::PoolPods;
use crate::process::prompt_calibration::PromptCalibration;
use crate::process::reload;
#[cfg(feature = "kubernetes")]
use crate::process::role_labels::RoleLabels;
use crate::process::sources::Sources;
#[cfg(feature = "otlp")]
use crate::process::span_export::SpanExporter;
use crate::process::trials::Trials;
use crate::runtime::liveness::LivenessGuard;
use crate::runtime::reloadable::Refresh;
use crate::signals::{self, SignalHost};

/// The background tasks; taken out when pingora starts the service.
pub struct Background(Mutex<Option<Tasks>>);

/// The tasks that run beside the requests.
pub struct Tasks {
    /// Shared state; its fleet is the one whose engine signals are read.
    pub proxy: Arc<Proxy>,
    /// The owner of the EDF queue.
    pub dispatcher: Dispatcher,
    /// The writer of the routing table.
    pub control: Control,
    /// Backends to probe.
    pub backends: Vec<Arc<Backend>>,
    /// Probe interval and timeout.
    pub probe: ProbeParams,
    /// Channel for the results of probes.
    pub found: mpsc::Sender<ProbeReport>,
    /// Allow list of a sidecar: the pods of the InferencePool.
    #[cfg(feature = "kubernetes")]
    pub pool_pods: Option<PoolPods>,
    /// Roles as labels of pods.
    #[cfg(feature = "kubernetes")]
    pub role_labels: Option<RoleLabels>,
    /// The Lease of several gateways.
    #[cfg(feature = "kubernetes")]
    pub gateway_lease: Option<GatewayLease>,
    /// Export of spans.
    #[cfg(feature = "otlp")]
    pub span_exporter: Option<SpanExporter>,
    /// The exchange of loads with other gateways.
    pub exchange: Option<Arc<LoadExchange>>,
    /// The static list of gateways, if it names the leader.
    pub peers: Option<GatewayList>,
    /// The settings file, if the settings were read from one.
    pub config_file: Option<ConfigFile>,
    /// Sources of backends beside the file.
    pub sources: Sources,
    /// Channel for sources of backends.
    pub fleet_updates: mpsc::Sender<FleetUpdate>,
    /// Certificates that are reloaded when their files change.
    pub watched: Vec<Arc<dyn Refresh>>,
    /// Liveness guards of the control loop and the dispatcher: the process stops when either ends.
    pub guards: [LivenessGuard; 2],
}

impl Background {
    /// Holds `tasks` until pingora starts the service.
    pub fn new(tasks: Tasks) -> Background {
        Background(Mutex::new(Some(tasks)))
    }
}

#[async_trait]
impl BackgroundService for Background {
    async fn start(&self, stop: ShutdownWatch) {
        let tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(tasks) = tasks else { return };
        for backend in tasks.backends {
            let clock = tasks.proxy.clock;
            tokio::spawn(probe::run(backend, tasks.probe, clock, tasks.found.clone()));
        }
        drop(tasks.found);
        let host = Arc::clone(&tasks.proxy) as Arc<dyn SignalHost>;
        signals::spawn(&host);
        tokio::spawn(sampler::run(Arc::clone(&tasks.proxy)));
        tokio::spawn(reload::reload(Arc::clone(&tasks.proxy), tasks.watched, tasks.config_file));
        tasks.sources.spawn(&tasks.fleet_updates);
        #[cfg(feature = "kubernetes")]
        if let Some(pods) = tasks.pool_pods {
            tokio::spawn(pods.run(Arc::clone(&tasks.proxy)));
        }
        #[cfg(feature = "kubernetes")]
        if let Some(labels) = tasks.role_labels {
            tokio::spawn(labels.run(Arc::clone(&tasks.proxy)));
        }
        #[cfg(feature = "kubernetes")]
        if let Some(lease) = tasks.gateway_lease {
            tokio::spawn(lease.run(Arc::clone(&tasks.proxy)));
        }
        if let Some(exchange) = tasks.exchange {
            tokio::spawn(Arc::clone(&exchange).tick());
            tokio::spawn(exchange.run());
        }
        if let Some(peers) = tasks.peers {
            tokio::spawn(peers.run());
        }
        let in_force = tasks.proxy.settings.load_full();
        if in_force.values.probe.trial_handoffs {
            tokio::spawn(Trials::new(Arc::clone(&tasks.proxy)).run());
        }
        if in_force.values.probe.calibrate_estimates
            && let Some(calibration) = PromptCalibration::new(Arc::clone(&tasks.proxy))
        {
            tokio::spawn(calibration.run());
        }
        #[cfg(feature = "otlp")]
        if let Some(exporter) = tasks.span_exporter {
            tokio::spawn(exporter.run());
        }
        let [controls, dispatches] = tasks.guards;
        let dispatching = tasks.dispatcher.run(stop.clone());
        let dispatching = tokio::spawn(async move {
            let _guard = dispatches;
            dispatching.await;
        });
        let _guard = controls;
        tasks.control.run(stop).await;
        // The dispatcher ended with the stop signal or panicked; a panic is logged and the process
        // stops.
        dispatching.await.unwrap_or_else(|error| tracing::error!("dispatcher ended: {error}"));
    }
}
