//! Hop-by-hop headers, which are not forwarded (RFC 9110, 7.6.1), and framing headers, which each
//! connection writes itself.

use httparse::Header;

/// Lower case. `eq_ignore_ascii_case` compares lengths first, which excludes most names.
const HOP_BY_HOP: [&[u8]; 12] = [
    b"connection",
    b"content-length",
    b"expect",
    b"host",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
];

/// Returns whether the header `name` (any case) must not be forwarded.
pub fn is_hop_by_hop(name: &[u8]) -> bool {
    HOP_BY_HOP.iter().any(|hop| hop.eq_ignore_ascii_case(name))
}

/// Returns whether the headers request or confirm a websocket: `connection` lists `upgrade` and
/// `upgrade` lists `websocket`.
pub(crate) fn switches_to_websocket(fields: &[Header<'_>]) -> bool {
    let lists = |name: &str, token: &[u8]| {
        let mut named = fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        named.any(|field| is_listed(field.value, token))
    };
    lists("connection", b"upgrade") && lists("upgrade", b"websocket")
}

/// Returns whether a comma-separated list, as in `connection`, contains `token`.
pub fn is_listed(list: &[u8], token: &[u8]) -> bool {
    list.split(|byte| *byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hop_by_hop_headers_are_recognised_in_any_case() {
        for name in ["Connection", "TE", "transfer-encoding", "HOST"] {
            assert!(is_hop_by_hop(name.as_bytes()), "{name}");
        }
        for name in ["authorization", "content-type", "t", "x-te", ""] {
            assert!(!is_hop_by_hop(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn list_members_are_compared_as_whole_tokens() {
        assert!(is_listed(b"keep-alive, Close", b"close"));
        assert!(!is_listed(b"closed", b"close"));
        assert!(!is_listed(b"", b"close"));
    }
}
