//! Kubernetes as a source of backends: pods by label selector or by InferencePool, watched.
//!
//! Pure, with time and randomness as arguments:
//! - [`pod`]: the parts of a Pod that are read
//! - [`convention`]: labels and annotations of the projects that launch engines
//! - [`backends`]: converts a pod to backends
//! - [`event`]: one line of a watch
//! - [`objects`]: the objects of a list and its watch
//! - [`backoff`]: delays between attempts
//! - [`lease`]: leader election with a fencing epoch, by a Lease
//! - [`labels`]: the label of each pod, and owners that forbid it
//! - [`plan`]: the plan in the Lease's annotation
//!
//! With sockets:
//! - [`access`]: address and credentials of the API server
//! - [`api`]: list and watch requests
//! - [`watcher`]: lists and watches a collection
//! - [`election`]: the Lease read and written
//! - [`mirror`]: roles written as labels
//! - [`permissions`]: permissions that the settings need, and reviews of them
//! - [`source`]: pods and their InferencePool as desired backends
//!
//! A broken watch or an absent API server leaves the last known backends in place.
#![warn(missing_docs)]
#![allow(
    clippy::disallowed_methods,
    reason = "the shell reads the service account's files and opens sockets"
)]

pub mod access;
pub mod api;
pub mod backends;
pub mod backoff;
pub mod convention;
pub mod election;
pub mod event;
pub mod labels;
pub mod lease;
pub mod mirror;
pub mod objects;
pub mod permissions;
pub mod plan;
pub mod pod;
pub mod source;
pub mod watcher;

#[cfg(test)]
mod backends_tests;
#[cfg(test)]
mod lease_tests;
