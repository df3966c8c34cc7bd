//! Decoder of KV cache event messages: `[time, [event…], rank?]` in msgpack. An event is a map with
//! its `type` (vLLM 0.33, SGLang 0.5.23) or an array that begins with it (both, before). Unknown
//! members are skipped, and events of an unknown type become [`KvEvent::Other`]. Memory use is
//! bounded by a small multiple of the message's length.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use thiserror::Error;

/// Nesting limit; events nest four levels deep.
const DEPTH_MAX: usize = 16;

/// The bytes are not a KV event message.
#[derive(Debug, Error)]
#[error("malformed KV event message: {0}")]
pub struct KvEventError(#[from] rmp_serde::decode::Error);

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub struct KvBatch {
    /// The engine's wall clock, seconds since 1970.
    pub at: f64,
    /// Events in order.
    pub events: Vec<KvEvent>,
    /// Data-parallel rank, if given.
    pub rank: Option<u32>,
}

/// One change of an engine's prefix cache.
#[derive(Clone, Debug, PartialEq)]
pub enum KvEvent {
    /// Blocks were added.
    Stored(StoredBlocks),
    /// Blocks were removed.
    Removed(RemovedBlocks),
    /// The cache was emptied.
    Cleared,
    /// An event type unknown to this decoder.
    Other,
}

/// The engine's hash of a block and its prefix, reduced to 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EngineHash(pub u64);

/// Consecutive blocks of one prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredBlocks {
    /// One hash per block.
    pub hashes: Vec<EngineHash>,
    /// The preceding block; `None` at the start of a prompt.
    pub parent: Option<EngineHash>,
    /// Tokens of all blocks, concatenated.
    pub tokens: Vec<u32>,
    /// Tokens per block.
    pub block_size: u32,
    /// Name of the LoRA adapter.
    pub lora: Option<Box<str>>,
    /// Storage tier; `None` means "GPU".
    pub medium: Option<Box<str>>,
    /// KV group index of a hybrid model.
    pub group: Option<u32>,
    /// SGLang: the prompt's `cache_salt`.
    pub cache_salt: Option<Box<str>>,
    /// vLLM: further inputs of each block's hash; empty if no block has any.
    pub keys: Vec<BlockKeys>,
}

/// Inputs of a block's hash other than its tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockKeys {
    /// Strings: the adapter's name, the `cache_salt` (first block only).
    pub texts: Vec<Box<str>>,
    /// Other inputs (images, embeddings): the tokens do not determine the block's content.
    pub opaque: bool,
}

/// Removed blocks of any prompts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RemovedBlocks {
    /// Hashes of the blocks.
    pub hashes: Vec<EngineHash>,
    /// Storage tier; `None` means "GPU".
    pub medium: Option<Box<str>>,
    /// KV group index of a hybrid model.
    pub group: Option<u32>,
}

impl KvBatch {
    /// Decodes one message.
    ///
    /// # Errors
    /// [`KvEventError`] if the payload is not msgpack or not of this shape.
    pub fn decode(payload: &[u8]) -> Result<KvBatch, KvEventError> {
        let mut deserializer = rmp_serde::Deserializer::from_read_ref(payload);
        deserializer.set_max_depth(DEPTH_MAX);
        Ok(KvBatch::deserialize(&mut deserializer)?)
    }
}

impl<'de> Deserialize<'de> for KvBatch {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<KvBatch, D::Error> {
        struct BatchVisitor;
        impl<'de> Visitor<'de> for BatchVisitor {
            type Value = KvBatch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("[time, events, rank]")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<KvBatch, A::Error> {
                let missing = || A::Error::custom("a message without events");
                let at = seq.next_element()?.ok_or_else(missing)?;
                let events = seq.next_element()?.ok_or_else(missing)?;
                let rank = seq.next_element::<Option<u32>>()?.flatten();
                skip_rest(&mut seq)?;
                Ok(KvBatch { at, events, rank })
            }
        }
        from.deserialize_seq(BatchVisitor)
    }
}

/// Members of any event type: those of a stored block, the superset.
#[derive(Default)]
struct EventMembers(StoredBlocks);

impl EventMembers {
    fn event(self, kind: &str) -> KvEvent {
        let EventMembers(stored) = self;
        match kind {
            "BlockStored" => KvEvent::Stored(stored),
            "BlockRemoved" => {
                let StoredBlocks { hashes, medium, group, .. } = stored;
                KvEvent::Removed(RemovedBlocks { hashes, medium, group })
            }
            "AllBlocksCleared" => KvEvent::Cleared,
            _ => KvEvent::Other,
        }
    }

    /// Reads a map entry. Unknown members are skipped.
    fn named<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "block_hashes" => self.0.hashes = map.next_value()?,
            "parent_block_hash" => self.0.parent = map.next_value()?,
            "token_ids" => self.0.tokens = map.next_value()?,
            "block_size" => self.0.block_size = map.next_value()?,
            "lora_name" => self.0.lora = map.next_value()?,
            "medium" => self.0.medium = map.next_value()?,
            "group_idx" => self.0.group = map.next_value()?,
            "cache_salt" => self.0.cache_salt = map.next_value()?,
            "extra_keys" => self.0.keys = map.next_value::<ExtraKeys>()?.0,
            _ => {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    /// Reads array elements, in the order that both engines used.
    fn in_order<'de, A: SeqAccess<'de>>(kind: &str, seq: &mut A) -> Result<EventMembers, A::Error> {
        let mut members = StoredBlocks::default();
        match kind {
            "BlockStored" => {
                members.hashes = next(seq)?;
                members.parent = next(seq)?;
                members.tokens = next(seq)?;
                members.block_size = next(seq)?;
                // The adapter's number; newer engines send its name later in the array.
                seq.next_element::<IgnoredAny>()?;
                members.medium = next(seq)?;
                members.lora = next(seq)?;
                members.keys = next::<ExtraKeys, A>(seq)?.0;
                members.group = next(seq)?;
            }
            "BlockRemoved" => {
                members.hashes = next(seq)?;
                members.medium = next(seq)?;
                members.group = next(seq)?;
            }
            _ => {}
        }
        skip_rest(seq)?;
        Ok(EventMembers(members))
    }
}

impl<'de> Deserialize<'de> for KvEvent {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<KvEvent, D::Error> {
        struct EventVisitor;
        impl<'de> Visitor<'de> for EventVisitor {
            type Value = KvEvent;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event, as a map or an array")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<KvEvent, A::Error> {
                let mut kind: Option<Cow<'de, str>> = None;
                let mut members = EventMembers::default();
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    match key.as_ref() {
                        "type" => kind = Some(map.next_value()?),
                        key => members.named(key, &mut map)?,
                    }
                }
                let kind = kind.ok_or_else(|| A::Error::missing_field("type"))?;
                Ok(members.event(&kind))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<KvEvent, A::Error> {
                let kind: Option<Cow<'de, str>> = seq.next_element()?;
                let kind = kind.ok_or_else(|| A::Error::missing_field("type"))?;
                Ok(EventMembers::in_order(&kind, &mut seq)?.event(&kind))
            }
        }
        from.deserialize_any(EventVisitor)
    }
}

impl<'de> Deserialize<'de> for EngineHash {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<EngineHash, D::Error> {
        struct HashVisitor;
        impl Visitor<'_> for HashVisitor {
            type Value = EngineHash;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a hash, as a number or bytes")
            }

            fn visit_u64<E>(self, hash: u64) -> Result<EngineHash, E> {
                Ok(EngineHash(hash))
            }

            /// SGLang's hashes are signed.
            fn visit_i64<E>(self, hash: i64) -> Result<EngineHash, E> {
                Ok(EngineHash(hash as u64))
            }

            /// A full digest; vLLM's numeric hash is its low 64 bits.
            fn visit_bytes<E>(self, digest: &[u8]) -> Result<EngineHash, E> {
                let low = digest.iter().rev().take(8).rev();
                Ok(EngineHash(low.fold(0, |hash, byte| hash << 8 | u64::from(*byte))))
            }
        }
        from.deserialize_any(HashVisitor)
    }
}

/// `extra_keys`: null, or a list with null or a list per block.
#[derive(Default)]
struct ExtraKeys(Vec<BlockKeys>);

impl<'de> Deserialize<'de> for ExtraKeys {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<ExtraKeys, D::Error> {
        let blocks: Option<Vec<Option<BlockKeys>>> = Deserialize::deserialize(from)?;
        let blocks = blocks.unwrap_or_default();
        let any = blocks.iter().any(Option::is_some);
        Ok(ExtraKeys(if any {
            blocks.into_iter().map(Option::unwrap_or_default).collect()
        } else {
            Vec::new()
        }))
    }
}

impl<'de> Deserialize<'de> for BlockKeys {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<BlockKeys, D::Error> {
        struct KeysVisitor;
        impl<'de> Visitor<'de> for KeysVisitor {
            type Value = BlockKeys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a block's extra keys")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<BlockKeys, A::Error> {
                let mut keys = BlockKeys::default();
                while let Some(key) = seq.next_element::<ExtraKey>()? {
                    match key.0 {
                        Some(text) => keys.texts.push(text),
                        None => keys.opaque = true,
                    }
                }
                Ok(keys)
            }
        }
        from.deserialize_seq(KeysVisitor)
    }
}

/// One extra key: a string, or `None` for any other type.
struct ExtraKey(Option<Box<str>>);

impl<'de> Deserialize<'de> for ExtraKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<ExtraKey, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = ExtraKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an extra key")
            }

            fn visit_str<E>(self, text: &str) -> Result<ExtraKey, E> {
                Ok(ExtraKey(Some(text.into())))
            }

            fn visit_bytes<E>(self, _: &[u8]) -> Result<ExtraKey, E> {
                Ok(ExtraKey(None))
            }

            fn visit_u64<E>(self, _: u64) -> Result<ExtraKey, E> {
                Ok(ExtraKey(None))
            }

            fn visit_i64<E>(self, _: i64) -> Result<ExtraKey, E> {
                Ok(ExtraKey(None))
            }

            fn visit_unit<E>(self) -> Result<ExtraKey, E> {
                Ok(ExtraKey(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<ExtraKey, A::Error> {
                skip_rest(&mut seq)?;
                Ok(ExtraKey(None))
            }
        }
        from.deserialize_any(KeyVisitor)
    }
}

/// Returns the next element, or the default if the array ends (older engines).
fn next<'de, T: Deserialize<'de> + Default, A: SeqAccess<'de>>(seq: &mut A) -> Result<T, A::Error> {
    Ok(seq.next_element()?.unwrap_or_default())
}

fn skip_rest<'de, A: SeqAccess<'de>>(seq: &mut A) -> Result<(), A::Error> {
    while seq.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
