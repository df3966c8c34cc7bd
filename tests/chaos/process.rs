//! Memory and file descriptors of this process, which contains the proxy, the engines and the
//! clients.

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

    /// Tolerance for caches that still fill and memory that the allocator has not returned.
    pub fn is_flat_since(self, middle: Held) -> bool {
        self.resident_mb <= middle.resident_mb + middle.resident_mb / 10 + 32
            && self.descriptors <= middle.descriptors + 16
    }
}
