//! TLS in both directions: HTTP/1.1 and h2, client certificates, certificate renewal, and
//! validation before any port is opened.

use bytes::Bytes;
use http::Version;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::certificates::Authority;
use crate::client::{post, within};
use crate::fake::{Act, Fake, chat_answer};
use crate::proxy::{Engine, Proxy, chat, config, plain, two_ports};
use crate::websockets::{SWITCHED, Server, handshake};

async fn connect(
    to: SocketAddr,
    config: &Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(to).await?;
    let name = ServerName::try_from("localhost").unwrap();
    within(TlsConnector::from(Arc::clone(config)).connect(name, stream)).await
}

/// Returns the status and protocol of one chat request, or its error.
async fn ask(to: SocketAddr, config: &Arc<ClientConfig>) -> Result<(u16, Version), String> {
    let stream = connect(to, config).await.map_err(|error| error.to_string())?;
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let io = TokioIo::new(stream);
    let text = |error: hyper::Error| error.to_string();
    let request = post("/v1/chat/completions", chat(false));
    let answer = if h2 {
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
        let (mut sender, driver) = within(handshake).await.map_err(text)?;
        tokio::spawn(driver);
        let (mut head, body) = request.into_parts();
        head.uri = "https://localhost/v1/chat/completions".parse().unwrap();
        head.headers.remove("host");
        let request = http::Request::from_parts(head, body);
        within(sender.send_request(request)).await.map_err(text)?
    } else {
        let (mut sender, driver) =
            within(hyper::client::conn::http1::handshake::<_, Full<Bytes>>(io))
                .await
                .map_err(text)?;
        tokio::spawn(driver);
        within(sender.send_request(request)).await.map_err(text)?
    };
    let (status, version) = (answer.status().as_u16(), answer.version());
    within(answer.into_body().collect()).await.map_err(text)?;
    Ok((status, version))
}

/// Returns the presented certificate as DER.
async fn presented(to: SocketAddr, config: &Arc<ClientConfig>) -> Vec<u8> {
    let stream = connect(to, config).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

async fn engine() -> Fake {
    Fake::start([], Act::Json(200, chat_answer("x"))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn http1_and_h2_over_tls() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path(), "ca");
    let leaf = authority.leaf(directory.path(), "server", "gateway");
    let fake = engine().await;
    let top = format!("[server.tls]\n{}", leaf.toml());
    let proxy = Proxy::start(&top, &[plain("a", &fake)]).await;
    for (alpn, version) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["http/1.1"], Version::HTTP_11),
        (&[], Version::HTTP_11),
    ] {
        let client = authority.client(None, alpn);
        assert_eq!(ask(proxy.data, &client).await, Ok((200, version)), "{alpn:?}");
    }
    let stranger = Authority::new(directory.path(), "other").client(None, &[]);
    assert!(ask(proxy.data, &stranger).await.is_err(), "the client trusts another authority");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_certificates_are_required_or_optional() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let (authority, clients) = (Authority::new(at, "ca"), Authority::new(at, "clients"));
    let leaf = authority.leaf(at, "server", "gateway");
    let good = clients.leaf(at, "good", "team-a");
    let foreign = Authority::new(at, "foreign").leaf(at, "bad", "team-b");
    let expired = clients.leaf_until(at, "expired", "team-c", 2001);
    let fake = engine().await;
    for (auth, without) in [("required", false), ("optional", true)] {
        let tls = leaf.toml();
        let file = clients.file.display();
        let top =
            format!("[server.tls]\n{tls}client_ca_file = \"{file}\"\nclient_auth = \"{auth}\"\n");
        let proxy = Proxy::start(&top, &[plain("a", &fake)]).await;
        for alpn in [&["h2"][..], &["http/1.1"]] {
            let client = |leaf| authority.client(leaf, alpn);
            assert!(ask(proxy.data, &client(Some(&good))).await.is_ok(), "{auth} {alpn:?}");
            assert_eq!(ask(proxy.data, &client(None)).await.is_ok(), without, "{auth} {alpn:?}");
            for bad in [&foreign, &expired] {
                let refused = ask(proxy.data, &client(Some(bad))).await;
                assert!(refused.is_err(), "{auth} {alpn:?}: {refused:?}");
            }
        }
    }
}

/// Starts a server behind TLS; returns its address.
pub async fn behind_tls(server: SocketAddr, tls: Arc<ServerConfig>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let tls = TlsAcceptor::from(Arc::clone(&tls));
            tokio::spawn(async move {
                let mut inside = tls.accept(socket).await?;
                let mut server = TcpStream::connect(server).await?;
                tokio::io::copy_bidirectional(&mut inside, &mut server).await
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_are_verified_and_receive_the_client_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let (authority, other) = (Authority::new(at, "ca"), Authority::new(at, "other"));
    let leaf = authority.leaf(at, "engine", "engine");
    let ours = authority.leaf(at, "ours", "gateway");
    let theirs = other.leaf(at, "theirs", "gateway");
    let fake = engine().await;
    let open = behind_tls(fake.address, authority.server(&leaf, false)).await;
    let asking = behind_tls(fake.address, authority.server(&leaf, true)).await;
    let client = |leaf: &crate::certificates::Leaf| {
        let (cert, key) = (leaf.cert.display(), leaf.key.display());
        format!("client_cert = \"{cert}\"\nclient_key = \"{key}\"\n")
    };
    for (engine, ca, more, name, served) in [
        (open, &authority, String::new(), "", true),
        (open, &other, String::new(), "", false),
        (open, &authority, String::new(), "server_name = \"localhost\"", true),
        (open, &authority, String::new(), "server_name = \"elsewhere\"", false),
        (asking, &authority, client(&ours), "", true),
        (asking, &authority, client(&theirs), "", false),
        (asking, &authority, String::new(), "", false),
    ] {
        let url = format!("https://{engine}");
        let top = format!("[upstream]\nca_file = \"{}\"\n{more}", ca.file.display());
        let proxy = Proxy::start_cold(&top, &[Engine { name: "a", url, more: name }]);
        let shown = |backend: &serde_json::Value| {
            let health = backend["health"].as_str().unwrap();
            if served { health == "up" } else { !matches!(health, "up" | "unknown") }
        };
        proxy.shows("a", shown).await;
        if served {
            assert_eq!(proxy.post("/v1/chat/completions", &chat(false)).await.status, 200);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_tunnelled_with_tls_on_both_sides() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let authority = Authority::new(at, "ca");
    let (ours, theirs) = (authority.leaf(at, "ours", "gateway"), authority.leaf(at, "theirs", "e"));
    let server = Server::start().await;
    let engine = behind_tls(server.address, authority.server(&theirs, false)).await;
    let url = format!("https://{engine}");
    let more = "engine = \"plain\"\nmodels = [\"m\"]";
    let ca = authority.file.display();
    let top = format!("[upstream]\nca_file = \"{ca}\"\n[server.tls]\n{}", ours.toml());
    let proxy = Proxy::start(&top, &[Engine { name: "a", url, more }]).await;

    let mut client = connect(proxy.data, &authority.client(None, &["http/1.1"])).await.unwrap();
    let request = handshake("/v1/realtime?model=m", "") + "first";
    within(client.write_all(request.as_bytes())).await.unwrap();
    let mut opened = server.opened().await;
    opened.send(format!("{SWITCHED}answer")).await;
    let mut read = Vec::new();
    while !read.ends_with(b"answer") {
        assert!(within(client.read_buf(&mut read)).await.unwrap() > 0);
    }
    assert!(read.starts_with(b"HTTP/1.1 101 "));
    opened.receives(b"first").await;
    // More than one TLS record in each direction.
    let bytes: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
    within(client.write_all(&bytes)).await.unwrap();
    opened.receives(&bytes).await;
    opened.send(&bytes).await;
    let mut back = vec![0; bytes.len()];
    within(client.read_exact(&mut back)).await.unwrap();
    assert!(back == bytes, "bytes were changed");
    within(client.shutdown()).await.unwrap();
    opened.is_closed().await;
    drop(client);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_in_force_without_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let authority = Authority::new(at, "ca");
    let leaf = authority.leaf(at, "server", "one");
    let fake = engine().await;
    let proxy = Proxy::start(&format!("[server.tls]\n{}", leaf.toml()), &[plain("a", &fake)]).await;
    let client = authority.client(None, &["http/1.1"]);
    let first = presented(proxy.data, &client).await;

    // Half of a renewal: certificate and key do not match, and the old pair stays in use.
    let second = authority.leaf(at, "next", "two");
    std::fs::copy(&second.cert, &leaf.cert).unwrap();
    proxy.reload();
    assert_eq!(presented(proxy.data, &client).await, first);
    assert_eq!(ask(proxy.data, &client).await, Ok((200, Version::HTTP_11)));

    // The other half, without a signal: the proxy checks the files.
    leaf.replace(&second);
    let changed = async {
        while presented(proxy.data, &client).await == first {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    within(changed).await;
    assert_eq!(ask(proxy.data, &client).await, Ok((200, Version::HTTP_11)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_behind_a_symbolic_link_is_reloaded_with_the_link() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let authority = Authority::new(at, "ca");
    for version in ["one", "two"] {
        std::fs::create_dir(at.join(version)).unwrap();
        authority.leaf(&at.join(version), "server", version);
    }
    let point = |to: &str| {
        std::os::unix::fs::symlink(at.join(to), at.join("new")).unwrap();
        std::fs::rename(at.join("new"), at.join("data")).unwrap();
    };
    point("one");
    let data = at.join("data");
    let tls = format!(
        "[server.tls]\ncert = \"{0}/server.crt\"\nkey = \"{0}/server.key\"\n",
        data.display()
    );
    let fake = engine().await;
    let proxy = Proxy::start(&tls, &[plain("a", &fake)]).await;
    let client = authority.client(None, &["http/1.1"]);
    let first = presented(proxy.data, &client).await;
    point("two");
    let changed = async {
        while presented(proxy.data, &client).await == first {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    within(changed).await;
}

/// Returns the output of `check` and `serve` for this configuration.
fn refusals(text: &str) -> [String; 2] {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tidegate.toml");
    std::fs::write(&path, text).unwrap();
    ["check", "serve"].map(|command| {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
        let output = program.args([command, "--config"]).arg(&path).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{command}\n{text}");
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_errors_are_reported_by_check_and_before_listening() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let authority = Authority::new(at, "ca");
    let (one, two) = (authority.leaf(at, "one", "one"), authority.leaf(at, "two", "two"));
    let file = |name: &str, text: &str| {
        std::fs::write(at.join(name), text).unwrap();
        at.join(name)
    };
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let broken = file("broken.pem", broken);
    let empty = file("empty.pem", "");
    let missing = at.join("missing.pem");
    let fake = engine().await;
    let tls = |cert: &Path, key: &Path, more: &str| {
        let (cert, key) = (cert.display(), key.display());
        format!("[server.tls]\ncert = \"{cert}\"\nkey = \"{key}\"\n{more}\n")
    };
    let authorities = |path: &Path| format!("client_ca_file = \"{}\"", path.display());
    for (top, word) in [
        (tls(&one.cert, &two.key, ""), "cannot be used together"),
        (tls(&missing, &one.key, ""), "missing.pem"),
        (tls(&one.cert, &missing, ""), "missing.pem"),
        (tls(&empty, &one.key, ""), "holds no certificate"),
        (tls(&one.cert, &empty, ""), "empty.pem"),
        (tls(&broken, &one.key, ""), "broken.pem"),
        (tls(&one.key, &one.cert, ""), "one.key"),
        (tls(&one.cert, &one.key, &authorities(&empty)), "empty.pem"),
        (tls(&one.cert, &one.key, &authorities(&broken)), "broken.pem"),
    ] {
        let (data, admin) = two_ports();
        let text = config(data, admin, &top, &[plain("a", &fake)]);
        let refusals = tokio::task::block_in_place(|| refusals(&text));
        for refusal in &refusals {
            assert!(refusal.contains("server.tls") && refusal.contains(word), "{word}: {refusal}");
        }
    }
}
