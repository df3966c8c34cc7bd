//! Fast emulated engines for one test.

use std::net::SocketAddr;
use tidegate_emulator::{EmulatedEngine, EmulatorConfig, RunningEmulator, Stats, start};
use tidegate_sim::Profile;

use crate::client::Answer;

pub struct Emulated {
    running: RunningEmulator,
}

impl Emulated {
    /// Starts engines that serve model `m`.
    pub async fn start(count: u16) -> Emulated {
        Emulated::of(count, EmulatedEngine::Vllm).await
    }

    /// Starts engines of another kind.
    pub async fn of(count: u16, kind: EmulatedEngine) -> Emulated {
        Emulated::with(EmulatorConfig { kind, count, ..EmulatorConfig::default() }).await
    }

    /// Starts engines from other settings, with the fast profile.
    pub async fn with(config: EmulatorConfig) -> Emulated {
        Emulated::with_profile(config, Profile::named("fast").unwrap()).await
    }

    /// Starts engines from other settings, with this profile.
    pub async fn with_profile(config: EmulatorConfig, profile: Profile) -> Emulated {
        let config = EmulatorConfig { profile, model: "m".to_owned(), ..config };
        Emulated { running: start(config).await.unwrap() }
    }

    pub fn len(&self) -> usize {
        self.running.addresses().len()
    }

    pub fn address(&self, engine: usize) -> SocketAddr {
        self.running.addresses()[engine]
    }

    pub fn url(&self, engine: usize) -> String {
        format!("http://{}", self.address(engine))
    }

    pub fn stats(&self, engine: usize) -> Stats {
        self.running.stats(engine)
    }

    pub async fn revive(&mut self, engine: usize) {
        self.running.revive(engine).await.unwrap();
    }

    pub async fn kill(&mut self, engine: usize) {
        self.running.kill(engine).await;
    }

    /// Returns a chat request of about this number of prompt tokens, with a unique prompt.
    pub fn chat(&self, stream: bool, prompt: usize, output: usize) -> String {
        let text: String =
            (0..prompt).map(|i| format!("{:03} ", (i * 7 + prompt) % 1000)).collect();
        format!(
            "{{\"model\":\"m\",\"stream\":{stream},\"max_tokens\":{output},\
             \"messages\":[{{\"role\":\"user\",\"content\":\"{text}\"}}]}}"
        )
    }
}

/// Returns the text of an answer, streamed or not.
pub fn tokens_of(answer: &Answer) -> String {
    let chunks = answer.body.lines().filter_map(|line| line.strip_prefix("data: {"));
    let streamed: String = chunks
        .map(|chunk| serde_json::from_str(&format!("{{{chunk}")).unwrap())
        .filter_map(|chunk: serde_json::Value| {
            chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
        })
        .collect();
    match answer.body.starts_with("data:") {
        true => streamed,
        false => answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned(),
    }
}
