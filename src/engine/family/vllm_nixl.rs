//! vLLM with the NIXL connector, pull or push (docs/spec/engine-protocols.md#vllm-nixl): what the
//! prefill leg asks
//! for. Its answer's parameters go to the decode engine as they are; nothing here may read them.

/// Asks the engine to keep the blocks. Only `do_remote_decode` is read, but the nulls matter: with
/// remote ids it would try to pull blocks itself.
pub(super) const KEEP_BLOCKS: &[u8] = br#"{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}"#;
