//! Head sampling of traces: whether the spans of a request are exported. Names and arithmetic are those of
//! OpenTelemetry's SDKs, so that all programs of a trace decide alike.

/// A sampler of `OTEL_TRACES_SAMPLER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// Whether the client's decision counts where there is one.
    honours_parent: bool,
    /// A trace is sampled if bits 1 to 63 of its id are below.
    below: u64,
}

/// Number of values of 63 bits.
const ALL: u64 = 1 << 63;

impl Sampler {
    /// `parentbased_always_off`, the sampler while no spans are exported: the client's flag is
    /// forwarded, and a new trace is not sampled.
    pub const OF_CLIENT: Sampler = Sampler { honours_parent: true, below: 0 };
    /// `parentbased_always_on`, OpenTelemetry's default.
    pub const PARENT_OR_ON: Sampler = Sampler { honours_parent: true, below: ALL };

    /// The sampler of this name. `ratio` is the share of sampled traces, for the names that have one.
    /// `None` for other names.
    pub fn named(name: &str, ratio: f64) -> Option<Sampler> {
        let (honours_parent, root) = match name.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, name),
        };
        let below = match root {
            "always_on" => ALL,
            "always_off" => 0,
            "traceidratio" => (ratio.clamp(0.0, 1.0) * ALL as f64) as u64,
            _ => return None,
        };
        Some(Sampler { honours_parent, below })
    }

    /// Whether a trace is sampled. `parent`: the client's decision.
    pub(crate) fn samples(self, trace: u128, parent: Option<bool>) -> bool {
        match parent.filter(|_| self.honours_parent) {
            Some(sampled) => sampled,
            None => (trace as u64 >> 1) < self.below,
        }
    }

    /// Whether no trace of tidegate's own is sampled.
    pub fn is_off(self) -> bool {
        self.below == 0
    }
}

impl Default for Sampler {
    fn default() -> Sampler {
        Sampler::OF_CLIENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_decides_by_the_trace_id_and_a_parent_first_if_it_counts() {
        let of = |name: &str| Sampler::named(name, 0.25).unwrap();
        // 63 bits from bit 1: a quarter of them is below 2^61.
        let (low, high) = ((1_u128 << 62) - 1, 1_u128 << 62);
        let upper = 0xffff_u128 << 64;
        for (name, trace, parent, expected) in [
            ("always_on", high, Some(false), true),
            ("always_off", low, Some(true), false),
            ("traceidratio", low, Some(false), true),
            ("traceidratio", high, Some(true), false),
            ("traceidratio", low | upper, None, true),
            ("traceidratio", high | upper, None, false),
            ("parentbased_always_on", high, None, true),
            ("parentbased_always_on", low, Some(false), false),
            ("parentbased_always_off", low, None, false),
            ("parentbased_always_off", low, Some(true), true),
            ("parentbased_traceidratio", low, None, true),
            ("parentbased_traceidratio", high, None, false),
            ("parentbased_traceidratio", high, Some(true), true),
        ] {
            assert_eq!(of(name).samples(trace, parent), expected, "{name} {trace:x} {parent:?}");
        }
        for (ratio, below) in [(-1.0, 0), (0.0, 0), (1.0, ALL), (7.0, ALL)] {
            assert_eq!(Sampler::named("traceidratio", ratio).unwrap().below, below);
        }
        assert_eq!(Sampler::named("jaeger_remote", 1.0), None);
        assert_eq!(Sampler::named("parentbased_", 1.0), None);
        assert_eq!(Sampler::default(), of("parentbased_always_off"));
        assert!(Sampler::default().is_off() && !of("traceidratio").is_off());
    }
}
