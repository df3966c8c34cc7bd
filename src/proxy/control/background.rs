//! The background tasks as a pingora service: they run in a runtime of their own, so that a slow
//! planner cannot starve a stream.

use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;

use super::Control;
use crate::dispatcher::Dispatcher;
use crate::fleet::Backend;
use crate::probe::{self, Found, ProbeParams};
use crate::service::Proxy;
use crate::shutdown::Vital;
use crate::signals;
use crate::tls::{self, Refresh};

/// Everything that runs beside the requests; taken out when the service starts.
pub struct Background(Mutex<Option<Tasks>>);

/// The tasks.
pub struct Tasks {
    /// Whose signals to listen to.
    pub proxy: Arc<Proxy>,
    /// Owns the deadline queue.
    pub dispatcher: Dispatcher,
    /// Writes the table.
    pub control: Control,
    /// Whom to probe.
    pub backends: Vec<Arc<Backend>>,
    /// How.
    pub probe: ProbeParams,
    /// Where the findings go.
    pub found: mpsc::Sender<Found>,
    /// Certificates to load again when their files change.
    pub watched: Vec<Arc<dyn Refresh>>,
    /// The process ends with the control loop, and with the dispatcher.
    pub vitals: [Vital; 2],
}

impl Background {
    /// Tasks that wait for their service to start.
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
        signals::spawn(&tasks.proxy);
        tokio::spawn(tls::reload(Arc::clone(&tasks.proxy), tasks.watched));
        let [controls, dispatches] = tasks.vitals;
        let dispatching = tasks.dispatcher.run(stop.clone());
        let dispatching = tokio::spawn(async move {
            let _vital = dispatches;
            dispatching.await;
        });
        let _vital = controls;
        tasks.control.run(stop).await;
        // It panicked or has ended: either way there is nothing left to do here.
        dispatching.await.unwrap_or_else(|error| tracing::error!("dispatcher: {error}"));
    }
}
