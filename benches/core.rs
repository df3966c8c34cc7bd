//! Micro-benchmarks of the request path: parsing, token counting, tokenizing, placement, planning.
#![allow(clippy::unwrap_used, reason = "a measuring tool: it fails loudly")]

use arc_swap::ArcSwap;
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::Arc;
use tidegate_engine::{Endpoint, Seen, SseReader, UsageFilter, UsageRequest, scan};
use tidegate_filters::ModelTokenizer;
use tidegate_proxy::fleet::{PoolEntry, RoutingTable, TableEntry};
use tidegate_scheduler::cost::{DecodeModel, PrefillModel, TransferModel};
use tidegate_scheduler::learn::{CostRegressions, Estimates, Priors};
use tidegate_scheduler::placement::{
    BackendLoad, Disaggregation, Excluded, FleetLoads, Params, PrefillRequest, considered, place,
};
use tidegate_scheduler::planner::{BackendObservation, GroupDemand, Observation, State, plan};
use tidegate_types::{
    BackendId, GroupId, Moment, Plan, PoolId, RequestId, Role, RoleCapability, RoleSet, Seconds,
    Targets, Tokens,
};

const FLEETS: [u16; 3] = [8, 64, 1000];

fn chat(bytes: usize) -> Bytes {
    let text = "Tell me about the tide at the gate. ".repeat(bytes / 36);
    Bytes::from(format!(
        "{{\"model\":\"m\",\"max_tokens\":64,\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"{text}\"}}]}}"
    ))
}

fn parsing(c: &mut Criterion) {
    let body = chat(1024);
    c.bench_function("scan, 1 KB chat", |b| {
        b.iter(|| scan(Endpoint::ChatCompletions, black_box(&body)));
    });
    let chunk = "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" tide\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
    let mut reader = SseReader::new(Endpoint::ChatCompletions);
    c.bench_function("one SSE chunk", |b| b.iter(|| reader.feed(black_box(chunk.as_bytes()))));
    let counted = chunk.replace(
        "}]}\n\n",
        "}],\"usage\":{\"prompt_tokens\":900,\"total_tokens\":912,\"completion_tokens\":12}}\n\n",
    );
    let counted = Bytes::from(counted);
    let mut filter = UsageFilter::new(UsageRequest::Never, None);
    c.bench_function("one SSE chunk with a usage", |b| {
        b.iter(|| reader.feed(black_box(&counted)));
    });
    reader.count_exactly(&Seen::default());
    c.bench_function("one SSE chunk, counted exactly", |b| {
        b.iter(|| reader.feed(black_box(&counted)));
    });
    c.bench_function("a usage cut out of one SSE chunk", |b| {
        b.iter(|| filter.pass(black_box(counted.clone())));
    });
}

fn tokenizing(c: &mut Criterion) {
    let tokenizer = include_bytes!("../filters/testdata/tiny_llama.json");
    let config = include_bytes!("../filters/testdata/tiny_llama_config.json");
    let model = ModelTokenizer::load(tokenizer, Some(config), None).unwrap();
    let again = ModelTokenizer::load(tokenizer, Some(config), None).unwrap().with_cache(64 << 20);
    for (name, model) in [("", &model), (" seen before", &again)] {
        for size in [1 << 10, 10 << 10, 100 << 10] {
            let body = chat(size);
            let scan = scan(Endpoint::ChatCompletions, &body).unwrap();
            let name = format!("render and tokenize a chat{name}");
            c.bench_with_input(BenchmarkId::new(name, size), &size, |b, _| {
                b.iter(|| model.encode_chat(&scan, black_box(&body), 0));
            });
        }
    }
}

struct Plain(Vec<BackendId>);

impl FleetLoads for Plain {
    fn pool(&self, _pool: PoolId) -> &[BackendId] {
        &self.0
    }

    fn load(&self, id: BackendId) -> BackendLoad {
        let busy = f64::from(id.0 % 7) * 0.02;
        BackendLoad {
            role: if id.0.is_multiple_of(2) { Role::Prefill } else { Role::Decode },
            prefill: Seconds(busy),
            prefill_tokens: Tokens(u64::from(id.0 % 7) * 400),
            streams: u32::from(id.0 % 90),
            awaiting_first_token: 0,
            streams_max: 256,
            kv: Tokens(u64::from(id.0 % 90) * 900),
            kv_capacity: Tokens(430_000),
            slack: Seconds(0.01),
            ..BackendLoad::idle(Role::Mixed)
        }
    }

    fn cached(&self, _job: &PrefillRequest, _backend: BackendId) -> Tokens {
        Tokens::ZERO
    }
}

fn placing(c: &mut Criterion) {
    for count in FLEETS {
        let fleet = Plain((0..count).map(BackendId).collect());
        let now = Moment(1_000_000_000);
        let job = PrefillRequest {
            id: RequestId(7),
            pool: PoolId(0),
            prompt: Tokens(2000),
            expected_output: Tokens(200),
            arrived: now,
            targets: Targets::default(),
            ttft_deadline: now + Seconds(1.0),
            queue_deadline: now + Seconds(30.0),
            disaggregation: Disaggregation::Allowed,
            seed: 0x9E37_79B9,
            excluded: Excluded::default(),
        };
        let params = Params::default();
        c.bench_with_input(BenchmarkId::new("place", count), &count, |b, _| {
            b.iter(|| place(&params, now, black_box(&job), &fleet));
        });
        c.bench_with_input(BenchmarkId::new("record the candidates", count), &count, |b, _| {
            b.iter(|| {
                considered(
                    &params,
                    now,
                    black_box(&job),
                    &fleet,
                    (BackendId(0), &fleet.load(BackendId(0))),
                )
            });
        });
    }
}

fn planning(c: &mut Criterion) {
    for count in FLEETS {
        let backends = (0..count).map(|slot| BackendObservation {
            id: BackendId(slot),
            group: GroupId(0),
            allowed: RoleSet::ANY,
            capability: RoleCapability::Instant,
            pinned: None,
            healthy: true,
            role: if slot.is_multiple_of(2) { Role::Prefill } else { Role::Decode },
            becoming: None,
            prefill: Seconds(0.1),
            streams: 60,
            streams_max: 256,
            kv: Tokens(60_000),
            kv_capacity: Tokens(430_000),
            prefill_model: Default::default(),
            decode_model: Default::default(),
            colocates: true,
        });
        let demand = GroupDemand {
            arrived_requests: 5.0,
            arrived_prefill: Seconds(0.4 * f64::from(count) / 8.0),
            arrived_output: 4000.0,
            arrived_kv: 5000.0,
            ..GroupDemand::none(GroupId(0))
        };
        let seen = Observation { backends: backends.collect(), groups: vec![demand] };
        let params = tidegate_scheduler::planner::Params::default();
        let (_, state) = plan(&params, Moment(1), &seen, &State::default());
        c.bench_with_input(BenchmarkId::new("plan", count), &count, |b, _| {
            b.iter(|| plan(&params, Moment(20_000_000), black_box(&seen), &state));
        });
    }
}

/// A table whose backends are in one group and serve one model.
fn table(count: u16) -> RoutingTable {
    let (ids, every): (Vec<BackendId>, _) = ((0..count).map(BackendId).collect(), PoolId(0));
    let entry = TableEntry {
        role: Role::Prefill,
        group: GroupId(0),
        prefill: PrefillModel::default(),
        decode: DecodeModel::default(),
        transfer: TransferModel::default(),
    };
    let pool = |id, model: &str| PoolEntry {
        id,
        model: model.into(),
        above: None,
        backends: ids.clone(),
        longer: Vec::new(),
        prefill: PrefillModel::default(),
        demand: Arc::default(),
    };
    RoutingTable {
        plan: Plan::first(vec![Role::Prefill; ids.len()]),
        entries: vec![entry; ids.len()],
        pools: vec![pool(every, ""), pool(PoolId(1), "m")],
        models: [(Arc::from("m"), PoolId(1))].into(),
    }
}

/// Publication of a table with new costs, as the control loop does each second. No backend has
/// observations: the lookup among its peers is the longest.
fn publishing(c: &mut Criterion) {
    for count in FLEETS {
        let priors = Priors { prefill: PrefillModel::default(), decode: DecodeModel::default() };
        let priors = vec![priors; usize::from(count)];
        let mut regressions = CostRegressions::new(priors, Estimates::default(), Tokens(2048));
        let slot = ArcSwap::from_pointee(table(count));
        c.bench_with_input(BenchmarkId::new("publish a routing table", count), &count, |b, _| {
            b.iter(|| {
                let mut next = (**slot.load()).clone();
                let groups: Vec<GroupId> = next.entries.iter().map(|entry| entry.group).collect();
                let costs = regressions.costs(&groups);
                regressions.regroup(groups.iter().copied());
                for (slot, (entry, costs)) in next.entries.iter_mut().zip(costs).enumerate() {
                    entry.role = next.plan.role(BackendId(slot as u16));
                    (entry.prefill, entry.decode) = costs;
                    entry.transfer = regressions.transfer(entry.group);
                }
                next.set_mean_costs();
                slot.store(Arc::new(next));
            });
        });
    }
}

criterion_group!(benches, parsing, tokenizing, placing, planning, publishing);
criterion_main!(benches);
