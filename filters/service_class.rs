//! Filter: the service class of a request, by its model, its API key and, from trusted peers, by headers.
//! It refuses no request and allocates nothing.

use crate::Accepted;
use http::HeaderMap;
use ipnet::IpNet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use tidegate_types::{ClassId, ClassKind, Seconds, Slo, Targets};

/// Headers with the TTFT target in milliseconds: llm-d's current and earlier name.
pub(crate) const TTFT: [&str; 2] = ["x-llm-d-slo-ttft-ms", "x-slo-ttft-ms"];
/// Headers with the TPOT target in milliseconds.
pub(crate) const TPOT: [&str; 2] = ["x-llm-d-slo-tpot-ms", "x-slo-tpot-ms"];
/// Headers with the name of an InferenceObjective.
pub(crate) const OBJECTIVE: [&str; 2] =
    ["x-llm-d-inference-objective", "x-gateway-inference-objective"];
/// Range of targets in headers, in milliseconds: up to an hour. Others have no effect.
const STATED: RangeInclusive<f64> = 1.0..=3_600_000.0;

/// A service class: conditions that its requests meet, and their targets.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceClass {
    /// Name; the metric label `class`.
    pub name: Arc<str>,
    /// Models; empty: any.
    pub models: Vec<String>,
    /// Owners of API keys; empty: any.
    pub keys: Vec<String>,
    /// Values of the objective header of trusted peers; empty: any, or none.
    pub objectives: Vec<String>,
    /// Whether a header of a trusted peer must set a target.
    pub stated_targets: bool,
    /// Whether its requests have targets.
    pub kind: ClassKind,
    /// The targets.
    pub slo: Slo,
    /// Longest wait in the queue; infinite: until the client disconnects.
    pub queue_deadline: Seconds,
}

/// The service classes of the settings, and the peers whose headers are read.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceClasses {
    default: ServiceClass,
    classes: Vec<ServiceClass>,
    trusted_peers: Vec<IpNet>,
}

/// Values of a trusted peer's headers.
#[derive(Clone, Copy, Default)]
struct Stated<'h> {
    objective: Option<&'h str>,
    ttft: Option<Seconds>,
    tpot: Option<Seconds>,
}

impl ServiceClasses {
    /// Creates the classes; `default` is that of requests without a match.
    pub fn new(
        default: ServiceClass,
        classes: Vec<ServiceClass>,
        trusted_peers: Vec<IpNet>,
    ) -> ServiceClasses {
        ServiceClasses { default, classes, trusted_peers }
    }

    /// Returns a class; the default class for an unknown number.
    pub fn class(&self, id: ClassId) -> &ServiceClass {
        usize::from(id.0).checked_sub(1).and_then(|n| self.classes.get(n)).unwrap_or(&self.default)
    }

    /// Returns all classes, the default class first.
    pub fn all(&self) -> impl Iterator<Item = &ServiceClass> {
        std::iter::once(&self.default).chain(&self.classes)
    }

    /// Returns the targets of a request from `peer`: of the first class that it matches, replaced by
    /// those in headers of a trusted peer. Batch work has no targets, whatever the headers.
    pub fn targets(&self, accepted: &Accepted, headers: &HeaderMap, peer: IpAddr) -> Targets {
        let peer = peer.to_canonical();
        let is_trusted = self.trusted_peers.iter().any(|network| network.contains(&peer));
        let stated = if is_trusted { Stated::read(headers) } else { Stated::default() };
        let matching = self.classes.iter().position(|class| class.matches(accepted, &stated));
        let class = ClassId(matching.map_or(0, |n| n as u8 + 1));
        let ServiceClass { kind, mut slo, .. } = *self.class(class);
        if kind == ClassKind::Interactive {
            slo.ttft = stated.ttft.unwrap_or(slo.ttft);
            slo.tpot = stated.tpot.unwrap_or(slo.tpot);
        }
        Targets { class, kind, slo }
    }
}

impl ServiceClass {
    fn matches(&self, accepted: &Accepted, stated: &Stated<'_>) -> bool {
        let is_one_of = |names: &[String], name: Option<&str>| {
            names.is_empty() || name.is_some_and(|name| names.iter().any(|known| known == name))
        };
        is_one_of(&self.models, accepted.model.as_deref())
            && is_one_of(&self.keys, Some(accepted.tenant.as_str()))
            && is_one_of(&self.objectives, stated.objective)
            && (!self.stated_targets || stated.ttft.is_some() || stated.tpot.is_some())
    }
}

impl<'h> Stated<'h> {
    fn read(headers: &'h HeaderMap) -> Stated<'h> {
        Stated {
            objective: value(headers, OBJECTIVE),
            ttft: value(headers, TTFT).and_then(target),
            tpot: value(headers, TPOT).and_then(target),
        }
    }
}

/// Returns the value of the first of these headers that is present.
fn value<'h>(headers: &'h HeaderMap, names: [&str; 2]) -> Option<&'h str> {
    let value = names.iter().find_map(|name| headers.get(*name))?;
    value.to_str().ok().map(str::trim).filter(|value| !value.is_empty())
}

fn target(millis: &str) -> Option<Seconds> {
    let millis = millis.parse().ok().filter(|millis| STATED.contains(millis))?;
    Some(Seconds::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Calibrations, Chain, ChainParams, Directory, FreshIds, ModelEntry, PromptEstimator,
        RequestParts, Tenant,
    };
    use bytes::Bytes;
    use http::{HeaderName, HeaderValue, Method};
    use tidegate_scheduler::cost::ByteEstimator;

    const GATEWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9));
    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 0, 1));

    fn class(name: &str, ttft: f64) -> ServiceClass {
        ServiceClass {
            name: name.into(),
            models: Vec::new(),
            keys: Vec::new(),
            objectives: Vec::new(),
            stated_targets: false,
            kind: ClassKind::Interactive,
            slo: Slo { ttft: Seconds(ttft), ..Slo::default() },
            queue_deadline: Seconds(30.0),
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn classes() -> ServiceClasses {
        let classes = vec![
            ServiceClass {
                kind: ClassKind::Batch,
                slo: Slo::NONE,
                keys: names(&["night"]),
                ..class("batch", 0.0)
            },
            ServiceClass { objectives: names(&["premium"]), ..class("premium", 0.2) },
            ServiceClass { models: names(&["m"]), keys: names(&["team"]), ..class("both", 0.4) },
            ServiceClass { stated_targets: true, ..class("stated", 0.5) },
        ];
        ServiceClasses::new(class("default", 1.0), classes, vec!["10.0.0.0/8".parse().unwrap()])
    }

    fn accepted() -> Accepted {
        let mut directory = Directory::default();
        directory.models.insert(Arc::from("m"), ModelEntry::default());
        let request = RequestParts {
            method: &Method::POST,
            path: "/v1/completions",
            query: "",
            headers: &HeaderMap::new(),
            body: &Bytes::from(r#"{"model":"m","prompt":"Hello"}"#),
        };
        let chain = Chain::new(ChainParams::default());
        let fresh = FreshIds::from_random(1, 2, 3);
        let (bytes, calibrations) = (ByteEstimator::new(), Calibrations::new());
        let estimator = PromptEstimator { bytes: &bytes, calibrations: &calibrations };
        let head = chain.admit_head(&directory, &request.head()).unwrap();
        chain.admit(&directory, estimator, &head, &request, &fresh).unwrap()
    }

    fn targets(
        model: &str,
        key: &str,
        peer: IpAddr,
        headers: &[(&'static str, &'static str)],
    ) -> Targets {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let request =
            Accepted { model: Some(model.into()), tenant: Tenant(key.into()), ..accepted() };
        classes().targets(&request, &map, peer)
    }

    fn name_of(targets: Targets) -> String {
        classes().class(targets.class).name.to_string()
    }

    #[test]
    fn a_request_is_of_the_first_class_whose_conditions_it_meets() {
        for (model, key, headers, name, ttft) in [
            ("m", "other", &[][..], "default", 1.0),
            ("other", "team", &[], "default", 1.0),
            ("m", "team", &[], "both", 0.4),
            ("m", "team", &[("x-gateway-inference-objective", "premium")], "premium", 0.2),
            ("m", "team", &[("x-llm-d-inference-objective", "other")], "both", 0.4),
            ("m", "x", &[("x-llm-d-slo-ttft-ms", "250")], "stated", 0.25),
            ("m", "x", &[("x-slo-tpot-ms", "12.5")], "stated", 0.5),
            ("m", "team", &[("x-slo-ttft-ms", " 700 ")], "both", 0.7),
        ] {
            let found = targets(model, key, GATEWAY, headers);
            assert_eq!((&*name_of(found), found.slo.ttft), (name, Seconds(ttft)), "{headers:?}");
        }
        let tpot = targets("m", "x", GATEWAY, &[("x-slo-tpot-ms", "12.5")]).slo.tpot;
        assert_eq!(tpot, Seconds(0.0125));
    }

    #[test]
    fn headers_of_other_peers_and_impossible_values_have_no_effect() {
        for (peer, headers) in [
            (
                CLIENT,
                &[("x-llm-d-slo-ttft-ms", "250"), ("x-llm-d-inference-objective", "premium")][..],
            ),
            (GATEWAY, &[("x-llm-d-slo-ttft-ms", "0")]),
            (GATEWAY, &[("x-llm-d-slo-ttft-ms", "-5"), ("x-llm-d-slo-tpot-ms", "fast")]),
            (GATEWAY, &[("x-llm-d-slo-ttft-ms", "NaN"), ("x-llm-d-slo-tpot-ms", "1e99")]),
        ] {
            let found = targets("m", "x", peer, headers);
            assert_eq!(found, Targets::of_default_class(Slo::default()), "{headers:?}");
        }
    }

    #[test]
    fn batch_work_has_no_targets_whatever_a_peer_states() {
        let found = targets("m", "night", GATEWAY, &[("x-llm-d-slo-ttft-ms", "250")]);
        assert_eq!((found.kind, found.slo), (ClassKind::Batch, Slo::NONE));
    }
}
