//! The page at `/`: pools, queue and flips, updated twice a second from the admin addresses.

/// A self-contained HTML page.
pub const PAGE: &str = include_str!("dashboard.html");
