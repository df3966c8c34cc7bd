//! Checks of this machine: files of the configuration, open files, TLS.

use tidegate_settings::Settings;

use super::DoctorReport;

/// Open files beside connections: logs, listeners, probes.
const FILES_BESIDE: u64 = 256;

/// Adds the findings about this machine.
pub fn check(settings: &Settings, report: &mut DoctorReport) {
    match tidegate_proxy::files::load(settings) {
        Ok(_) => report.ok("host", "files", "keys, certificates and tokenizers can be read"),
        Err(errors) => {
            for line in errors.to_string().lines() {
                report.error("host", "files", line, "correct the path or the file's permissions");
            }
        }
    }
    open_files(settings, report);
    match (&settings.server.tls, settings.server.listen.iter().all(|at| at.ip().is_loopback())) {
        (Some(_), _) => report.ok("host", "tls", "clients connect over TLS"),
        (None, true) => report.ok("host", "tls", "none; clients connect over loopback only"),
        (None, false) => report.warn(
            "host",
            "tls",
            "clients on other machines connect without TLS",
            "set [server.tls], or terminate TLS in front of tidegate",
        ),
    }
    let admin = &settings.admin;
    if !admin.listen.ip().is_loopback() && admin.token.is_none() && admin.token_file.is_none() {
        report.warn(
            "host",
            "admin",
            format!("{} changes roles without a token", admin.listen),
            "set [admin] token_file, or listen on loopback",
        );
    }
}

/// Each client connection may need a second one, to an engine.
fn open_files(settings: &Settings, report: &mut DoctorReport) {
    let Some(limit) = limit() else {
        return report.ok("host", "open files", "the limit cannot be read on this system");
    };
    let wanted = 2 * settings.server.connections_max as u64 + FILES_BESIDE;
    let detail = format!("limit {limit}, connections_max {}", settings.server.connections_max);
    if limit >= wanted {
        return report.ok("host", "open files", detail);
    }
    let advice = format!("raise it (ulimit -n {wanted}, LimitNOFILE=), or lower connections_max");
    report.warn("host", "open files", detail, &advice);
}

/// The soft limit of open files; Linux only.
fn limit() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        soft => soft.parse().ok(),
    }
}
