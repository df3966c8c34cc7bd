//! What this process holds: the proxy, the engines and the clients are all in it.

#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub resident_mb: u64,
    pub descriptors: usize,
}

impl Held {
    pub fn now() -> Held {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kb: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
        Held { resident_mb: kb >> 10, descriptors }
    }

    /// Slack: caches that still fill, and what the allocator has not given back.
    pub fn is_flat_since(self, middle: Held) -> bool {
        self.resident_mb <= middle.resident_mb + middle.resident_mb / 10 + 32
            && self.descriptors <= middle.descriptors + 16
    }
}
