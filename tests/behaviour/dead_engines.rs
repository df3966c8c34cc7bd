//! Engines that stop answering: failed probes, abandoned legs and hedges.

use crate::client::{Answer, open, post, until};
use crate::fake::{Act, Fake, chat_answer, chat_chunks, prefill_answer};
use crate::health::{MANY, health, join_all};
use crate::proxy::{DECODE, PREFILL, Proxy, SPLIT, chat, chat_with, plain, vllm};

/// Probe settings that detect a hung engine quickly.
const SOON: &str = "[probe]\ninterval_seconds = 0.05\ntimeout_seconds = 0.3\nfailures_to_eject = 2\n\
                    slow_return_seconds = 0\n";

/// Returns the answers to concurrent chats of `repeats` distinct phrases each. The probes of `hung`
/// hang once one of the requests hangs there.
async fn answers_while_hanging(proxy: &Proxy, hung: &Fake, repeats: usize) -> Vec<Answer> {
    let answers = (0..MANY).map(|n| {
        let body = chat_with(false, &format!("{n} words ").repeat(repeats), "");
        async move { proxy.post("/v1/chat/completions", &body).await }
    });
    let hangs = async {
        until("some of them hang", || hung.hanging() > 0).await;
        hung.hang_probes();
    };
    tokio::join!(join_all(answers), hangs).0
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_retried_away_from_a_dead_engine_without_a_504() {
    let hung = Fake::start([], Act::Silent).await;
    let good = Fake::start([], Act::Json(200, chat_answer("elsewhere"))).await;
    let top = format!("[queue]\ndeadline_seconds = 0.5\n{SOON}");
    let proxy = Proxy::start(&top, &[plain("hung", &hung), plain("good", &good)]).await;
    for answer in answers_while_hanging(&proxy, &hung, 9).await {
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(answer.body.contains("elsewhere"));
    }
    assert_eq!(health(&proxy, "hung").await, "down");
    until("the legs there are given up", || hung.hanging() == 0).await;
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_prefilled_again_if_its_prefill_engine_dies() {
    for decode_hangs in [false, true] {
        let prefill = Fake::start([], Act::Json(200, prefill_answer())).await;
        let hung = Fake::start([], Act::Silent).await;
        let decodes = Fake::start([], Act::Json(200, chat_answer("elsewhere"))).await;
        let hung_more = if decode_hangs { DECODE } else { PREFILL };
        let engines = [
            vllm("hung", hung.url(), hung_more),
            vllm("p", prefill.url(), PREFILL),
            vllm("d", decodes.url(), DECODE),
        ];
        let proxy = Proxy::start(&format!("{SPLIT}{SOON}"), &engines).await;
        let answers = answers_while_hanging(&proxy, &hung, 200).await;
        assert!(answers.iter().all(|answer| answer.status == 200), "{decode_hangs}");
        proxy.settles().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_engine_with_late_probes_still_receives_requests() {
    let fake = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
    let proxy = Proxy::start(SOON, &[plain("a", &fake)]).await;
    fake.hang_probes();
    proxy.shows("a", |backend| backend["health"] == "down").await;
    assert_eq!(proxy.post("/v1/chat/completions", &chat(false)).await.status, 200);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_request_is_hedged() {
    for stream in [true, false] {
        let act =
            if stream { Act::Chunks(chat_chunks(3)) } else { Act::Json(200, chat_answer("x")) };
        // The first chosen engine never answers the request, and is otherwise healthy.
        let fakes = Fake::start_sharing([Act::Silent], act, 2).await;
        let prior = "engine = \"plain\"\n[backends.decode_prior]\nbase_seconds = 0.0001\n\
                     per_stream_seconds = 1e-6\n";
        let engines = [vllm("a", fakes[0].url(), prior), vllm("b", fakes[1].url(), prior)];
        let proxy = Proxy::start("[retry]\nhedge_seconds = 0.3\n", &engines).await;
        let answer = proxy.post("/v1/chat/completions", &chat_with(stream, "hi", "")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        until("the one that was overtaken is given up", || {
            fakes.iter().all(|fake| fake.hanging() == 0)
        })
        .await;
        let sent = [fakes[0].sent(), fakes[1].sent()];
        assert_eq!([sent[0].len(), sent[1].len()], [1, 1], "each received one request");
        assert_ne!(
            sent[0][0].headers["x-request-id"], sent[1][0].headers["x-request-id"],
            "each leg has its own id"
        );
        proxy.settles().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hedge_on_a_dead_engine_is_abandoned() {
    let fakes = Fake::start_sharing([], Act::Silent, 2).await;
    let prior = "engine = \"plain\"\n[backends.decode_prior]\nbase_seconds = 0.0001\n\
                 per_stream_seconds = 1e-6\n";
    let engines = [vllm("a", fakes[0].url(), prior), vllm("b", fakes[1].url(), prior)];
    let proxy = Proxy::start(&format!("[retry]\nhedge_seconds = 0.3\n{SOON}"), &engines).await;
    let body = chat_with(false, "hi", "");
    let dies = async {
        until("one engine has received it", || fakes.iter().any(|fake| fake.hanging() == 1)).await;
        let second = if fakes[0].hanging() == 1 { &fakes[1] } else { &fakes[0] };
        until("the other engine has received it too", || second.hanging() == 1).await;
        second.hang_probes();
        until("the second leg is given up", || second.hanging() == 0).await;
    };
    tokio::select! {
        answer = proxy.post("/v1/chat/completions", &body) => panic!("{} {}", answer.status, answer.body),
        () = dies => {}
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_running_streams_outweigh_failed_probes() {
    let fake = Fake::start([], Act::Chunks(chat_chunks(400))).await;
    let proxy = Proxy::start("[probe]\ninterval_seconds = 0.1\n", &[plain("a", &fake)]).await;
    let mut answer = open(proxy.data, post("/v1/chat/completions", chat(true))).await.unwrap();
    answer.chunk().await.unwrap().unwrap();
    fake.set_answer("/health", 503, "");
    // Many probes, and tokens throughout.
    for _ in 0..200 {
        answer.chunk().await.unwrap().unwrap();
        assert_eq!(health(&proxy, "a").await, "up");
    }
    assert!(fake.count_of("/health") > 2, "the engine was probed meanwhile");
    while answer.chunk().await.is_some() {}
    proxy.shows("a", |backend| backend["health"] == "down").await;
    let reason = proxy.backend("a").await["health_reason"].to_string();
    assert!(reason.contains("503"), "{reason}");
    proxy.settles().await;
}
