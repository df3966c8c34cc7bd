//! Test encoder for KV events in every encoding that engines use.

use super::event::{BlockKeys, EngineHash, KvBatch, KvEvent, StoredBlocks};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

/// Encoding of an event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum EventForm {
    Map,
    Array,
}

/// Encodes one message.
pub(crate) fn encode(batch: &KvBatch, form: EventForm) -> Vec<u8> {
    let events: Vec<Written> = batch.events.iter().map(|event| Written(event, form)).collect();
    rmp_serde::to_vec(&(batch.at, events, batch.rank)).unwrap()
}

struct Written<'a>(&'a KvEvent, EventForm);

fn numbers(hashes: &[EngineHash]) -> Vec<u64> {
    hashes.iter().map(|hash| hash.0).collect()
}

fn keys(stored: &StoredBlocks) -> Option<Vec<Option<Vec<&str>>>> {
    (!stored.keys.is_empty()).then(|| stored.keys.iter().map(texts).collect())
}

fn texts(keys: &BlockKeys) -> Option<Vec<&str>> {
    let texts: Vec<&str> = keys.texts.iter().map(|text| &**text).collect();
    (!texts.is_empty()).then_some(texts)
}

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.1 {
            EventForm::Map => self.map(to),
            EventForm::Array => self.array(to),
        }
    }
}

impl Written<'_> {
    fn map<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let members = match self.0 {
            KvEvent::Stored(_) => 12,
            KvEvent::Removed(_) => 4,
            KvEvent::Cleared | KvEvent::Other => 1,
        };
        let mut map = to.serialize_map(Some(members))?;
        match self.0 {
            KvEvent::Stored(stored) => {
                map.serialize_entry("type", "BlockStored")?;
                map.serialize_entry("block_hashes", &numbers(&stored.hashes))?;
                map.serialize_entry("parent_block_hash", &stored.parent.map(|hash| hash.0))?;
                map.serialize_entry("token_ids", &stored.tokens)?;
                map.serialize_entry("block_size", &stored.block_size)?;
                map.serialize_entry("lora_id", &None::<u32>)?;
                map.serialize_entry("medium", &stored.medium)?;
                map.serialize_entry("lora_name", &stored.lora)?;
                map.serialize_entry("extra_keys", &keys(stored))?;
                map.serialize_entry("group_idx", &stored.group)?;
                map.serialize_entry("cache_salt", &stored.cache_salt)?;
                map.serialize_entry("session_id", &Some(("any", [1.5])))?;
            }
            KvEvent::Removed(removed) => {
                map.serialize_entry("block_hashes", &numbers(&removed.hashes))?;
                map.serialize_entry("medium", &removed.medium)?;
                map.serialize_entry("group_idx", &removed.group)?;
                map.serialize_entry("type", "BlockRemoved")?;
            }
            KvEvent::Cleared => map.serialize_entry("type", "AllBlocksCleared")?,
            KvEvent::Other => map.serialize_entry("type", "Newer")?,
        }
        map.end()
    }

    fn array<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let members = match self.0 {
            KvEvent::Stored(_) => 11,
            KvEvent::Removed(_) => 4,
            KvEvent::Cleared | KvEvent::Other => 1,
        };
        let mut seq = to.serialize_seq(Some(members))?;
        match self.0 {
            KvEvent::Stored(stored) => {
                seq.serialize_element("BlockStored")?;
                seq.serialize_element(&numbers(&stored.hashes))?;
                seq.serialize_element(&stored.parent.map(|hash| hash.0))?;
                seq.serialize_element(&stored.tokens)?;
                seq.serialize_element(&stored.block_size)?;
                seq.serialize_element(&Some(7))?;
                seq.serialize_element(&stored.medium)?;
                seq.serialize_element(&stored.lora)?;
                seq.serialize_element(&keys(stored))?;
                seq.serialize_element(&stored.group)?;
                seq.serialize_element("something newer")?;
            }
            KvEvent::Removed(removed) => {
                seq.serialize_element("BlockRemoved")?;
                seq.serialize_element(&numbers(&removed.hashes))?;
                seq.serialize_element(&removed.medium)?;
                seq.serialize_element(&removed.group)?;
            }
            KvEvent::Cleared => seq.serialize_element("AllBlocksCleared")?,
            KvEvent::Other => seq.serialize_element("Newer")?,
        }
        seq.end()
    }
}
