//! After any mix of successes, errors, cancellations and dead backends every counter returns to
//! zero.

use std::time::Duration;
use tokio::task::JoinSet;

use crate::client::{leave_later, post, send};
use crate::fleet::Emulated;
use crate::proxy::{FREE, Proxy, vllm};

#[tokio::test(flavor = "multi_thread")]
async fn every_counter_returns_to_zero() {
    let mut fleet = Emulated::start(4).await;
    let names = ["e0", "e1", "e2", "e3"];
    let engines: Vec<_> = (0..4).map(|i| vllm(names[i], fleet.url(i), FREE)).collect();
    let top = "[planner]\ndwell_seconds = 0.1\n[queue]\ndeadline_seconds = 4\n";
    let proxy = Proxy::start(top, &engines).await;
    let data = proxy.data;
    let mut load = JoinSet::new();
    for n in 0..120_usize {
        let good = fleet.chat(n % 2 == 0, 100 + (n * 37) % 2500, 1 + n % 40);
        match n % 6 {
            // Disconnects at a random time: in the queue, in either leg, between tokens, after the
            // end.
            0 | 1 => {
                load.spawn(async move {
                    let client = leave_later(data, post("/v1/chat/completions", good));
                    tokio::time::sleep(Duration::from_millis((n as u64 * 13) % 400)).await;
                    client.abort();
                });
            }
            2 => {
                load.spawn(async move {
                    let bad = "{\"model\":\"m\",\"messages\":3}".to_owned();
                    assert_eq!(send(data, post("/v1/chat/completions", bad)).await.status, 400);
                });
            }
            _ => {
                load.spawn(async move {
                    // The answer may be cut or a refusal; the exchange always ends.
                    let status = send(data, post("/v1/chat/completions", good)).await.status;
                    assert!(matches!(status.as_u16(), 200 | 429 | 502 | 503 | 504), "{status}");
                });
            }
        }
        if n == 60 {
            fleet.kill(3).await;
        }
        if n == 90 {
            fleet.kill(2).await;
        }
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    while let Some(done) = load.join_next().await {
        done.unwrap();
    }
    proxy.settles().await;
    let page = send(proxy.admin, crate::client::get("/metrics")).await.body;
    let sum = |name: &str| -> f64 {
        let rows = page.lines().filter(|line| line.starts_with(name));
        rows.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    assert_eq!(sum("tidegate_requests_started_total"), sum("tidegate_requests_settled_total"));
    for gauge in [
        "tidegate_backend_streams",
        "tidegate_backend_prefill_seconds",
        "tidegate_backend_kv_tokens",
    ] {
        assert_eq!(sum(gauge), 0.0, "{gauge}");
    }
}
