//! The kind of the line in which a name is: the data of a server-sent event, or other text.

/// Fields whose lines are data of an event; `error` is that of llama.cpp's servers until 2025.
const FIELDS: [&[u8]; 2] = [b"data:", b"error:"];
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Bytes of a line that tell its kind: a byte order mark and the longest field name.
const BEGIN_MAX: usize = 3 + 6;

/// The first bytes of a line.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LineBegin {
    bytes: [u8; BEGIN_MAX],
    length: usize,
}

impl LineBegin {
    /// Passes some bytes: the line of the last one is the current one.
    pub(super) fn pass(&mut self, bytes: &[u8]) {
        let more = match memchr::memrchr2(b'\n', b'\r', bytes) {
            Some(end) => {
                self.length = 0;
                &bytes[end + 1..]
            }
            None => bytes,
        };
        let more = &more[..more.len().min(BEGIN_MAX - self.length)];
        self.bytes[self.length..self.length + more.len()].copy_from_slice(more);
        self.length += more.len();
    }

    /// Returns whether the line is data of an event.
    pub(super) fn is_data(&self) -> bool {
        let begin = &self.bytes[..self.length];
        let begin = begin.strip_prefix(BYTE_ORDER_MARK).unwrap_or(begin);
        FIELDS.iter().any(|field| begin.starts_with(field))
    }
}
