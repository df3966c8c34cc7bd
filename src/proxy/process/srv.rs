//! SRV records (RFC 2782) over DNS on TCP (RFC 7766), which the system's resolver does not offer: one query
//! to a name server of resolv.conf(5), in bounded memory.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::process::files;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const PORT: u16 = 53;
/// As many name servers as glibc reads.
const SERVERS_MAX: usize = 3;
/// Longest wait for one name server: a third of the time for the whole resolution, so that a server
/// without an answer does not use it up.
const SERVER_MAX: Duration = Duration::from_secs(3);
/// Longest wait for the addresses of one target: one for the system's resolver, one for a name server.
const TARGET_MAX: Duration = Duration::from_secs(6);
/// Most targets that are looked up at once; each occupies a thread of the blocking pool.
const LOOKUPS_MAX: usize = 32;
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

/// The targets of a service.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ServiceTargets {
    /// Addresses of the targets.
    pub found: Vec<(ServiceTarget, IpAddr)>,
    /// Targets whose addresses are unknown, because the name server or the network failed. Targets
    /// without an address are in neither list.
    pub unknown: Vec<ServiceTarget>,
}

/// What an answer holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct DnsAnswer {
    targets: BTreeSet<ServiceTarget>,
    /// Addresses of hosts, which an answer may hold beside the targets.
    addresses: Vec<(String, IpAddr)>,
}

/// Why a name server's answer holds nothing.
#[derive(Debug, Error, PartialEq, Eq)]
enum AnswerError {
    #[error("the name does not exist")]
    NoName,
    #[error("the name server refuses: response code {0}")]
    Refused(u16),
    #[error("{0}")]
    Malformed(&'static str),
}

/// Why a name server cannot be asked.
#[derive(Debug, Error)]
enum LookupError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Answer(#[from] AnswerError),
    #[error("the name is too long")]
    Name,
    #[error("no answer within {} s", SERVER_MAX.as_secs())]
    Late,
}

/// Returns the targets of `name` with their addresses. `server`: instead of those of resolv.conf.
///
/// # Errors
/// No name server answers, or the name does not exist.
pub async fn resolve(name: &str, server: Option<SocketAddr>) -> io::Result<ServiceTargets> {
    let servers = server.map_or_else(name_servers, |server| Ok(vec![server]))?;
    let DnsAnswer { targets, addresses } =
        ask_any(name, SRV, &servers).await.map_err(io::Error::other)?;
    let servers = Arc::new(servers);
    let free = Arc::new(Semaphore::new(LOOKUPS_MAX));
    let mut lookups = JoinSet::new();
    let mut all = ServiceTargets::default();
    for target in targets {
        let glue = addresses.iter().filter(|(host, _)| *host == target.host).map(|(_, ip)| *ip);
        let ips: Vec<IpAddr> = glue.collect();
        if !ips.is_empty() {
            all.found.extend(ips.into_iter().map(|ip| (target.clone(), ip)));
            continue;
        }
        let (servers, free) = (Arc::clone(&servers), Arc::clone(&free));
        lookups.spawn(async move {
            let _free = free.acquire().await;
            let looked_up = timeout(TARGET_MAX, look_up(&target, &servers)).await;
            (target, looked_up.unwrap_or(None))
        });
    }
    for (target, ips) in lookups.join_all().await {
        match ips {
            Some(ips) => all.found.extend(ips.into_iter().map(|ip| (target.clone(), ip))),
            None => all.unknown.push(target),
        }
    }
    Ok(all)
}

/// Returns the addresses of a target; `None` if they are unknown.
async fn look_up(target: &ServiceTarget, servers: &[SocketAddr]) -> Option<Vec<IpAddr>> {
    let system = tokio::net::lookup_host((target.host.as_str(), target.port));
    if let Ok(Ok(found)) = timeout(SERVER_MAX, system).await {
        return Some(found.map(|address| address.ip()).collect());
    }
    // The system's resolver does not tell a missing name from a failure of its servers.
    let (mut known, mut failed) = (Vec::new(), false);
    for kind in [A, AAAA] {
        match ask_any(&target.host, kind, servers).await {
            Ok(answer) => known.extend(answer.addresses.into_iter().map(|(_, ip)| ip)),
            Err(LookupError::Answer(AnswerError::NoName)) => {}
            Err(_) => failed = true,
        }
    }
    (!failed || !known.is_empty()).then_some(known)
}

/// Asks the servers in order, until one knows the name or that it does not exist.
async fn ask_any(name: &str, kind: u16, servers: &[SocketAddr]) -> Result<DnsAnswer, LookupError> {
    let mut answer = Err(LookupError::Io(io::Error::other("resolv.conf names no server")));
    for server in servers {
        let asked = timeout(SERVER_MAX, ask(name, kind, *server)).await;
        answer = asked.unwrap_or(Err(LookupError::Late));
        if matches!(answer, Ok(_) | Err(LookupError::Answer(AnswerError::NoName))) {
            break;
        }
    }
    answer
}

async fn ask(name: &str, kind: u16, server: SocketAddr) -> Result<DnsAnswer, LookupError> {
    let id = fastrand::u16(..);
    let query = query(id, name, kind).ok_or(LookupError::Name)?;
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&query).await?;
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(read_answer(id, &message)?)
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

/// Returns a query for the records of this type, with its length before it; `None` if the name cannot
/// be one.
fn query(id: u16, name: &str, kind: u16) -> Option<Vec<u8>> {
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
    for word in [kind, IN] {
        message.extend_from_slice(&word.to_be_bytes());
    }
    let mut whole = u16::try_from(message.len()).ok()?.to_be_bytes().to_vec();
    whole.append(&mut message);
    Some(whole)
}

/// Reads the answer to the query `id`.
fn read_answer(id: u16, message: &[u8]) -> Result<DnsAnswer, AnswerError> {
    let mut reader = AnswerReader { message, at: 0 };
    let mut header = [0; 6];
    for word in &mut header {
        *word = reader.word().map_err(AnswerError::Malformed)?;
    }
    let [answered, flags, ..] = header;
    if answered != id || flags & 0x8000 == 0 {
        return Err(AnswerError::Malformed("the answer is to another question"));
    }
    match flags & 0xF {
        0 => reader.records(header).map_err(AnswerError::Malformed),
        3 => Err(AnswerError::NoName),
        code => Err(AnswerError::Refused(code)),
    }
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

    /// The records of all sections after this header.
    fn records(&mut self, header: [u16; 6]) -> Result<DnsAnswer, &'static str> {
        let [_, _, questions, answers, authorities, additional] = header;
        for _ in 0..questions {
            self.name()?;
            self.skip(4)?;
        }
        let mut answer = DnsAnswer::default();
        let records = u32::from(answers) + u32::from(authorities) + u32::from(additional);
        for _ in 0..records {
            self.record(&mut answer)?;
        }
        Ok(answer)
    }

    fn record(&mut self, answer: &mut DnsAnswer) -> Result<(), &'static str> {
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
                // The root: the service is not offered. Port 0 is none.
                if !host.is_empty() && port != 0 {
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
