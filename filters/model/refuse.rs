//! Which `tokenizer.json` the fast tokenizer cannot stand in for. There is no second implementation
//! at run time to compare with, so structure decides: what is not known to agree with Hugging
//! Face's `tokenizers` (family_tests.rs compares) is refused. Normalizers, pre-tokenizers and
//! models that fastokens does not know it refuses itself.

use super::TokenizerError;
use serde_json::Value as Json;

pub(super) fn check(json: &Json) -> Result<(), TokenizerError> {
    let model = &json["model"];
    if model["dropout"].as_f64().is_some_and(|share| share > 0.0) {
        return Err(TokenizerError::Unsupported("BPE dropout (its counts are random)".to_owned()));
    }
    Ok(())
}
