//! Changes to a body.

use crate::Scan;
use bytes::Bytes;

#[derive(Clone, Debug, Default)]
pub struct Edits<'a> {
    members: Vec<(&'a str, &'a [u8])>,
}

impl<'a> Edits<'a> {
    pub fn new() -> Edits<'a> {
        Edits::default()
    }
    pub fn set(&mut self, key: &'a str, raw_json: &'a [u8]) -> &mut Edits<'a> {
        self.members.push((key, raw_json));
        self
    }
    pub fn apply(&self, body: &Bytes, scan: &Scan) -> Bytes {
        let _ = scan;
        body.clone()
    }
}
