//! Names of the JSON members that control a KV hand-off, by engine
//! (docs/spec/engine-protocols.md). One list for both directions: `body/foreign_handoff.rs` finds
//! them in requests of clients, `handoff_redaction.rs` removes their values from answers.

/// Members whose values name engines, hosts, ports or KV blocks, in requests and in answers.
pub(crate) const IN_ANSWERS: [&str; 6] = [
    // vLLM, every connector
    "kv_transfer_params",
    // vLLM, encoder disaggregation
    "ec_transfer_params",
    // TensorRT-LLM
    "disaggregated_params",
    // SGLang
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
];

/// Members that only requests have.
const IN_REQUESTS: [&str; 2] = [
    // SGLang
    "disagg_prefill_dp_rank",
    "decode_tp_size",
];

/// Prefix of SGLang's members: `bootstrap_host`, `_port`, `_room`, `_pair_key`.
const BOOTSTRAP_PREFIX: &str = "bootstrap_";

/// Length in bytes of the longest name in [`IN_ANSWERS`].
pub(crate) const NAME_MAX: usize = longest(&IN_ANSWERS);

const fn longest(names: &[&str]) -> usize {
    let (mut at, mut longest) = (0, 0);
    while at < names.len() {
        if names[at].len() > longest {
            longest = names[at].len();
        }
        at += 1;
    }
    longest
}

/// Returns whether a request member of this name controls a hand-off.
pub(crate) fn is_in_requests(name: &[u8]) -> bool {
    known(name).is_some() || name.starts_with(BOOTSTRAP_PREFIX.as_bytes())
}

/// Returns the listed name equal to `name`; `None` for other members with the `bootstrap_` prefix.
pub(crate) fn known(name: &[u8]) -> Option<&'static str> {
    IN_ANSWERS.into_iter().chain(IN_REQUESTS).find(|known| known.as_bytes() == name)
}
