//! Load during which no request may fail.

use http::HeaderValue;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use tokio::task::JoinSet;

use crate::client::{post, send, until};
use crate::fleet::Emulated;
use crate::proxy::Proxy;

/// Client key that the load sends, for gateways with keys.
pub const KEY: &str = "0123456789abcdef";

pub fn bearer(key: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("Bearer {key}")).unwrap()
}

/// Clients that send one request after another until they are stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    clients: JoinSet<()>,
}

impl Load {
    pub fn start(proxy: &Proxy, fleet: &Emulated, clients: usize) -> Load {
        let (stop, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut load = JoinSet::new();
        for n in 0..clients {
            let body = fleet.chat(n % 2 == 0, 100 + n * 150, 20);
            let (data, stop, served) = (proxy.data, Arc::clone(&stop), Arc::clone(&served));
            load.spawn(async move {
                while !stop.load(SeqCst) {
                    let mut request = post("/v1/chat/completions", body.clone());
                    request.headers_mut().insert("authorization", bearer(KEY));
                    let answer = send(data, request).await;
                    assert_eq!(answer.status, 200, "{}", answer.body);
                    assert!(!answer.body.contains("\"error\""), "{}", answer.body);
                    served.fetch_add(1, SeqCst);
                }
            });
        }
        Load { stop, served, clients: load }
    }

    pub async fn serves_more(&self) {
        let before = self.served.load(SeqCst);
        until("ten more requests", || self.served.load(SeqCst) > before + 10).await;
    }

    pub async fn end(mut self) {
        self.stop.store(true, SeqCst);
        while let Some(client) = self.clients.join_next().await {
            client.unwrap();
        }
    }
}
