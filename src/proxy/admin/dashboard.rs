//! The page at `/`: both pools, queue and flips, drawn from the admin addresses twice a second.

/// One self-contained page.
pub const PAGE: &str = include_str!("dashboard.html");
