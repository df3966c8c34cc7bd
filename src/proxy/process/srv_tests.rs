//! Tests of SRV records: messages as bytes, and a name server on loopback.

use super::*;
use tokio::net::TcpListener;

const NAME: &str = "_http._tcp.vllm.llm.svc.cluster.local";

/// The answer of a name server: two targets whose names are compressed, one of them with an address.
fn answer(id: u16) -> Vec<u8> {
    let question = query(id, NAME, SRV).unwrap().split_off(2);
    let mut message = question;
    // An answer, no error: two answers, one additional record.
    message[2..12].copy_from_slice(&[0x85, 0x80, 0, 1, 0, 2, 0, 0, 0, 1]);
    let zone = HEADER + "_http._tcp.".len();
    let pointer = |at: usize| [0xC0 | (at >> 8) as u8, at as u8];
    let mut hosts = Vec::new();
    for (host, port) in [(b"a", 8000_u16), (b"B", 8001)] {
        message.extend(pointer(HEADER));
        message.extend([0, 33, 0, 1, 0, 0, 0, 5, 0, 10, 0, 1, 0, 2]);
        message.extend(port.to_be_bytes());
        hosts.push(message.len());
        message.extend([1, host[0]]);
        message.extend(pointer(zone));
    }
    message.extend(pointer(hosts[0]));
    message.extend([0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 0, 0, 7]);
    message
}

fn target(host: &str, port: u16) -> ServiceTarget {
    ServiceTarget { host: host.to_owned(), port }
}

#[test]
fn targets_and_addresses_are_read_from_compressed_names() {
    let read = read_answer(9, &answer(9)).unwrap();
    let targets = [
        target("a.vllm.llm.svc.cluster.local", 8000),
        target("b.vllm.llm.svc.cluster.local", 8001),
    ];
    assert_eq!(read.targets, BTreeSet::from(targets));
    let address = ("a.vllm.llm.svc.cluster.local".to_owned(), "10.0.0.7".parse().unwrap());
    assert_eq!(read.addresses, [address]);
}

#[test]
fn an_answer_that_is_cut_off_or_loops_is_refused() {
    let whole = answer(9);
    for length in 0..whole.len() {
        assert!(read_answer(9, &whole[..length]).is_err(), "{length} bytes");
    }
    assert!(read_answer(8, &whole).is_err(), "to another question");
    let mut missing = whole.clone();
    missing[3] |= 3;
    assert_eq!(read_answer(9, &missing), Err(AnswerError::NoName));
    let mut looping = whole;
    looping[HEADER..HEADER + 2].copy_from_slice(&[0xC0, HEADER as u8]);
    assert_eq!(read_answer(9, &looping), Err(AnswerError::Malformed("a name is too long")));
}

#[test]
fn arbitrary_bytes_are_read_or_refused() {
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..20_000 {
        let mut message = answer(9);
        for _ in 0..random.usize(1..6) {
            let at = random.usize(2..message.len());
            message[at] = random.u8(..);
        }
        drop(read_answer(9, &message));
    }
}

#[test]
fn a_name_that_cannot_be_one_is_not_asked_for() {
    assert!(query(1, &format!("{}.example", "a".repeat(64)), SRV).is_none());
    assert!(query(1, "a..b", SRV).is_none());
    assert_eq!(query(1, "a.b.", SRV), query(1, "a.b", SRV));
}

#[test]
fn the_name_servers_of_resolv_conf() {
    let text =
        "# x\nsearch a b\nnameserver 10.0.0.1\nnameserver\t::1\nnameserver x\noptions edns0\n";
    let expected = ["10.0.0.1:53", "[::1]:53"].map(|server| server.parse().unwrap());
    assert_eq!(servers_in(text), expected);
}

/// A name server that answers SRV queries with two targets, the first of them with an address, and
/// queries for the second one's address with this response code.
async fn name_server(code: u8) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let length = stream.read_u16().await.unwrap();
            let mut question = vec![0; usize::from(length)];
            stream.read_exact(&mut question).await.unwrap();
            let id = u16::from_be_bytes([question[0], question[1]]);
            let message = match question == query(id, NAME, SRV).unwrap().split_off(2) {
                true => answer(id),
                false => {
                    question[2..4].copy_from_slice(&[0x81, 0x80 | code]);
                    question
                }
            };
            stream.write_u16(message.len() as u16).await.unwrap();
            stream.write_all(&message).await.unwrap();
        }
    });
    server
}

#[tokio::test]
async fn a_target_without_an_address_is_dropped_and_one_that_cannot_be_looked_up_is_unknown() {
    let (a, b) = (
        target("a.vllm.llm.svc.cluster.local", 8000),
        target("b.vllm.llm.svc.cluster.local", 8001),
    );
    let found = vec![(a, "10.0.0.7".parse().unwrap())];
    for (code, unknown) in [(0, vec![]), (3, vec![]), (2, vec![b.clone()]), (5, vec![b])] {
        let all = resolve(NAME, Some(name_server(code).await)).await.unwrap();
        assert_eq!(all, ServiceTargets { found: found.clone(), unknown }, "response code {code}");
    }
}

#[tokio::test]
async fn a_server_that_fails_is_followed_by_the_next() {
    let servers = [name_server(2).await, name_server(3).await];
    let asked = ask_any("other.example", A, &servers).await;
    assert!(matches!(asked, Err(LookupError::Answer(AnswerError::NoName))), "{asked:?}");
}

#[test]
fn a_record_with_port_0_is_no_target() {
    let mut message = answer(9);
    for port in [8000_u16, 8001] {
        let at = message.windows(2).position(|bytes| bytes == port.to_be_bytes()).unwrap();
        message[at..at + 2].fill(0);
    }
    assert_eq!(read_answer(9, &message).unwrap().targets, BTreeSet::new());
}
