//! Checks of `[signals]` and of the event endpoints of backends.

use super::{Findings, INTERVAL};
use crate::schema::{BackendSettings, Settings};

/// Above the GPUs of any machine.
const GPUS_MAX: u64 = 63;
const ENDPOINT: &str = "tcp://host:port or ipc:///path";

pub(super) fn signals(settings: &Settings, found: &mut Findings) {
    let spans = [
        ("signals.scrape_seconds", settings.signals.scrape),
        ("signals.gpu_seconds", settings.signals.gpu),
    ];
    for (path, span) in spans {
        let holds = span.get() == 0.0 || (INTERVAL.0..=INTERVAL.1).contains(&span.get());
        let hint = format!("0 for never, or {} to {} seconds", INTERVAL.0, INTERVAL.1);
        found.check(holds, path, &format!("is {}", span.get()), &hint);
    }
}

pub(super) fn of_backend(
    backend: &BackendSettings,
    path: &dyn Fn(&str) -> String,
    found: &mut Findings,
) {
    let (events, replay) = (path("kv_events"), path("kv_replay"));
    for (key, endpoint) in [(&events, &backend.kv_events), (&replay, &backend.kv_replay)] {
        let good = endpoint.as_deref().is_none_or(is_endpoint);
        found.check(good, key, "is not an endpoint", ENDPOINT);
    }
    let is_read = backend.kv_replay.is_none() || backend.kv_events.is_some();
    found.check_with(is_read, &replay, &[&events], "requires kv_events", "add kv_events");
    for (i, gpu) in backend.gpus.iter().enumerate() {
        found.count(u64::from(*gpu), (0, GPUS_MAX), &path(&format!("gpus[{i}]")));
    }
}

fn is_endpoint(endpoint: &str) -> bool {
    if let Some(path) = endpoint.strip_prefix("ipc://") {
        return path.starts_with('/');
    }
    let Some((host, port)) = endpoint.strip_prefix("tcp://").and_then(|at| at.rsplit_once(':'))
    else {
        return false;
    };
    // A wildcard address can be listened on, but not connected to.
    let port = port.parse::<u16>().is_ok_and(|port| port > 0);
    let host = !host.is_empty() && !host.contains(['*', '/', ' ']);
    host && port
}

#[cfg(test)]
mod tests {
    use crate::Settings;

    fn check(more: &str, expected: &[&str]) {
        let text = format!("[[backends]]\nname = \"a\"\nurl = \"http://a:80\"\n{more}");
        let problems = Settings::parse(&text).err().unwrap_or_default();
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(lines, expected, "{text}");
    }

    #[test]
    fn events_need_an_address_to_connect_to() {
        check("kv_events = \"tcp://a:5557\"\nkv_replay = \"tcp://[::1]:5558\"\ngpus = [0]", &[]);
        check("kv_events = \"ipc:///run/kv.sock\"", &[]);
        let hint = "is not an endpoint (tcp://host:port or ipc:///path), line 4";
        for bad in ["tcp://*:1", "tcp://host", "tcp://:1", "tcp://a:0", "ipc://x", "http://a:1", ""]
        {
            check(&format!("kv_events = \"{bad}\""), &[&format!("backends[0].kv_events: {hint}")]);
        }
        check(
            "kv_replay = \"tcp://a:1\"",
            &["backends[0].kv_replay: requires kv_events (add kv_events), line 4"],
        );
    }
}
