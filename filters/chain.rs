//! The chain: the filters in their order, in plain sight. It must never hold a filter's logic.

use crate::authenticate::{ApiKeys, authenticate};
use crate::context_limit::check_context;
use crate::handoff::{HandoffTrust, check_handoff, strip_handoff_headers};
use crate::identify::identify;
use crate::limit::{check_body, check_head};
use crate::parse::parse;
use crate::tokenize::{Tokenize, tokenize};
use crate::{Accepted, ApiKey, Directory, FreshIds, HeadParts, RequestParts};
use http::HeaderMap;
use tidegate_engine::{ApiError, PathEntry};
use tidegate_scheduler::cost::ByteEstimator;

/// What the operator may set.
#[derive(Clone, Debug)]
pub struct ChainParams {
    /// Who may come in; nobody named: everybody.
    pub keys: Vec<ApiKey>,
    /// Largest body, in bytes.
    pub body_max: usize,
    /// Tokens in a block of the prefix index; at least 1. Where there is no tokenizer a block is
    /// four times as many bytes.
    pub prefix_block: usize,
    /// Which hand-offs of clients are let in.
    pub handoff: HandoffTrust,
    /// Render the chat template that a request brings with it, as vLLM does under
    /// `--trust-request-chat-template`. Without it such a request is estimated, and vLLM refuses it.
    pub trust_request_chat_template: bool,
}

/// The chain, built once.
#[derive(Debug)]
pub struct Chain {
    keys: ApiKeys,
    body_max: usize,
    handoff: HandoffTrust,
    tokenize: Tokenize,
}

impl Default for ChainParams {
    fn default() -> ChainParams {
        ChainParams {
            keys: Vec::new(),
            body_max: 32 << 20,
            prefix_block: 64,
            handoff: HandoffTrust::Refuse,
            trust_request_chat_template: false,
        }
    }
}

impl Chain {
    /// A chain with these settings.
    pub fn new(params: ChainParams) -> Chain {
        Chain {
            keys: ApiKeys::new(params.keys),
            body_max: params.body_max,
            handoff: params.handoff,
            tokenize: Tokenize {
                block: params.prefix_block.max(1),
                trust_request_chat_template: params.trust_request_chat_template,
            },
        }
    }

    /// Remove the headers by which an untrusted client would name engines.
    pub fn strip_handoff(&self, headers: &mut HeaderMap) {
        strip_handoff_headers(&self.handoff, headers);
    }

    /// What can be refused before the body is read: keys, path, method, announced size. Optional:
    /// [`Chain::admit`] checks it all again.
    ///
    /// # Errors
    /// 401, 404, 405, 413, 415.
    pub fn admit_head(&self, directory: &Directory, head: &HeadParts<'_>) -> Result<(), ApiError> {
        authenticate(&self.keys, head.headers)?;
        check_head(self.body_max, directory, head)?;
        Ok(())
    }

    /// Every filter, in order. Takes about 10 µs for a body of 1 KB and grows with it: bodies above
    /// some 64 KB do not belong on a reactor thread.
    ///
    /// # Errors
    /// The first filter's that refuses: 400, 401, 404, 405, 413, 415, or 503 while no model is known.
    pub fn admit(
        &self,
        directory: &Directory,
        estimator: &ByteEstimator,
        arrival: &RequestParts<'_>,
        fresh: &FreshIds,
    ) -> Result<Accepted, ApiError> {
        let (request_id, traceparent) = identify(arrival.headers, fresh);
        let tenant = authenticate(&self.keys, arrival.headers)?;
        let PathEntry { endpoint, kinds } = check_head(self.body_max, directory, &arrival.head())?;
        check_body(self.body_max, arrival.body)?;
        let parsed = parse(endpoint, arrival, directory)?;
        check_handoff(&self.handoff, parsed.scan.as_ref(), arrival.body)?;
        let measured = tokenize(&self.tokenize, &parsed, estimator, arrival.body, fresh);
        check_context(&parsed, &measured)?;
        Ok(Accepted {
            request_id,
            traceparent,
            tenant,
            endpoint,
            kinds,
            alias_at: parsed.alias_at,
            model: parsed.model.map(|(name, _)| name.clone()),
            scan: parsed.scan,
            prompt: measured.counted,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
