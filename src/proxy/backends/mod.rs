//! The engines: facts, health, in-flight work and stored responses.

pub(crate) mod bootstrap;
pub(crate) mod demand;
pub(crate) mod expand;
pub mod fleet;
pub(crate) mod introspect;
pub(crate) mod pd_role;
pub(crate) mod probe;
pub(crate) mod sampled_prompts;
pub(crate) mod startup_verification;
pub(crate) mod stored_objects;
