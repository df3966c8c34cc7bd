//! What a tokenizer returns, in builds with and without one.

/// Reason why a tokenizer cannot be used; the model's prompts are then estimated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// A malformed file.
    #[error("{file}: {problem}")]
    Unreadable {
        /// `tokenizer.json` or `tokenizer_config.json`.
        file: &'static str,
        /// Description of the error.
        problem: String,
    },
    /// The fast tokenizer does not support a structure of a valid `tokenizer.json`.
    #[error("tokenizer.json: {0} is not supported; prompts will be estimated")]
    Unsupported(String),
    /// The build has no tokenizer.
    #[error("this tidegate was built without the feature `tokenizer`; prompts will be estimated")]
    NotBuilt,
}

/// A prompt's token ids.
pub(crate) struct Encoded {
    pub(crate) ids: Vec<u32>,
    /// The engine reads exactly these ids.
    pub(crate) exact: bool,
    /// The template printed the date.
    pub(crate) prints_date: bool,
    /// Number of splits of a long text; each may have added a token.
    pub(crate) splits: u64,
}

/// Seconds since 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnixTime(pub(crate) u64);
