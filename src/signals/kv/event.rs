//! One message of KV cache events: `[time, [event…], rank?]` in msgpack. An event is a map with its
//! `type` (vLLM 0.33, SGLang 0.5.23) or an array that begins with it (both, before). EventMembers that
//! are not named here are skipped, events of an unknown type are [`KvEvent::Other`], and no message
//! may cost more memory than a small multiple of its own length.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use thiserror::Error;

/// Events nest four levels deep; what nests deeper is no event.
const DEPTH_MAX: usize = 16;

/// A message that is none.
#[derive(Debug, Error)]
#[error("no message of KV events: {0}")]
pub struct KvEventError(#[from] rmp_serde::decode::Error);

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub struct KvBatch {
    /// The engine's wall clock, seconds since 1970.
    pub at: f64,
    /// What happened, in this order.
    pub events: Vec<KvEvent>,
    /// The data-parallel rank it happened on, where the engine says.
    pub rank: Option<u32>,
}

/// One thing that happened in an engine's prefix cache.
#[derive(Clone, Debug, PartialEq)]
pub enum KvEvent {
    /// Blocks were filled and can be found from now on.
    Stored(StoredBlocks),
    /// Blocks can be found no more.
    Removed(RemovedBlocks),
    /// Nothing can be found any more.
    Cleared,
    /// Something newer than this decoder.
    Other,
}

/// An engine's own name for a block and all before it: 64 bits of its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EngineHash(pub u64);

/// Consecutive blocks of one prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredBlocks {
    /// One a block.
    pub hashes: Vec<EngineHash>,
    /// The block before the first; none if that begins a prompt.
    pub parent: Option<EngineHash>,
    /// The blocks' tokens, one after the other.
    pub tokens: Vec<u32>,
    /// Tokens a block.
    pub block_size: u32,
    /// The LoRA adapter they were computed with.
    pub lora: Option<Box<str>>,
    /// Where they are stored: "GPU" if not said.
    pub medium: Option<Box<str>>,
    /// Which of a hybrid model's KV groups.
    pub group: Option<u32>,
    /// SGLang: the prompt's `cache_salt`.
    pub cache_salt: Option<Box<str>>,
    /// vLLM: what else the hash of each block covers; empty if of none.
    pub keys: Vec<BlockKeys>,
}

/// What a block's hash covers beside its tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockKeys {
    /// Strings: the adapter's name, the `cache_salt` (first block only).
    pub texts: Vec<Box<str>>,
    /// Anything else: images, embeddings. The tokens do not say what is in such a block.
    pub opaque: bool,
}

/// Blocks of any prompts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RemovedBlocks {
    /// Which.
    pub hashes: Vec<EngineHash>,
    /// From where: "GPU" if not said.
    pub medium: Option<Box<str>>,
    /// Which of a hybrid model's KV groups.
    pub group: Option<u32>,
}

impl KvBatch {
    /// Decode one message's payload.
    ///
    /// # Errors
    /// [`KvEventError`] if it is not msgpack, or not of this shape.
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

/// Every member of every event, as far as it was there: a stored block's has them all.
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

    /// A map's member. EventMembers of other types than those known stay unread.
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

    /// An array's members, in the order in which both engines had them.
    fn in_order<'de, A: SeqAccess<'de>>(kind: &str, seq: &mut A) -> Result<EventMembers, A::Error> {
        let mut members = StoredBlocks::default();
        match kind {
            "BlockStored" => {
                members.hashes = next(seq)?;
                members.parent = next(seq)?;
                members.tokens = next(seq)?;
                members.block_size = next(seq)?;
                // The adapter's number: its name follows in newer engines.
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

            /// SGLang's are signed.
            fn visit_i64<E>(self, hash: i64) -> Result<EngineHash, E> {
                Ok(EngineHash(hash as u64))
            }

            /// A whole digest: its low 64 bits are what vLLM sends as a number.
            fn visit_bytes<E>(self, digest: &[u8]) -> Result<EngineHash, E> {
                let low = digest.iter().rev().take(8).rev();
                Ok(EngineHash(low.fold(0, |hash, byte| hash << 8 | u64::from(*byte))))
            }
        }
        from.deserialize_any(HashVisitor)
    }
}

/// `extra_keys`: nothing, or for each block nothing or a list.
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

/// One extra key: a string, or something else.
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

/// The next element, or what stands for one that older engines do not send.
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
