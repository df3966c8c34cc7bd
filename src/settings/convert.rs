//! Converts settings to the parameter types of other crates.

use std::collections::BTreeMap;
use tidegate_engine::{EngineKind, Family};
use tidegate_scheduler::placement::{LatePolicy, Params as PlacementParams};
use tidegate_scheduler::planner::Params as PlannerParams;
use tidegate_types::{GroupId, Role, RoleCapability, RoleSet, Seconds, Slo, Tokens};

use crate::defaults;
use crate::schema::{
    BackendSettings, Connector, EngineName, KvRole, LateRequests, ScheduleStyle, Settings,
    SloClassSettings,
};

impl BackendSettings {
    /// Returns the KV capacity assumed until the engine reports it, in tokens.
    pub fn kv_capacity_at_first(&self) -> Tokens {
        self.kv_capacity.unwrap_or(defaults::KV_CAPACITY)
    }
}

/// Returns an ITL target; 0 is none.
fn itl(seconds: Seconds) -> Option<Seconds> {
    Some(seconds).filter(|itl| *itl > Seconds::ZERO)
}

impl Settings {
    /// Returns the latency targets.
    pub fn slo(&self) -> Slo {
        Slo { ttft: self.slo.ttft, tpot: self.slo.tpot, itl: itl(self.slo.itl) }
    }

    /// Returns the targets of a service class.
    pub fn class_slo(&self, class: &SloClassSettings) -> Slo {
        if class.batch {
            return Slo::NONE;
        }
        Slo {
            ttft: class.ttft.unwrap_or(self.slo.ttft),
            tpot: class.tpot.unwrap_or(self.slo.tpot),
            itl: itl(class.itl.unwrap_or(self.slo.itl)),
        }
    }

    /// Returns the parameters of placement.
    pub fn placement_params(&self) -> PlacementParams {
        PlacementParams {
            slo: self.slo(),
            class_tpot: self
                .slo
                .classes
                .iter()
                .map(|class| self.class_slo(class).tpot)
                .fold(Seconds(f64::INFINITY), Seconds::min),
            prefill_backlog_max: self.queue.prefill_backlog_max,
            late: match self.queue.late {
                LateRequests::Serve => LatePolicy::Serve,
                LateRequests::Refuse => LatePolicy::Refuse,
            },
            late_class_share: self.queue.late_class_share,
            trunk_reservation_share: self.queue.trunk_reservation_share,
            queue_max: self.queue.requests_max,
            chunk: self.placement.chunk,
            colocate_below: self.placement.colocate_below,
            spill: self.placement.spill,
            batch_engine_share: PlacementParams::default().batch_engine_share,
        }
    }

    /// Returns the parameters of the planner.
    pub fn planner_params(&self) -> PlannerParams {
        let mut params = PlannerParams { slo: self.slo(), ..PlannerParams::default() };
        params.chunk = self.placement.chunk;
        params.spill = self.placement.spill;
        params.switch = self.planner.switch.unwrap_or(params.switch);
        params.demand_window = self.planner.demand_window.unwrap_or(params.demand_window);
        params
    }

    /// Returns each backend's compatibility group, numbered in the order of the file.
    pub fn groups(&self) -> Vec<GroupId> {
        let mut known: BTreeMap<String, GroupId> = BTreeMap::new();
        let group = |backend: &BackendSettings| {
            let next = GroupId(known.len() as u16);
            *known.entry(backend.group_name()).or_insert(next)
        };
        self.backends.iter().map(group).collect()
    }
}

impl BackendSettings {
    /// Returns whether the backend is reached over TLS.
    pub fn is_https(&self) -> bool {
        self.url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
    }

    /// Returns the KV transfer protocol of the backend.
    pub fn family(&self) -> Family {
        match (self.engine, self.connector) {
            (EngineName::Vllm, Connector::Nixl) if self.role_switch => Family::VllmPdRole,
            (EngineName::Vllm, Connector::Nixl | Connector::NixlPush) => Family::VllmNixl,
            (EngineName::Vllm, Connector::Mooncake) => Family::VllmMooncake,
            (EngineName::Vllm, Connector::Offloading) => Family::VllmOffloading,
            (EngineName::Vllm, Connector::SharedStore) => Family::VllmSharedStore,
            (EngineName::Sglang, Connector::Bootstrap) => Family::SglangPd,
            (EngineName::Trtllm, Connector::Transceiver) => match self.schedule_style {
                ScheduleStyle::ContextFirst => Family::TrtLlm,
                ScheduleStyle::GenerationFirst => Family::TrtLlmGenerationFirst,
            },
            _ => Family::Plain,
        }
    }

    /// Returns the port at which other engines contact it for a hand-off: bootstrap server or side
    /// channel, on the host of the URL.
    pub fn rendezvous_port(&self) -> u16 {
        match self.connector {
            Connector::Offloading => self.side_channel_port,
            _ => self.bootstrap_port,
        }
    }

    /// Returns the engine kind.
    pub fn kind(&self) -> EngineKind {
        match self.engine {
            EngineName::Vllm => EngineKind::Vllm,
            EngineName::Sglang => EngineKind::Sglang,
            EngineName::Trtllm => EngineKind::Trtllm,
            EngineName::Tgi => EngineKind::Tgi,
            EngineName::Llamacpp => EngineKind::Llamacpp,
            EngineName::Ollama => EngineKind::Ollama,
            EngineName::Plain => EngineKind::Plain,
        }
    }

    /// Returns how its role can change (docs/spec/engine-protocols.md#roles).
    pub fn capability(&self) -> RoleCapability {
        match (self.family(), self.kv_role) {
            (Family::Plain, _) => RoleCapability::Fixed,
            (Family::SglangPd | Family::VllmPdRole, _) if self.role_switch => {
                RoleCapability::DrainThenCall
            }
            (Family::SglangPd, _) => RoleCapability::Fixed,
            (_, KvRole::KvBoth) => RoleCapability::Instant,
            (_, KvRole::KvProducer | KvRole::KvConsumer) => RoleCapability::Fixed,
        }
    }

    /// Returns the roles that its launch flags allow (docs/spec/engine-protocols.md#roles). A
    /// `kv_producer` that decodes may load into blocks that a step still writes, and crashes with
    /// Mooncake. A `kv_consumer` that prefills for another engine skips part of the hand-off for some
    /// models, and crashes with Mooncake. With role `decode` it may still run colocated requests.
    pub fn allowed_roles(&self) -> RoleSet {
        match (self.family(), self.kv_role) {
            (Family::Plain, _) => RoleSet::EMPTY.with(Role::Mixed),
            // The launch mode, unless the engine has a role switch.
            (Family::SglangPd | Family::VllmPdRole, _) => match self.role {
                Some(role @ (Role::Prefill | Role::Decode)) if !self.role_switch => {
                    RoleSet::EMPTY.with(role)
                }
                _ => RoleSet::EMPTY.with(Role::Prefill).with(Role::Decode),
            },
            (_, KvRole::KvBoth) => RoleSet::ANY,
            (_, KvRole::KvProducer) => RoleSet::EMPTY.with(Role::Prefill),
            (_, KvRole::KvConsumer) => RoleSet::EMPTY.with(Role::Decode),
        }
    }

    /// Returns the key of the compatibility group: backends with equal keys may hand KV cache to each
    /// other.
    pub fn group_name(&self) -> String {
        match &self.group {
            Some(group) => format!("group {group}"),
            None => {
                let mut models = self.models.clone();
                models.sort();
                let version = self.version.as_deref().unwrap_or("");
                format!("{:?} {:?} {version} {}", self.engine, self.connector, models.join(","))
            }
        }
    }
}
