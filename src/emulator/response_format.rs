//! Wire format of vLLM 0.32, member for member as recorded (src/engine/testdata). Chunks are
//! assembled from text built once per request: a token costs a few copies.

use bytes::{BufMut, Bytes, BytesMut};
use http::header::HeaderMap;
use std::fmt::Write;
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::answer_text;
use crate::config::EmulatorConfig;
use crate::engine::EmulatedState;
use crate::lease::HeldKv;
use crate::request_body::GenerationRequest;
use crate::token_feed::TokenFeed;
use crate::tokens::{BLOCK_TOKENS, TokenizedPrompt};

/// A request's ids (docs/spec/engine-protocols.md#vllm-headers).
pub struct ResponseIds {
    /// Id in the response.
    pub external: String,
    chat: bool,
}

impl ResponseIds {
    /// Takes the id from `X-Request-Id`, or a random one.
    pub fn new(chat: bool, headers: &HeaderMap) -> ResponseIds {
        let given = headers.get("x-request-id").and_then(|id| id.to_str().ok());
        let id = given.map_or_else(|| format!("{:016x}", fastrand::u64(..)), str::to_owned);
        let kind = if chat { "chatcmpl" } else { "cmpl" };
        ResponseIds { external: format!("{kind}-{id}"), chat }
    }

    /// Returns the unguessable id by which other engines know answer `i`.
    pub fn internal(&self, i: usize) -> String {
        let index = if self.chat { String::new() } else { format!("-{i}") };
        format!("{}{index}-{:08x}", self.external, fastrand::u32(..))
    }
}

/// Prebuilt parts of one request's response.
pub struct ResponseFormat {
    chat: bool,
    /// Start of a chunk, up to `"choices":[`.
    head: String,
    /// Start of a complete response.
    whole_head: String,
    finish: &'static str,
    prompt_tokens: u64,
    output: u64,
    answers_a_prompt: u32,
    /// Whether a usage chunk ends the stream.
    pub include_usage: bool,
    continuous_usage: bool,
    details: bool,
}

const FINGERPRINT: &str = "\"system_fingerprint\":\"vllm-0.32.0-emulated\"";

impl ResponseFormat {
    /// Builds the parts for one request.
    pub fn new(
        config: &EmulatorConfig,
        ids: &ResponseIds,
        ask: &GenerationRequest,
    ) -> ResponseFormat {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        // Serialising a string cannot fail.
        let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
        let head = |object: &str| {
            format!(
                "{{\"id\":{},\"object\":\"{object}\",\"created\":{now},\"model\":{},\"choices\":[",
                quoted(&ids.external),
                quoted(&config.model),
            )
        };
        let (object, chunk) = match ask.chat {
            true => ("chat.completion", "chat.completion.chunk"),
            false => ("text_completion", "text_completion"),
        };
        ResponseFormat {
            chat: ask.chat,
            head: format!("data: {}", head(chunk)),
            whole_head: head(object),
            finish: ask.finish,
            prompt_tokens: ask.prompts.iter().map(TokenizedPrompt::tokens).sum(),
            output: ask.output,
            answers_a_prompt: ask.n,
            include_usage: ask.include_usage,
            continuous_usage: ask.continuous_usage,
            details: config.prompt_tokens_details,
        }
    }

    /// Writes the role chunk of chat answer `i`, which leaves with the first token.
    pub fn role(&self, out: &mut BytesMut, i: u32) {
        if !self.chat {
            return;
        }
        self.put(out, &self.head);
        self.number(out, "{\"index\":", u64::from(i));
        out.put_slice(
            b",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]",
        );
        self.usage_so_far(out, 0);
        out.put_slice(b",\"prompt_token_ids\":null,\"prompt_text\":null}\n\n");
    }

    /// Writes these tokens of answer `i` as one chunk; the last one has the finish reason and the
    /// hand-off.
    pub fn tokens(
        &self,
        out: &mut BytesMut,
        (i, numbers): (u32, Range<u64>),
        feed: &TokenFeed,
        last: bool,
        handoff: Option<&str>,
    ) {
        self.put(out, &self.head);
        self.number(out, "{\"index\":", u64::from(i));
        self.put(out, if self.chat { ",\"delta\":{\"content\":\"" } else { ",\"text\":\"" });
        for number in numbers.clone() {
            let word = answer_text::token(feed.kv(), i % self.answers_a_prompt, number);
            self.put(out, word);
        }
        self.put(out, if self.chat { "\"}" } else { "\"" });
        self.put(out, ",\"logprobs\":null,\"finish_reason\":");
        if last {
            self.put(out, "\"");
            self.put(out, self.finish);
            self.put(out, "\",\"stop_reason\":null");
        } else {
            self.put(out, if self.chat { "null" } else { "null,\"stop_reason\":null" });
        }
        let ids = match self.chat {
            true => ",\"token_ids\":null}]",
            false => ",\"prompt_token_ids\":null,\"token_ids\":null}]",
        };
        self.put(out, ids);
        self.usage_so_far(out, numbers.end);
        if let Some(handoff) = handoff {
            self.put(out, ",\"kv_transfer_params\":");
            self.put(out, handoff);
        }
        self.put(out, "}\n\n");
    }

    /// Writes the usage chunk and the end of the stream.
    pub fn end(&self, out: &mut BytesMut, completion: u64) {
        if self.include_usage {
            self.put(out, &self.head);
            self.put(out, "],\"usage\":{");
            self.put(out, &self.counts(completion));
            self.put(out, "},");
            self.put(out, FINGERPRINT);
            self.put(out, "}\n\n");
        }
        self.put(out, "data: [DONE]\n\n");
    }

    /// Returns a response that is not streamed.
    pub fn whole(&self, feeds: &[&TokenFeed], handoff: Option<String>) -> Bytes {
        let mut out = String::with_capacity(512 + self.output as usize * 8 * feeds.len());
        out.push_str(&self.whole_head);
        for (i, feed) in feeds.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            self.choice(&mut out, i as u32, feed);
        }
        let details = match feeds.first().map_or(0, |feed| feed.cached()) {
            cached if self.details && cached > 0 => format!("{{\"cached_tokens\":{cached}}}"),
            _ => "null".to_owned(),
        };
        let counts = self.counts(feeds.iter().map(|feed| feed.progress().tokens).sum());
        let chat = match self.chat {
            true => "\"prompt_logprobs\":null,\"prompt_token_ids\":null,\"prompt_text\":null,",
            false => "",
        };
        let handoff = handoff.as_deref().unwrap_or("null");
        out.push_str("],\"service_tier\":null,");
        out.push_str(FINGERPRINT);
        // Writing to a String cannot fail.
        write!(
            out,
            ",\"usage\":{{{counts},\"prompt_tokens_details\":{details},\"completion_tokens_details\":null}},{chat}\"kv_transfer_params\":{handoff},\"ec_transfer_params\":null,\"metrics\":null}}"
        )
        .ok();
        Bytes::from(out)
    }

    fn choice(&self, out: &mut String, i: u32, feed: &TokenFeed) {
        let words =
            (0..self.output).map(|n| answer_text::token(feed.kv(), i % self.answers_a_prompt, n));
        // Writing to a String cannot fail.
        write!(out, "{{\"index\":{i},").ok();
        out.push_str(if self.chat {
            "\"message\":{\"role\":\"assistant\",\"content\":\""
        } else {
            "\"text\":\""
        });
        out.extend(words);
        out.push_str(if self.chat {
            "\",\"refusal\":null,\"annotations\":null,\"audio\":null,\"function_call\":null,\"reasoning\":null}"
        } else {
            "\""
        });
        let more =
            if self.chat { "" } else { "\"prompt_logprobs\":null,\"prompt_token_ids\":null," };
        let finish = self.finish;
        write!(
            out,
            ",\"logprobs\":null,\"finish_reason\":\"{finish}\",\"stop_reason\":null,\"token_ids\":null,{more}\"routed_experts\":null}}"
        )
        .ok();
    }

    fn counts(&self, completion: u64) -> String {
        let prompt = self.prompt_tokens;
        format!(
            "\"prompt_tokens\":{prompt},\"total_tokens\":{},\"completion_tokens\":{completion}",
            prompt + completion
        )
    }

    fn usage_so_far(&self, out: &mut BytesMut, completion: u64) {
        if self.continuous_usage {
            self.put(out, ",\"usage\":{");
            self.put(out, &self.counts(completion));
            self.put(out, ",\"completion_tokens_details\":null}");
        }
    }

    fn put(&self, out: &mut BytesMut, text: &str) {
        out.put_slice(text.as_bytes());
    }

    fn number(&self, out: &mut BytesMut, before: &str, number: u64) {
        self.put(out, before);
        match number {
            0..=9 => out.put_u8(b'0' + number as u8),
            _ => self.put(out, &number.to_string()),
        }
    }
}

/// Returns the hand-off parameters of a prefill: the exact members of 0.32, opaque to a proxy.
pub fn handoff_params(engine: &EmulatedState, request_id: &str, held: &HeldKv) -> String {
    let count = held.tokens.div_ceil(BLOCK_TOKENS as u64);
    let first = engine.next_blocks(count);
    let blocks: Vec<String> = (first..first + count).map(|block| block.to_string()).collect();
    let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
    format!(
        "{{\"do_remote_prefill\":true,\"do_remote_decode\":false,\"remote_block_ids\":[[{}]],\
         \"remote_engine_id\":{},\"remote_request_id\":{},\"remote_host\":{},\"remote_port\":{},\
         \"tp_size\":1,\"dcp_size\":1,\"pp_size\":1,\"remote_num_tokens\":{},\
         \"remote_blocks_expiry_time\":null,\"transfer_mode\":\"{}\",\
         \"remote_prefill_cached_tokens\":{}}}",
        blocks.join(","),
        quoted(&engine.id),
        quoted(request_id),
        quoted(&engine.host),
        engine.address.port(),
        held.tokens,
        engine.config.connector.as_str(),
        held.cached,
    )
}
