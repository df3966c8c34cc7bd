//! The decode engine's part of a hand-off: reserve memory, read the KV, then notify its owner
//! to free it (docs/spec/engine-protocols.md#vllm-nixl). While it waits for memory it extends the
//! lease. A waiting hand-off does not block other requests; a client disconnect releases both
//! memory and lease.

use std::sync::Arc;
use std::time::Duration;
use tidegate_sim::{Sequence, Work};
use tidegate_types::Tokens;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use crate::config::LoadFailurePolicy;
use crate::engine::EmulatedState;
use crate::kv_transfer::{TransferError, TransferMessage, TransferredKv};
use crate::request_body::Remote;
use crate::scheduler::SchedulerCommand;
use crate::stats::EmulatorCounters;
use crate::token_feed::TokenFeed;

/// Polling interval for the KV.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Sequence whose KV is on another engine.
pub struct Fetch {
    /// The reading engine.
    pub engine: Arc<EmulatedState>,
    /// Owner of the KV.
    pub remote: Remote,
    /// Sequence to run after the transfer.
    pub sequence: Sequence,
    /// Prompt tokens whose KV is present already.
    pub local: Tokens,
    /// KV identity of the prompt if it is computed here.
    pub kv: u64,
    /// Destination of the tokens.
    pub feed: Arc<TokenFeed>,
}

/// Granted memory; returned on drop unless it was used.
struct GrantedMemory<'a> {
    engine: &'a EmulatedState,
    tokens: Tokens,
    used: bool,
}

impl Drop for GrantedMemory<'_> {
    fn drop(&mut self) {
        if !self.used {
            self.engine.send_command(SchedulerCommand::Unreserve(self.tokens));
        }
    }
}

/// Fetches each sequence's KV in turn and admits it to the scheduler, until the client has `left`.
/// Answers to one prompt share one hand-off, which the first of them consumes, as in vLLM.
pub async fn run(fetches: Vec<Fetch>, left: oneshot::Receiver<()>) {
    let all = async {
        for fetch in &fetches {
            fetch.transfer_kv().await;
        }
    };
    tokio::select! {
        biased;
        _ = left => {
            // vLLM's rejection notice: the prefill engine frees the KV before its lease ends.
            if let Some(fetch) = fetches.first().filter(|fetch| !fetch.engine.is_killed()) {
                fetch.engine.peers.ask(&fetch.remote, TransferMessage::Release, Tokens::ZERO, Tokens::ZERO)
                    .await
                    .ok();
            }
        }
        () = all => {}
    }
}

impl Fetch {
    async fn transfer_kv(&self) {
        let (engine, prompt) = (&self.engine, self.sequence.prompt);
        let mut reserved = self.reserve().await;
        match self.read().await {
            Ok(answer) => {
                let wanted = prompt - self.local;
                EmulatorCounters::add(&engine.counters.transfers_in, 1);
                EmulatorCounters::add(&engine.counters.tokens_in, wanted.get());
                EmulatorCounters::add(&engine.counters.prompt_cached, self.local.get());
                let bytes = wanted.get() * engine.config.profile.kv_bytes;
                EmulatorCounters::add(&engine.counters.bytes_in, bytes);
                reserved.used = true;
                self.feed.set_kv(answer.kv, answer.cached);
                let sequence = Sequence { work: Work::DecodeOnly, ..self.sequence };
                engine.send_command(SchedulerCommand::Admit {
                    sequence,
                    feed: Arc::clone(&self.feed),
                    reserved: Some(prompt),
                });
            }
            Err(_) => {
                EmulatorCounters::add(&engine.counters.transfers_failed, 1);
                drop(reserved);
                self.handle_failed_transfer();
            }
        }
    }

    /// Handles a failed transfer.
    fn handle_failed_transfer(&self) {
        let engine = &self.engine;
        match engine.config.policy {
            LoadFailurePolicy::Fail => self.feed.fail(),
            LoadFailurePolicy::Recompute => {
                EmulatorCounters::add(&engine.counters.recomputes, 1);
                let computed = self.sequence.prompt - self.local;
                EmulatorCounters::add(&engine.counters.prompt_computed, computed.get());
                EmulatorCounters::add(&engine.counters.prompt_cached, self.local.get());
                self.feed.set_kv(self.kv, self.local.get());
                let sequence =
                    Sequence { work: Work::Colocated, cached: self.local, ..self.sequence };
                let feed = Arc::clone(&self.feed);
                engine.send_command(SchedulerCommand::Admit { sequence, feed, reserved: None });
            }
        }
    }

    /// Waits for memory, and extends the lease on the prefill engine during the wait.
    async fn reserve(&self) -> GrantedMemory<'_> {
        let tokens = self.sequence.prompt;
        let (granted, mut grant) = oneshot::channel();
        self.engine.send_command(SchedulerCommand::Reserve { tokens, granted });
        let period = (self.engine.config.lease / 6.0).to_duration();
        let mut beat = interval_at(Instant::now() + period, period);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                granted = &mut grant => match granted {
                    Ok(()) => return GrantedMemory { engine: &self.engine, tokens, used: false },
                    // The engine was killed; its clients and this task end as well.
                    Err(_) => std::future::pending::<()>().await,
                },
                _ = beat.tick() => {
                    let wanted = tokens - self.local;
                    let asked = self.engine.peers.ask(&self.remote, TransferMessage::Heartbeat, tokens, wanted);
                    // An expired lease is detected by the read.
                    asked.await.ok();
                }
            }
        }
    }

    /// Reads the KV, and retries while a concurrent prefill is unfinished or not begun.
    async fn read_when_ready(
        &self,
        tokens: Tokens,
        wanted: Tokens,
    ) -> Result<TransferredKv, TransferError> {
        let peers = &self.engine.peers;
        let deadline = Instant::now() + self.engine.config.handshake_timeout.to_duration();
        loop {
            let asked = peers.ask(&self.remote, TransferMessage::Read, tokens, wanted).await;
            match asked {
                Err(TransferError::Refused) if self.remote.meets && Instant::now() < deadline => {
                    sleep_until(Instant::now() + POLL_INTERVAL).await;
                }
                asked => return asked,
            }
        }
    }

    async fn read(&self) -> Result<TransferredKv, TransferError> {
        let (engine, tokens) = (&self.engine, self.sequence.prompt);
        let wanted = tokens - self.local;
        // An engine cannot register itself as a remote one: vLLM fails such a hand-off.
        if self.remote.engine_id == engine.id {
            return Err(TransferError::Refused);
        }
        let begin = Instant::now();
        let answer = if wanted > Tokens::ZERO {
            let answer = self.read_when_ready(tokens, wanted).await?;
            sleep_until(begin + engine.config.profile.transfer(wanted).to_duration()).await;
            answer
        } else {
            TransferredKv { kv: self.kv, cached: self.local.get() }
        };
        engine.peers.ask(&self.remote, TransferMessage::Done, tokens, wanted).await?;
        Ok(answer)
    }
}
