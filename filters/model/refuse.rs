//! Structures of `tokenizer.json` that the fast tokenizer supports. At run time there is no second
//! implementation to compare with, so that only structures compared with Hugging Face's
//! `tokenizers` by `family_tests.rs` are accepted. Others are refused by name.

use super::TokenizerError;
use serde_json::Value as Json;

/// Returns the first unsupported structure as an error.
pub(super) fn check(json: &Json) -> Result<(), TokenizerError> {
    let found = normalizer(&json["normalizer"])
        .or_else(|| pre_tokenizer(&json["pre_tokenizer"]))
        .or_else(|| model(&json["model"]))
        .or_else(|| post_processor(&json["post_processor"]));
    found.map_or(Ok(()), |part| Err(TokenizerError::Unsupported(part)))
}

fn normalizer(part: &Json) -> Option<String> {
    match kind(part) {
        "" | "NFC" | "Prepend" => None,
        "Replace" if part["pattern"]["String"].is_string() => None,
        "Sequence" => list(&part["normalizers"]).find_map(normalizer),
        other => Some(format!("normalizer {other}")),
    }
}

fn pre_tokenizer(part: &Json) -> Option<String> {
    match kind(part) {
        "" | "ByteLevel" | "Digits" => None,
        "Split" => split(part),
        "Sequence" => list(&part["pretokenizers"]).find_map(pre_tokenizer),
        other => Some(format!("pre-tokenizer {other}")),
    }
}

fn split(part: &Json) -> Option<String> {
    let behavior = part["behavior"].as_str().unwrap_or_default();
    let known = matches!(behavior, "Isolated" | "MergedWithPrevious");
    let inverted = part["invert"].as_bool() == Some(true);
    (!known || inverted).then(|| format!("pre-tokenizer Split, {behavior}, inverted: {inverted}"))
}

fn model(part: &Json) -> Option<String> {
    // Files from the time of GPT-2 have no type.
    if !matches!(kind(part), "" | "BPE") {
        return Some(format!("model {}", kind(part)));
    }
    let given = |name: &str| part[name].as_str().is_some_and(|text| !text.is_empty());
    let affix = ["continuing_subword_prefix", "end_of_word_suffix"].into_iter().find(|n| given(n));
    if let Some(affix) = affix {
        return Some(format!("BPE with {affix}"));
    }
    // Dropout makes the count random.
    let dropout = part["dropout"].as_f64().is_some_and(|share| share > 0.0);
    dropout.then(|| "BPE with dropout".to_owned())
}

fn post_processor(part: &Json) -> Option<String> {
    match kind(part) {
        "" | "ByteLevel" | "TemplateProcessing" => None,
        "Sequence" => list(&part["processors"]).find_map(post_processor),
        other => Some(format!("post-processor {other}")),
    }
}

/// Returns a part's type; empty if the part is absent.
fn kind(part: &Json) -> &str {
    match part {
        Json::Null => "",
        part => part["type"].as_str().unwrap_or(if part["vocab"].is_null() { "?" } else { "" }),
    }
}

fn list(parts: &Json) -> impl Iterator<Item = &Json> {
    parts.as_array().into_iter().flatten()
}
