//! The files of the dashboard. They contain no data; the page reads it from the admin addresses.

use tidegate_page::{DASHBOARD_CSS, DASHBOARD_HTML, DASHBOARD_JS};

/// Returns content type and content of a file, by its path.
pub fn file(path: &str) -> Option<(&'static str, &'static str)> {
    match path {
        "/" => Some(("text/html; charset=utf-8", DASHBOARD_HTML)),
        "/dashboard.css" => Some(("text/css; charset=utf-8", DASHBOARD_CSS)),
        "/dashboard.js" => Some(("text/javascript; charset=utf-8", DASHBOARD_JS)),
        _ => None,
    }
}
