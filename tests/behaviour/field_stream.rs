//! Field cases of answers on their way to the client: what comes before the first token, ends,
//! encodings, and what a client does with its half of the connection.

use crate::field::{RawEngine, ask, body_of, case};
use crate::proxy::Proxy;

#[tokio::test(flavor = "multi_thread")]
async fn comments_before_the_first_token_do_not_hurt() {
    let case = case("10-comments");
    let engine = RawEngine::start(case.answer.clone()).await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    let answer = ask(&proxy, &case.request).await;
    assert_eq!((answer.status, answer.whole), (200, true), "{answer:?}");
    let text = answer.text();
    assert!(text.ends_with(&*String::from_utf8_lossy(&body_of(&case.answer)[3..])), "{text}");
    assert_eq!(engine.received().len(), 1);
    proxy.settles().await;
}
