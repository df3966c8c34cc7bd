//! Which headers belong to one connection and must not travel further (RFC 9110, 7.6.1), and those
//! that frame a message, which every connection writes anew.

use httparse::Header;

/// Lower case. Not many of them come: their length tells most others apart.
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

/// Is `name`, in any case, the name of a header that stays behind?
pub fn is_hop_by_hop(name: &[u8]) -> bool {
    HOP_BY_HOP.iter().any(|hop| hop.eq_ignore_ascii_case(name))
}

/// Do these headers switch the connection to a websocket, or ask for it? `connection` lists
/// `upgrade`, and `upgrade` lists `websocket`.
pub(crate) fn switches_to_websocket(fields: &[Header<'_>]) -> bool {
    let lists = |name: &str, token: &[u8]| {
        let mut named = fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        named.any(|field| is_listed(field.value, token))
    };
    lists("connection", b"upgrade") && lists("upgrade", b"websocket")
}

/// Does a list as that of `connection` name `token`?
pub fn is_listed(list: &[u8], token: &[u8]) -> bool {
    list.split(|byte| *byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_one_connection_are_known_in_any_case() {
        for name in ["Connection", "TE", "transfer-encoding", "HOST"] {
            assert!(is_hop_by_hop(name.as_bytes()), "{name}");
        }
        for name in ["authorization", "content-type", "t", "x-te", ""] {
            assert!(!is_hop_by_hop(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_list_names_whole_tokens() {
        assert!(is_listed(b"keep-alive, Close", b"close"));
        assert!(!is_listed(b"closed", b"close"));
        assert!(!is_listed(b"", b"close"));
    }
}
