//! The fast tokenizer against Hugging Face's `tokenizers`, for one tokenizer structure per file
//! (made by testdata/make_tokenizers.py). The ids are equal, or the file is refused at load.

use super::{ModelTokenizer, TokenizerError};
use crate::chain::tests::testdata;
use proptest::prelude::*;
use serde_json::json;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

/// Families that must load and count alike.
const EXACT: &[&str] = &[
    "deepseek_v3",
    "gemma",
    "gpt2",
    "gpt2_prefix_space",
    "gpt_oss",
    "llama2",
    "llama2_normalized_specials",
    "llama3",
    "mistral_nemo",
    "qwen2",
    "starcoder",
    "stripping",
];

/// Families that must be refused, with part of the reason.
const REFUSED: &[(&str, &str)] = &[("mistral_v3_metaspace", "Metaspace")];

/// Texts on which tokenizers have differed.
const TEXTS: &[&str] = &[
    "",
    " ",
    "a",
    "Hello, world! It's 12345678 o'clock; I'LL go, we've DON'T won't'll.",
    "fn main() {\n\tlet x = vec![1, 2, 3];\r\n    println!(\"{x:?}\");\n}\n",
    "def f(x):\n    return x + 1  # comment\n\n\nclass A:\n\tpass\n",
    "我们今天去北京看长城，天气很好。你好，世界！",
    "今日はとても良い天気ですね。カタカナ、ｶﾀｶﾅ、ひらがな。",
    "안녕하세요 세계. 한국어",
    "한글", // decomposed Hangul
    "e\u{301}a\u{308}\u{323} A\u{30a} \u{1e9b}\u{323} o\u{302}\u{301} q\u{307}\u{323}",
    "\u{212b} \u{2126} ﬁ ﷺ \u{f900} \u{2f800}", // singletons, ligatures, compatibility
    "मनीष नमस्ते स्त्री",
    "مرحبا بالعالم שָׁלוֹם",
    "👨‍👩‍👧‍👦 👩🏽‍💻 🏳️‍🌈 🇨🇭🇯🇵🇨 👍🏽❤️ 1️⃣ ☠",
    "                                                        x",
    "a  b   c    d\t\te\n\n\n\nf \n g\r\n\r\nh\u{a0}\u{a0}i\u{2003}j\u{3000}k",
    "   \n   \t   ",
    "trailing   ",
    "\u{0}\u{1}\u{7f}\u{80}\u{85}\u{200b}\u{feff}\u{fffd}\u{10ffff}\u{e000}",
    "<|begin_of_text|>hi<|eot_id|> <|start_header_id|>user<|end_header_id|>\n\n<|unknown|>",
    "<|im_start|>user\nhi<|im_end|>\n<tool_call>{}</tool_call><|endoftext|>",
    "<s>a</s> <s> b </s><unk> <0x41> ▁x ▁▁ <bos><start_of_turn>user\n<end_of_turn>",
    "<｜begin▁of▁sentence｜><｜User｜>你好<｜Assistant｜>",
    "[INST] hi [/INST]<|start|>system<|message|>x<|end|>",
    "<|user|>  a <mask>  b words word, wording sword word",
    "ALLCAPS camelCase snake_case kebab-case HTTPServer x86_64 v1.2.3 3.14159 1,000,000",
    "//////// ======== ---- ____ .... !!!! ???? \\\\\\ ''' \"\"\" ```rust\n```",
    "١٢٣٤ ①②③ ½ ²³ Ⅷ 一二三 ௧௨",
    "ǅ ǈ ŉ ß ẞ İ ı ſ K",
    "İ's ſ's 'S 'ſ ’s ＇s",
];

/// A family's tokenizer as loaded here and by Hugging Face.
struct TokenizerPair {
    name: &'static str,
    ours: ModelTokenizer,
    theirs: tokenizers::Tokenizer,
}

static PAIRS: LazyLock<Vec<TokenizerPair>> = LazyLock::new(|| {
    let mut pairs: Vec<TokenizerPair> =
        EXACT.iter().map(|name| pair(name, &family(name))).collect();
    pairs.push(pair("tiny_llama", &testdata("tiny_llama.json")));
    pairs
});

fn pair(name: &'static str, json: &[u8]) -> TokenizerPair {
    let ours = ModelTokenizer::load(json, None, None).unwrap();
    TokenizerPair { name, ours, theirs: tokenizers::Tokenizer::from_bytes(json).unwrap() }
}

fn family(name: &str) -> Vec<u8> {
    testdata(&format!("families/{name}.json"))
}

impl TokenizerPair {
    fn check(&self, text: &str) {
        for special in [false, true] {
            let theirs = self.theirs.encode(text, special).unwrap();
            let ours = self.ours.encode_text(text, special).unwrap();
            assert_eq!(ours, theirs.get_ids(), "{}: {text:?}", self.name);
        }
    }
}

#[test]
fn every_family_counts_as_hugging_face_does() {
    for pair in PAIRS.iter() {
        for text in TEXTS {
            pair.check(text);
        }
        pair.check(&TEXTS.concat());
        pair.check(&TEXTS.join("\n"));
    }
}

#[test]
fn long_texts_split_into_pieces_count_alike() {
    let long = TEXTS.join(" ").repeat(40);
    for pair in PAIRS.iter() {
        pair.check(&long);
        pair.check(&" ".repeat(5000));
        pair.check(&"a".repeat(3000));
        pair.check(&"我们".repeat(2000));
    }
}

#[test]
fn unsupported_tokenizers_are_refused_at_load() {
    for (name, word) in REFUSED {
        refused(&serde_json::from_slice(&family(name)).unwrap(), word);
    }
}

#[test]
fn a_structure_outside_of_the_families_is_refused_by_name() {
    let gpt2: serde_json::Value = serde_json::from_slice(&family("gpt2")).unwrap();
    for (pointer, value, reason) in [
        ("normalizer", json!({"type": "Lowercase"}), "normalizer Lowercase"),
        ("normalizer", json!({"type": "NFKC"}), "normalizer NFKC"),
        (
            "normalizer",
            json!({"type": "Replace", "pattern": {"Regex": "a+"}, "content": "a"}),
            "Replace",
        ),
        ("pre_tokenizer", json!({"type": "BertPreTokenizer"}), "BertPreTokenizer"),
        (
            "pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Removed", "invert": false}),
            "Removed",
        ),
        (
            "pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": true}),
            "inverted",
        ),
        ("post_processor", json!({"type": "RobertaProcessing"}), "RobertaProcessing"),
        ("model", json!({"type": "Unigram", "vocab": []}), "model Unigram"),
        ("model", json!({"type": "WordPiece", "vocab": {}}), "model WordPiece"),
    ] {
        let mut changed = gpt2.clone();
        changed[pointer] = value;
        refused(&changed, reason);
    }
    for (flag, value) in [("dropout", json!(0.1)), ("end_of_word_suffix", json!("</w>"))] {
        let mut changed = gpt2.clone();
        changed["model"][flag] = value;
        refused(&changed, flag);
    }
}

fn refused(json: &serde_json::Value, reason: &str) {
    let refused = ModelTokenizer::load(json.to_string().as_bytes(), None, None).unwrap_err();
    assert!(
        matches!(&refused, TokenizerError::Unsupported(why) if why.contains(reason)),
        "{refused}"
    );
}

#[test]
fn every_family_file_is_in_one_of_the_lists() {
    let mut files: Vec<String> =
        fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/families"))
            .unwrap()
            .map(|file| file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
    files.sort();
    let mut listed: Vec<&str> =
        EXACT.iter().chain(REFUSED.iter().map(|(name, _)| name)).copied().collect();
    listed.sort_unstable();
    assert_eq!(files, listed);
}

/// Texts of arbitrary characters, and of characters that tokenizer rules depend on.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => any::<String>(),
        2 => "[ \t\r\n\u{a0}\u{3000}]{1,6}",
        2 => "[a-zA-Z0-9'._/-]{1,12}",
        2 => proptest::sample::select(TEXTS).prop_map(str::to_owned),
        1 => "\\p{M}{1,3}",
        1 => "\\p{N}{1,5}",
        1 => "[一-龥ぁ-ゟァ-ヿ가-힣]{1,6}",
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn arbitrary_text_counts_as_hugging_face_does(text in text()) {
        for pair in PAIRS.iter() {
            pair.check(&text);
        }
    }
}
