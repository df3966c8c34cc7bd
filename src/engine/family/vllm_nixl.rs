//! vLLM with the NIXL connector, pull or push (docs/spec/engine-protocols.md#vllm-nixl): parameters
//! of the prefill leg. Those in its answer are forwarded to the decode engine unread.

/// Makes the engine keep the blocks. It reads only `do_remote_decode`, but the nulls are required: with
/// remote ids it would try to pull blocks itself.
pub(super) const KEEP_BLOCKS: &[u8] = br#"{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}"#;
