//! Reloads certificates, the token of the gateways and settings when their files change, and on SIGHUP.

use std::sync::Arc;
use tidegate_types::Seconds;

use crate::dispatch::context::Proxy;
use crate::process::config_file::ConfigFile;
use crate::runtime::reloadable::Refresh;

/// Interval of the checks, a few `stat` calls each. Certificates are renewed days before the old one
/// expires.
const POLL_INTERVAL: Seconds = Seconds(2.0);

/// Reloads changed files every [`POLL_INTERVAL`], and all files on SIGHUP, while the proxy runs.
pub async fn reload(
    proxy: Arc<Proxy>,
    watched: Vec<Arc<dyn Refresh>>,
    mut config_file: Option<ConfigFile>,
) {
    let watched = Arc::new(watched);
    let polls = !watched.is_empty() || config_file.is_some();
    loop {
        let forced = tokio::select! {
            () = proxy.reload.notified() => true,
            () = tokio::time::sleep(POLL_INTERVAL.to_duration()), if polls => false,
        };
        if forced {
            tracing::info!(
                files = watched.len(),
                "SIGHUP: reloading certificates, tokens and settings"
            );
        }
        let all = Arc::clone(&watched);
        // The files may be on a slow disk.
        let reloading = tokio::task::spawn_blocking(move || reload_files(&all, forced));
        if let Err(error) = reloading.await {
            tracing::error!("files were not reloaded: {error}");
        }
        if let Some(file) = &mut config_file {
            file.check(forced).await;
        }
    }
}

fn reload_files(watched: &[Arc<dyn Refresh>], forced: bool) {
    for one in watched {
        let section = one.section();
        match one.refresh(forced) {
            Ok(true) => tracing::info!(section, "files reloaded"),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(section, "the old files stay in force: {error}");
            }
        }
    }
}
