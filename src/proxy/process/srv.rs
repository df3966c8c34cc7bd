//! SRV records (RFC 2782) over DNS on TCP (RFC 7766), which the system's resolver does not offer: one query
//! to a name server of resolv.conf(5), in bounded memory.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::files;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const PORT: u16 = 53;
/// As many name servers as glibc reads.
const SERVERS_MAX: usize = 3;
// Types of records.
const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;
/// Class IN.
const IN: u16 = 1;
/// Length of a message's header, in bytes.
const HEADER: usize = 12;
/// Most labels and pointers of one name: a pointer may lead to another.
const STEPS_MAX: usize = 128;

/// Where a service runs, by one SRV record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceTarget {
    /// Host name.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// What an answer holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct SrvAnswer {
    targets: BTreeSet<ServiceTarget>,
    /// Addresses of hosts that the answer holds beside the targets.
    addresses: Vec<(String, IpAddr)>,
}

/// Returns the targets of `name` with their addresses. `server`: instead of those of resolv.conf.
///
/// # Errors
/// No name server answers, or the name does not exist.
pub async fn resolve(
    name: &str,
    server: Option<SocketAddr>,
) -> io::Result<Vec<(ServiceTarget, IpAddr)>> {
    let servers = server.map_or_else(name_servers, |server| Ok(vec![server]))?;
    let mut answer = Err(io::Error::other("resolv.conf names no server"));
    for server in servers {
        answer = ask(name, server).await;
        if answer.is_ok() {
            break;
        }
    }
    let SrvAnswer { targets, addresses } = answer?;
    let mut found = Vec::new();
    for target in targets {
        let glue = addresses.iter().filter(|(host, _)| *host == target.host).map(|(_, ip)| *ip);
        let mut ips: Vec<IpAddr> = glue.collect();
        if ips.is_empty() {
            let looked_up = tokio::net::lookup_host((target.host.as_str(), target.port)).await?;
            ips = looked_up.map(|address| address.ip()).collect();
        }
        found.extend(ips.into_iter().map(|ip| (target.clone(), ip)));
    }
    Ok(found)
}

async fn ask(name: &str, server: SocketAddr) -> io::Result<SrvAnswer> {
    let id = fastrand::u16(..);
    let query = query(id, name).ok_or_else(|| io::Error::other("the name is too long"))?;
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&query).await?;
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    read_answer(id, &message).map_err(io::Error::other)
}

/// The name servers of resolv.conf.
fn name_servers() -> io::Result<Vec<SocketAddr>> {
    let text = files::text(Path::new(RESOLV_CONF)).map_err(io::Error::other)?;
    Ok(servers_in(&text))
}

fn servers_in(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        Some(SocketAddr::new(address.parse().ok()?, PORT))
    };
    text.lines().filter_map(server).take(SERVERS_MAX).collect()
}

/// Returns a query for the SRV records of a name, with its length before it; `None` if the name cannot be
/// one.
fn query(id: u16, name: &str) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(HEADER + name.len() + 8);
    // One question; recursion is desired.
    for word in [id, 0x0100, 1, 0, 0, 0] {
        message.extend_from_slice(&word.to_be_bytes());
    }
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?;
        message.push(length);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    for word in [SRV, IN] {
        message.extend_from_slice(&word.to_be_bytes());
    }
    let mut whole = u16::try_from(message.len()).ok()?.to_be_bytes().to_vec();
    whole.append(&mut message);
    Some(whole)
}

/// Reads the answer to the query `id`.
fn read_answer(id: u16, message: &[u8]) -> Result<SrvAnswer, &'static str> {
    let mut reader = AnswerReader { message, at: 0 };
    let mut header = [0; 6];
    for word in &mut header {
        *word = reader.word()?;
    }
    let [answered, flags, questions, answers, authorities, additional] = header;
    if answered != id || flags & 0x8000 == 0 {
        return Err("the answer is to another question");
    }
    match flags & 0xF {
        0 => {}
        3 => return Err("the name does not exist"),
        _ => return Err("the name server refuses"),
    }
    for _ in 0..questions {
        reader.name()?;
        reader.skip(4)?;
    }
    let mut answer = SrvAnswer::default();
    let records = u32::from(answers) + u32::from(authorities) + u32::from(additional);
    for _ in 0..records {
        reader.record(&mut answer)?;
    }
    Ok(answer)
}

/// Reads a message from a position.
struct AnswerReader<'m> {
    message: &'m [u8],
    at: usize,
}

const SHORT: &str = "the answer is cut off";

impl AnswerReader<'_> {
    fn word(&mut self) -> Result<u16, &'static str> {
        let bytes = self.message.get(self.at..self.at + 2).ok_or(SHORT)?;
        self.at += 2;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn skip(&mut self, bytes: usize) -> Result<(), &'static str> {
        self.at += bytes;
        (self.at <= self.message.len()).then_some(()).ok_or(SHORT)
    }

    /// A name, in lower case and without the dot at its end; it may be compressed (RFC 1035, 4.1.4).
    fn name(&mut self) -> Result<String, &'static str> {
        let mut name = String::new();
        let (mut at, mut end) = (self.at, None);
        for _ in 0..STEPS_MAX {
            let length = usize::from(*self.message.get(at).ok_or(SHORT)?);
            match length {
                0 => {
                    self.at = end.unwrap_or(at + 1);
                    return Ok(name);
                }
                1..=63 => {
                    let label = self.message.get(at + 1..at + 1 + length).ok_or(SHORT)?;
                    if !name.is_empty() {
                        name.push('.');
                    }
                    name.push_str(&String::from_utf8_lossy(label).to_ascii_lowercase());
                    at += 1 + length;
                }
                192.. => {
                    let low = usize::from(*self.message.get(at + 1).ok_or(SHORT)?);
                    end = end.or(Some(at + 2));
                    at = (length & 63) << 8 | low;
                }
                _ => return Err("a name is malformed"),
            }
        }
        Err("a name is too long")
    }

    fn record(&mut self, answer: &mut SrvAnswer) -> Result<(), &'static str> {
        let owner = self.name()?;
        let (kind, class) = (self.word()?, self.word()?);
        self.skip(4)?;
        let length = usize::from(self.word()?);
        let (data, end) = (self.at, self.at + length);
        let bytes = self.message.get(data..end).ok_or(SHORT)?;
        match (kind, class) {
            (SRV, IN) => {
                // Priority and weight: placement balances by load.
                self.skip(4)?;
                let (port, host) = (self.word()?, self.name()?);
                // The root: the service is not offered.
                if !host.is_empty() {
                    answer.targets.insert(ServiceTarget { host, port });
                }
            }
            (A, IN) => {
                let octets: [u8; 4] = bytes.try_into().map_err(|_| SHORT)?;
                answer.addresses.push((owner, Ipv4Addr::from(octets).into()));
            }
            (AAAA, IN) => {
                let octets: [u8; 16] = bytes.try_into().map_err(|_| SHORT)?;
                answer.addresses.push((owner, Ipv6Addr::from(octets).into()));
            }
            _ => {}
        }
        self.at = end;
        Ok(())
    }
}

#[cfg(test)]
#[path = "srv_tests.rs"]
mod tests;
