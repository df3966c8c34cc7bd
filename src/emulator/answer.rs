//! The wire shapes, as vLLM 0.32 writes them (transcripts in ../shared/real_engines), and the text:
//! a function of the prompt and the position, so that two engines say the same.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::ask::{Ask, Refusal};
use crate::server::Emulated;

const WORDS: [&str; 16] = [
    " tide", " gate", " moon", " wave", " salt", " foam", " reef", " gull", " rope", " mast",
    " keel", " bank", " ebb", " neap", " surge", " calm",
];

/// The frames of one streamed answer, made ready before the first token.
#[derive(Clone, Debug)]
pub struct Frames {
    seed: u64,
    first: String,
    before: String,
    after: &'static str,
    end: String,
    tail: String,
}

/// Token `position` of answer `index`.
pub fn word(seed: u64, index: u32, position: u64) -> &'static str {
    let mixed =
        (seed ^ u64::from(index)).wrapping_add(position.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    WORDS[(mixed >> 60) as usize]
}

impl Frames {
    /// Frames for answer `index` of a request.
    pub fn new(engine: &Emulated, ask: &Ask, id: &str, index: u32) -> Frames {
        let object = if ask.chat { "chat.completion.chunk" } else { "text_completion" };
        let model = &engine.config.model;
        let head = format!(
            "data: {{\"id\":\"{id}\",\"object\":\"{object}\",\"created\":1,\"model\":\"{model}\",\"choices\":[{{\"index\":{index},"
        );
        let usage = match ask.include_usage {
            true => format!(
                "data: {{\"id\":\"{id}\",\"object\":\"{object}\",\"created\":1,\"model\":\"{model}\",\"choices\":[],\"usage\":{}}}\n\n",
                usage(ask.prompt, ask.output * u64::from(ask.n))
            ),
            false => String::new(),
        };
        let finish = "\"logprobs\":null,\"finish_reason\":\"length\",\"stop_reason\":null,\"token_ids\":null}],\"kv_transfer_params\":null}\n\n";
        if ask.chat {
            Frames {
                seed: ask.seed,
                first: format!(
                    "{head}\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},\"logprobs\":null,\"finish_reason\":null}}],\"prompt_token_ids\":null}}\n\n"
                ),
                before: format!("{head}\"delta\":{{\"content\":\""),
                after: "\"},\"logprobs\":null,\"finish_reason\":null,\"token_ids\":null}]}\n\n",
                end: format!("\"}},{finish}"),
                tail: format!("{usage}data: [DONE]\n\n"),
            }
        } else {
            Frames {
                seed: ask.seed,
                first: String::new(),
                before: format!("{head}\"text\":\""),
                after: "\",\"logprobs\":null,\"finish_reason\":null,\"stop_reason\":null,\"token_ids\":null}]}\n\n",
                end: format!("\",{finish}"),
                tail: format!("{usage}data: [DONE]\n\n"),
            }
        }
    }

    /// The frame of one token; the role chunk comes with the first one, the reason with the last.
    pub fn token(&self, index: u32, position: u64, last: bool) -> Bytes {
        let first = if position == 0 { self.first.as_str() } else { "" };
        let after = if last { self.end.as_str() } else { self.after };
        Bytes::from([first, &self.before, word(self.seed, index, position), after].concat())
    }

    /// What follows when all answers have ended.
    pub fn tail(&self) -> Bytes {
        Bytes::from(self.tail.clone())
    }
}

/// A whole answer.
pub fn whole(engine: &Emulated, ask: &Ask, id: &str, handoff: Value) -> Bytes {
    let text = |index: u32| -> String {
        (0..ask.output).map(|position| word(ask.seed, index, position)).collect()
    };
    let choice = |index: u32| match ask.chat {
        true => json!({
            "index": index, "message": { "role": "assistant", "content": text(index), "refusal": null },
            "logprobs": null, "finish_reason": "length", "stop_reason": null, "token_ids": null,
        }),
        false => json!({
            "index": index, "text": text(index), "logprobs": null, "finish_reason": "length",
            "stop_reason": null, "token_ids": null, "prompt_logprobs": null,
        }),
    };
    let body = json!({
        "id": id,
        "object": if ask.chat { "chat.completion" } else { "text_completion" },
        "created": 1,
        "model": engine.config.model,
        "choices": (0..ask.n).map(choice).collect::<Vec<_>>(),
        "usage": usage(ask.prompt, ask.output * u64::from(ask.n)),
        "kv_transfer_params": handoff,
    });
    Bytes::from(body.to_string())
}

/// What a prefill hands over (engine_protocols.md §2, the exact keys of 0.32).
pub fn handoff(engine: &Emulated, request_id: &str, prompt: u64) -> Value {
    let blocks: Vec<u64> = (0..prompt.div_ceil(128)).collect();
    json!({
        "do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [blocks],
        "remote_engine_id": engine.id, "remote_request_id": request_id,
        "remote_host": engine.address.ip().to_string(), "remote_port": engine.address.port(),
        "tp_size": 1, "dcp_size": 1, "pp_size": 1, "remote_num_tokens": prompt,
        "remote_blocks_expiry_time": null, "transfer_mode": "pull", "remote_prefill_cached_tokens": 0,
    })
}

/// An error in vLLM's form.
pub fn error(status: u16, kind: &str, message: &str, param: Option<&str>) -> Bytes {
    let body =
        json!({ "error": { "message": message, "type": kind, "param": param, "code": status } });
    Bytes::from(body.to_string())
}

/// A refusal in vLLM's form.
pub fn refusal(refusal: &Refusal) -> Bytes {
    error(refusal.status, refusal.kind, &refusal.message, refusal.param)
}

/// An error in a stream that has begun.
pub fn error_event(message: &str) -> Bytes {
    let body = error(500, "InternalServerError", message, None);
    Bytes::from([b"data: ", &body[..], b"\n\ndata: [DONE]\n\n"].concat())
}

fn usage(prompt: u64, completion: u64) -> Value {
    json!({
        "prompt_tokens": prompt, "total_tokens": prompt + completion,
        "completion_tokens": completion, "prompt_tokens_details": null,
    })
}
