//! Certificates and the backends of the settings file are loaded again when their files change, and on
//! SIGHUP.

use std::sync::Arc;
use tidegate_types::Seconds;

use crate::dispatch::context::Proxy;
use crate::process::config_file::ConfigFile;
use crate::tls::Refresh;

/// Between two checks of the files: a few `stat` calls. Certificates are renewed days before the old
/// one ends.
const LOOK_EVERY: Seconds = Seconds(2.0);
/// Refresh what is watched when its files change, and on SIGHUP, as long as the proxy runs.
pub async fn reload(
    proxy: Arc<Proxy>,
    watched: Vec<Arc<dyn Refresh>>,
    mut config_file: Option<ConfigFile>,
) {
    let watched = Arc::new(watched);
    let looks = !watched.is_empty() || config_file.is_some();
    loop {
        let asked = tokio::select! {
            () = proxy.reload.notified() => true,
            () = tokio::time::sleep(LOOK_EVERY.to_duration()), if looks => false,
        };
        if asked {
            tracing::info!(
                certificates = watched.len(),
                "SIGHUP: certificates and backends are loaded again"
            );
        }
        let all = Arc::clone(&watched);
        // Files may lie on a slow disk.
        let looking = tokio::task::spawn_blocking(move || look(&all, asked));
        if let Err(error) = looking.await {
            tracing::error!("certificates were not loaded again: {error}");
        }
        if let Some(file) = &mut config_file {
            file.look(asked).await;
        }
    }
}

fn look(watched: &[Arc<dyn Refresh>], asked: bool) {
    for one in watched {
        let section = one.section();
        match one.refresh(asked) {
            Ok(true) => tracing::info!(section, "certificates were loaded again"),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(section, "the old certificates stay in force: {error}");
            }
        }
    }
}
