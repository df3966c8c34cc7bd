//! Both encodings decode alike; recorded vLLM bytes decode; arbitrary bytes are refused or decoded.

use super::*;
use crate::kv::encode::{EventForm, encode};
use proptest::prelude::*;

/// Encoded by vLLM 0.33.0's own structs: three events of rank 0.
const GOLDEN: &str = "93cb3ff80000000000009388a474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657392c4040101010107b1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f696473920102aa626c6f636b5f73697a6502a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e616d65c083a474797065ac426c6f636b52656d6f766564ac626c6f636b5f6861736865739107a66d656469756da347505581a474797065b0416c6c426c6f636b73436c656172656400";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn recorded_vllm_bytes_are_decoded() {
    let batch = KvBatch::decode(&bytes(GOLDEN)).unwrap();
    assert_eq!((batch.at, batch.rank), (1.5, Some(0)));
    let gpu = || Some("GPU".into());
    let stored = StoredBlocks {
        hashes: vec![EngineHash(0x0101_0101), EngineHash(7)],
        tokens: vec![1, 2],
        block_size: 2,
        medium: gpu(),
        ..StoredBlocks::default()
    };
    let removed = RemovedBlocks { hashes: vec![EngineHash(7)], medium: gpu(), group: None };
    assert_eq!(
        batch.events,
        [KvEvent::Stored(stored), KvEvent::Removed(removed), KvEvent::Cleared]
    );
}

#[test]
fn a_hash_decodes_alike_from_a_number_and_a_digest() {
    let digest: Vec<u8> = (1..=32).collect();
    let low = u64::from_be_bytes(digest[24..].try_into().unwrap());
    // An array of a bin 8 of 32 bytes, a u64 and an i64.
    let mut written = vec![0x93, 0xc4, 32];
    written.extend(&digest);
    written.extend([&[0xcf][..], &low.to_be_bytes(), &[0xd3], &(-2_i64).to_be_bytes()].concat());
    let hashes: Vec<EngineHash> = rmp_serde::from_slice(&written).unwrap();
    assert_eq!(hashes, [EngineHash(low), EngineHash(low), EngineHash(u64::MAX - 1)]);
}

#[test]
fn extra_keys_distinguish_salts_from_images() {
    // [ts, [{type, extra_keys: [["abc"], null, [["image", 4]]]}]]
    let value = (
        2.0,
        [std::collections::BTreeMap::from([
            ("type", rmp_value("BlockStored")),
            ("extra_keys", rmp_value((("abc",), (), ((("image", 4),),)))),
        ])],
    );
    let batch = KvBatch::decode(&rmp_serde::to_vec(&value).unwrap()).unwrap();
    let KvEvent::Stored(stored) = &batch.events[0] else { panic!("{batch:?}") };
    let salt = BlockKeys { texts: vec!["abc".into()], opaque: false };
    let image = BlockKeys { texts: Vec::new(), opaque: true };
    assert_eq!(stored.keys, [salt, BlockKeys::default(), image]);
}

/// Converts through JSON, for a value of mixed types.
fn rmp_value(value: impl serde::Serialize) -> serde_json::Value {
    serde_json::to_value(value).unwrap()
}

#[test]
fn malformed_messages_are_refused() {
    for hex in ["", "c0", "90", "91cb3ff8000000000000", "92c09180", "92c09181a474797065c0", "dd"] {
        assert!(KvBatch::decode(&bytes(hex)).is_err(), "{hex}");
    }
    // A wrong length does not cause an allocation.
    assert!(KvBatch::decode(&bytes("93cb3ff8000000000000ddffffffff")).is_err());
    // Deep nesting is refused.
    let mut deep = bytes("92cb3ff8000000000000");
    deep.extend(vec![0x91; 1 << 20]);
    assert!(KvBatch::decode(&deep).is_err());
}

fn name() -> impl Strategy<Value = Option<Box<str>>> {
    prop::option::of(prop::sample::select(vec!["GPU", "CPU", "a"]).prop_map(Box::from))
}

fn hashes() -> impl Strategy<Value = Vec<EngineHash>> {
    prop::collection::vec(any::<u64>().prop_map(EngineHash), 0..4)
}

prop_compose! {
    fn stored()(
        hashes in hashes(), parent in prop::option::of(any::<u64>().prop_map(EngineHash)),
        tokens in prop::collection::vec(any::<u32>(), 0..9), block_size in 0..5_u32,
        medium in name(), lora in name(), group in prop::option::of(0..3_u32),
        texts in prop::option::of("[a-z]{1,3}"),
    ) -> StoredBlocks {
        let keys = texts.map(|text| vec![
            BlockKeys { texts: vec![text.into()], opaque: false }, BlockKeys::default(),
        ]);
        let keys = keys.unwrap_or_default();
        StoredBlocks { hashes, parent, tokens, block_size, lora, medium, group, cache_salt: None, keys }
    }
}

fn event() -> impl Strategy<Value = KvEvent> {
    let removed =
        (hashes(), name(), prop::option::of(0..3_u32)).prop_map(|(hashes, medium, group)| {
            KvEvent::Removed(RemovedBlocks { hashes, medium, group })
        });
    prop_oneof![
        stored().prop_map(KvEvent::Stored),
        removed,
        Just(KvEvent::Cleared),
        Just(KvEvent::Other)
    ]
}

proptest! {
    #[test]
    fn maps_and_arrays_decode_alike(
        events in prop::collection::vec(event(), 0..5), at in 0.0..1e9_f64,
        rank in prop::option::of(0..9_u32),
    ) {
        let batch = KvBatch { at, events, rank };
        for form in [EventForm::Map, EventForm::Array] {
            let read = KvBatch::decode(&encode(&batch, form)).unwrap();
            prop_assert_eq!(&read, &batch, "{:?}", form);
        }
    }

    #[test]
    fn a_truncated_message_is_refused(events in prop::collection::vec(event(), 1..4), cut: prop::sample::Index) {
        let whole = encode(&KvBatch { at: 1.0, events, rank: Some(0) }, EventForm::Map);
        prop_assert!(KvBatch::decode(&whole[..cut.index(whole.len())]).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(batch) = KvBatch::decode(&bytes) {
            prop_assert!(batch.events.len() <= bytes.len());
        }
    }
}
