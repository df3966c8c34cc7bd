//! The proxy's settings in a demo, written as TOML and parsed like an operator's file.

use std::fmt::Write;
use std::net::{SocketAddr, TcpListener};
use tidegate_settings::{Settings, joined};
use tidegate_sim::Profile;
use tidegate_types::Slo;

use super::{DemoError, DemoPolicy};

/// Settings for `policy` over engines at `addresses`, and the data port.
pub fn settings(
    policy: DemoPolicy,
    addresses: &[SocketAddr],
    profile: &Profile,
    slo: &Slo,
) -> Result<(Settings, SocketAddr), DemoError> {
    let (data, admin) = (free_port()?, free_port()?);
    let mut text = format!(
        "[server]\nlisten = [\"{data}\"]\nlinger_seconds = 0\ndrain_seconds = 0\nthreads = 1\n\
         [admin]\nlisten = \"{admin}\"\n[log]\nlevel = \"error\"\naccess = \"off\"\n\
         [slo]\nttft_seconds = {}\ntpot_seconds = {}\n[placement]\nchunk_tokens = {}\n",
        slo.ttft.get(),
        slo.tpot.get(),
        profile.chunk.get(),
    );
    if policy != DemoPolicy::Tidegate {
        // A conventional fixed split: each prompt is dispatched at once, roles never change.
        text += "spill = false\n[queue]\nprefill_backlog_max_seconds = 1000\ntrunk_reservation_share = 0\n\
                 [planner]\nenabled = false\n";
    }
    let (prefill, decode) = (profile.prefill_model(), profile.decode_model());
    for (i, address) in addresses.iter().enumerate() {
        // Writing to a String cannot fail.
        write!(
            text,
            "[[backends]]\nname = \"engine-{i}\"\nurl = \"http://{address}\"\nengine = \"vllm\"\n\
             connector = \"nixl\"\nstreams_max = {}\nkv_capacity_tokens = {}\n\
             prefill_prior = {{ base_seconds = {:e}, per_token_seconds = {:e}, per_attention_seconds = {:e} }}\n\
             decode_prior = {{ base_seconds = {:e}, per_stream_seconds = {:e}, free_streams = {}, per_kv_token_seconds = {:e} }}\n",
            profile.max_num_seqs, profile.kv_capacity.get(),
            prefill.base.get(), prefill.per_token.get(), prefill.per_attention.get(),
            decode.base.get(), decode.per_stream.get(), decode.free_streams, decode.per_kv_token.get(),
        )
        .ok();
        if let DemoPolicy::Static(prefills) = policy {
            let role = if i < prefills { "prefill" } else { "decode" };
            write!(text, "role = \"{role}\"\npin = true\n").ok();
        }
    }
    let settings =
        Settings::parse(&text).map_err(|problems| DemoError::Settings(joined(&problems)))?;
    Ok((settings, data))
}

/// Returns a free local port.
fn free_port() -> std::io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}
