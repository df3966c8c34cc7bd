//! The chain: all filters in order. Their logic is in their own modules.

use crate::authenticate::{ApiKeys, authenticate};
use crate::context_limit::check_context;
use crate::handoff::{HandoffTrust, check_handoff, strip_handoff_headers};
use crate::identify::identify;
use crate::limit::{check_body, check_head};
use crate::parse::parse;
use crate::tokenize::{Tokenize, tokenize};
use crate::{
    Accepted, AdmittedHead, ApiKey, Directory, FreshIds, HeadParts, PromptEstimator, RequestParts,
};
use http::HeaderMap;
use tidegate_engine::{ApiError, PathEntry};
use tidegate_types::Targets;

/// Settings of the chain.
#[derive(Clone, Debug)]
pub struct ChainParams {
    /// Accepted API keys; empty: no authentication.
    pub keys: Vec<ApiKey>,
    /// Body limit in bytes.
    pub body_max: usize,
    /// Tokens per block of the prefix index, at least 1. Without a tokenizer a block has four times
    /// as many bytes.
    pub prefix_block: usize,
    /// Policy for hand-off members sent by clients.
    pub handoff: HandoffTrust,
    /// Renders the chat template in a request, as vLLM does with `--trust-request-chat-template`.
    /// Otherwise such a request is estimated, and vLLM refuses it.
    pub trust_request_chat_template: bool,
}

/// The filter chain.
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
    /// Creates a chain.
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

    /// Removes the headers by which an untrusted client could name engines.
    pub fn strip_handoff(&self, headers: &mut HeaderMap) {
        strip_handoff_headers(&self.handoff, headers);
    }

    /// Checks keys, path, method and announced size, before the body is read.
    ///
    /// # Errors
    /// 401, 404, 405, 413, 415.
    pub fn admit_head(
        &self,
        directory: &Directory,
        head: &HeadParts<'_>,
    ) -> Result<AdmittedHead, ApiError> {
        let tenant = authenticate(&self.keys, head.headers)?;
        Ok(AdmittedHead { tenant, path: check_head(self.body_max, directory, head)? })
    }

    /// Runs the filters that read the body of a request whose head was admitted. Takes about 10 µs for
    /// a body of 1 KB and grows with it: bodies above about 64 KB should not be filtered on a reactor
    /// thread.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::{HeaderMap, Method};
    /// use std::sync::Arc;
    /// use tidegate_filters::{
    ///     Calibrations, Chain, ChainParams, Directory, FreshIds, ModelEntry, PromptEstimator, RequestParts,
    /// };
    /// use tidegate_scheduler::cost::ByteEstimator;
    ///
    /// let mut directory = Directory::default();
    /// directory.models.insert(Arc::from("m"), ModelEntry::default());
    /// let chain = Chain::new(ChainParams::default());
    /// let body = Bytes::from(r#"{"model":"m","prompt":"Hello, world"}"#);
    /// let request = RequestParts {
    ///     method: &Method::POST,
    ///     path: "/v1/completions",
    ///     query: "",
    ///     headers: &HeaderMap::new(),
    ///     body: &body,
    /// };
    /// let fresh = FreshIds::from_random(1, 2, 3);
    /// let (bytes, calibrations) = (ByteEstimator::new(), Calibrations::new());
    /// let estimator = PromptEstimator { bytes: &bytes, calibrations: &calibrations };
    /// let head = chain.admit_head(&directory, &request.head())?;
    /// let accepted = chain.admit(&directory, estimator, &head, &request, &fresh)?;
    /// assert_eq!(accepted.model.as_deref(), Some("m"));
    /// // Without a tokenizer the count is an estimate.
    /// assert!(!accepted.prompt.exact && accepted.prompt.tokens.get() > 0);
    /// # Ok::<(), tidegate_engine::ApiError>(())
    /// ```
    ///
    /// # Errors
    /// That of the first filter that refuses: 400, 404, 413, or 503 while no model is known.
    pub fn admit(
        &self,
        directory: &Directory,
        estimator: PromptEstimator<'_>,
        head: &AdmittedHead,
        arrival: &RequestParts<'_>,
        fresh: &FreshIds,
    ) -> Result<Accepted, ApiError> {
        let (request_id, traceparent) = identify(arrival.headers, fresh);
        let PathEntry { endpoint, kinds } = head.path;
        check_body(self.body_max, arrival.body)?;
        let parsed = parse(endpoint, arrival, directory)?;
        check_handoff(&self.handoff, parsed.scan.as_ref(), arrival.body)?;
        let measured = tokenize(&self.tokenize, &parsed, estimator, arrival.body, fresh);
        check_context(&parsed, &measured)?;
        Ok(Accepted {
            request_id,
            traceparent,
            tenant: head.tenant.clone(),
            endpoint,
            kinds,
            alias_at: parsed.alias_at,
            model: parsed.model.map(|(name, _)| name.clone()),
            scan: parsed.scan,
            prompt: measured.counted,
            targets: Targets::default(),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
