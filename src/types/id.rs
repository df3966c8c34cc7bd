//! Identifiers: small integers. The slot of a backend that has left is reused once nothing refers to
//! that backend any more, so an id of a request in flight is unambiguous.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// Returns the id as an index into a dense table.
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

id! {
    /// One backend: its slot in the fleet, dense from 0.
    BackendId(u16)
}

/// Most backends of a fleet: slots of the prefix index, 32 bytes each.
pub const BACKENDS_MAX: usize = 4096;

impl BackendId {
    /// Puts `value` into this backend's slot of a table by slot, which exists or is the next one.
    ///
    /// ```
    /// use tidegate_types::BackendId;
    ///
    /// let mut names = vec!["a", "b"];
    /// BackendId(0).put(&mut names, "c");
    /// BackendId(2).put(&mut names, "d");
    /// assert_eq!(names, ["c", "b", "d"]);
    /// ```
    pub fn put<T>(self, table: &mut Vec<T>, value: T) {
        match table.get_mut(self.index()) {
            Some(slot) => *slot = value,
            None => table.push(value),
        }
    }
}

id! {
    /// A compatibility group: backends that may hand KV cache to each other.
    GroupId(u16)
}
id! {
    /// The backends that serve one model: one or more groups.
    PoolId(u32)
}
id! {
    /// One client request, numbered from 1 by the proxy that accepted it.
    RequestId(u64)
}
id! {
    /// A plan's number; a later plan has a higher one.
    PlanNumber(u64)
}

impl RequestId {
    /// Returns a number that is evenly spread for consecutive ids: multiples of the golden ratio.
    pub const fn spread(self) -> u64 {
        self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}
