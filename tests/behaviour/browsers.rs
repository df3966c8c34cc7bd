//! CORS: preflight requests, and the origins that may read an answer.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;

use crate::client::{Answer, post, send};
use crate::fake::{Act, Fake, chat_answer, chat_chunks};
use crate::proxy::{Proxy, chat, plain};

const PATH: &str = "/v1/chat/completions";
const KEYS: &str = "[[auth.keys]]\nname = \"team\"\nkey = \"secret-key-of-a-team\"\n";

async fn preflight(proxy: &Proxy, origin: &str) -> Answer {
    let request = Request::builder()
        .method(Method::OPTIONS)
        .uri(PATH)
        .header("host", "t")
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type");
    send(proxy.data, request.body(Full::<Bytes>::default()).unwrap()).await
}

async fn get_with_origin(proxy: &Proxy, origin: &str, key: bool, stream: bool) -> Answer {
    let mut request = post(PATH, chat(stream));
    request.headers_mut().insert("origin", origin.parse().unwrap());
    if key {
        let key = "Bearer secret-key-of-a-team".parse().unwrap();
        request.headers_mut().insert("authorization", key);
    }
    send(proxy.data, request).await
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    let mut values = answer.headers.get_all(name).iter();
    let first = values.next().map(|value| value.to_str().unwrap());
    assert!(values.next().is_none(), "{name} twice: {:?}", answer.headers);
    first
}

const ALLOWED: &str = "access-control-allow-origin";

#[tokio::test(flavor = "multi_thread")]
async fn allowed_origins_may_read_answers_errors_and_streams() {
    let script = [Act::Json(200, chat_answer("hello")), Act::Chunks(chat_chunks(2))];
    let fake = Fake::start(script, Act::Json(422, "{}".to_owned())).await;
    let cors =
        "[server.cors]\nallow_origins = [\"https://chat.example\"]\nallow_credentials = true\n";
    let proxy = Proxy::start(&format!("{cors}{KEYS}"), &[plain("a", &fake)]).await;
    let answered = preflight(&proxy, "https://chat.example").await;
    assert_eq!((answered.status.as_u16(), &*answered.body), (204, ""));
    assert_eq!(header(&answered, ALLOWED), Some("https://chat.example"));
    assert_eq!(header(&answered, "access-control-allow-methods"), Some("GET, POST, DELETE"));
    let headers = header(&answered, "access-control-allow-headers");
    assert_eq!(headers, Some("authorization,content-type"));
    assert_eq!(header(&answered, "access-control-max-age"), Some("600"));
    assert_eq!(header(&answered, "access-control-allow-credentials"), Some("true"));
    for (key, stream, status) in
        [(true, false, 200), (true, true, 200), (true, false, 422), (false, false, 401)]
    {
        let answer = get_with_origin(&proxy, "https://chat.example", key, stream).await;
        assert_eq!(answer.status, status);
        assert_eq!(header(&answer, ALLOWED), Some("https://chat.example"), "{status}");
        assert!(header(&answer, "access-control-expose-headers").unwrap().contains("x-request-id"));
        assert_eq!(header(&answer, "vary"), Some("origin"));
    }
    for answer in [
        preflight(&proxy, "https://other.example").await,
        get_with_origin(&proxy, "https://other.example", true, false).await,
    ] {
        assert_eq!(header(&answer, ALLOWED), None);
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_origins_may_be_allowed_and_by_default_none_is() {
    let fake = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
    let any = Proxy::start("[server.cors]\nallow_origins = [\"*\"]\n", &[plain("a", &fake)]).await;
    assert_eq!(header(&preflight(&any, "https://a.example").await, ALLOWED), Some("*"));
    assert_eq!(header(&get_with_origin(&any, "null", false, false).await, ALLOWED), Some("*"));
    let none = Proxy::start("", &[plain("a", &fake)]).await;
    assert_eq!(preflight(&none, "https://a.example").await.status, 405);
    assert_eq!(
        header(&get_with_origin(&none, "https://a.example", false, false).await, ALLOWED),
        None
    );
}
