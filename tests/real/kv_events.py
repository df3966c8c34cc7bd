"""A real vLLM that publishes KV cache events, behind tidegate: accuracy of the predicted prefix cache hits.

kv_events.py --venv VENV --tidegate BINARY --model TINY_LLAMA [--requests N]

Starts one engine (CPU build) with a cache of 24 blocks, so that it evicts continuously, and sends equal
traffic through tidegate with and without events. Prints the prediction errors and fails if the error
with events is larger. Also checks, on the same engine, that token counts of streams are exact and not
forwarded to the client, and that the engine's metrics are read.
"""
import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

BLOCK = 128  # of vLLM on CPU
BLOCKS = 24


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def post(url, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def until(what, holds, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if holds():
                return
        except OSError:
            pass
        time.sleep(0.2)
    sys.exit(f"not within the time limit: {what}")


def engine(args, folder, port):
    environment = dict(os.environ, HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1",
                       VLLM_HOST_IP="127.0.0.1", VLLM_CPU_KVCACHE_SPACE="1", OMP_NUM_THREADS="1",
                       VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_SERVER_DEV_MODE="1")
    # tcp://127.0.0.1:PORT would make vLLM connect and not listen; it binds wildcards and ipc.
    events = {"enable_kv_cache_events": True, "publisher": "zmq", "topic": "kv@engine",
              "endpoint": f"ipc://{folder}/events", "replay_endpoint": f"ipc://{folder}/replay"}
    command = [f"{args.venv}/bin/vllm", "serve", args.model, "--served-model-name", "tiny",
               "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024",
               "--enforce-eager", "--dtype", "float32", "--num-gpu-blocks-override", str(BLOCKS),
               "--enable-prompt-tokens-details", "--kv-events-config", json.dumps(events)]
    log = open(f"{folder}/engine.log", "w")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


class Tidegate:
    def __init__(self, args, folder, engine_port, port, with_events):
        self.url, self.admin = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"
        events = f'kv_events = "ipc://{folder}/events"\nkv_replay = "ipc://{folder}/replay"\n'
        with open(f"{folder}/{port}.toml", "w") as settings:
            settings.write(f"""
[server]
listen = ["127.0.0.1:{port}"]
linger_seconds = 0
[admin]
listen = "127.0.0.1:{port + 1}"
[log]
access = "off"
[signals]
scrape_seconds = 1
exact_counts = true
[[models]]
name = "tiny"
tokenizer = "{args.model}/tokenizer.json"
[[backends]]
name = "e"
url = "http://127.0.0.1:{engine_port}"
engine = "vllm"
kv_capacity_tokens = {BLOCK * BLOCKS}
{events if with_events else ''}""")
        log = open(f"{folder}/{port}.log", "w")
        command = [args.tidegate, "serve", "--config", f"{folder}/{port}.toml"]
        self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def metrics(self):
        return get(f"{self.admin}/metrics")

    def metric(self, name):
        found = re.search(rf'^{name}{{[^}}]*}} (\S+)$', self.metrics(), re.M)
        return float(found.group(1)) if found else 0.0

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)


def traffic(proxy, seed, requests):
    """Sends repeated prompts on twelve documents of somewhat more than five blocks."""
    draw = random.Random(seed)
    documents = [[draw.randrange(10, 4000) for _ in range(700)] for _ in range(12)]
    absolute, prompt_tokens, cached_tokens, exact = 0, 0, 0, 0
    for _ in range(requests):
        document = documents[min(draw.randrange(12), draw.randrange(12))]
        prompt = document[:draw.choice([300, 500, 700])] + [draw.randrange(10, 4000) for _ in range(20)]
        before = proxy.metric("tidegate_prefix_predicted_tokens_total")
        answer = json.loads(post(f"{proxy.url}/v1/completions",
                                 {"model": "tiny", "prompt": prompt, "max_tokens": 1, "temperature": 0}))
        details = answer["usage"].get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens") or 0
        time.sleep(0.03)
        predicted = proxy.metric("tidegate_prefix_predicted_tokens_total") - before
        absolute += abs(predicted - cached)
        exact += predicted == cached
        prompt_tokens += len(prompt)
        cached_tokens += cached
    return {"requests": requests, "exact": exact, "hit_rate": round(cached_tokens / prompt_tokens, 4),
            "mean_absolute_error_of_hit_rate": round(absolute / prompt_tokens, 4)}


def stream_of(url, body):
    """Returns the parts of a stream that do not depend on the bundling of tokens: text, members of chunks, usage."""
    chunks = [json.loads(line[6:]) for line in post(url, body).splitlines() if line.startswith("data: {")]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(c.get("text") or (c.get("delta") or {}).get("content") or "" for c in choices)
    last = dict(chunks[-1].get("usage") or {}, prompt_tokens_details=None)  # the second request hits the prefix cache
    # vLLM puts its fingerprint into the last chunk. If usage is requested, that is the usage chunk, which tidegate removes.
    members = {tuple(member for member in chunk if member != "system_fingerprint") for chunk in chunks}
    return text, members, last, [c["finish_reason"] for c in choices if c["finish_reason"]]


def exact_counts(proxy, engine_port):
    """The client receives the stream of an engine alone, and tidegate counts the generated tokens."""
    emitted = lambda: json.loads(get(f"{proxy.admin}/v1/fleet"))["backends"][0]["emitted_tokens"]
    before, requested = emitted(), 0
    for path, prompt in (("completions", {"prompt": "the tide at the gate"}),
                         ("chat/completions", {"messages": [{"role": "user", "content": "the tide"}]})):
        for options in (None, {"include_usage": True},
                        {"include_usage": True, "continuous_usage_stats": True}):
            body = {"model": "tiny", "max_tokens": 40, "temperature": 0, "ignore_eos": True, "stream": True, **prompt}
            if options:
                body["stream_options"] = options
            alone = stream_of(f"http://127.0.0.1:{engine_port}/v1/{path}", body)
            through = stream_of(f"{proxy.url}/v1/{path}", body)
            assert through == alone, f"{path} {options}\n{through}\n{alone}"
            requested += 40
    time.sleep(0.2)
    counted = emitted() - before
    print(f"exact counts: {counted} tokens counted of {requested} generated, streams equal to the engine's own")
    assert counted == requested


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--venv", required=True)
    parser.add_argument("--tidegate", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=int, default=150)
    args = parser.parse_args()
    folder, port = tempfile.mkdtemp(prefix="kv"), 18300
    running = [engine(args, folder, port)]
    try:
        until("a healthy engine", lambda: get(f"http://127.0.0.1:{port}/health") is not None, 150)
        # Stored before tidegate starts: available by replay only.
        early = [[7 + i] * 400 for i in range(2)]
        for prompt in early:
            post(f"http://127.0.0.1:{port}/v1/completions",
                 {"model": "tiny", "prompt": prompt, "max_tokens": 1})
        observed = Tidegate(args, folder, port, 18400, True)
        running.append(observed.process)
        until("the complete cache contents by replay", lambda: observed.metric("tidegate_kv_events_complete") == 1, 30)
        print("by replay:", int(observed.metric("tidegate_kv_event_blocks")), "blocks")
        assert observed.metric("tidegate_kv_event_blocks") == 6, "three full blocks of each early prompt"
        until("ready", lambda: get(f"{observed.admin}/readyz"), 20)
        # Sent twice: only an engine that has reported cached tokens is known to report them.
        for _ in range(2):
            post(f"{observed.url}/v1/completions", {"model": "tiny", "prompt": early[0], "max_tokens": 1})
        events = traffic(observed, 1, args.requests)
        print("with events:", json.dumps(events))
        kinds = re.findall(r'tidegate_kv_event_blocks_total{.*kind="(\w+)"} (\d+)', observed.metrics())
        print("blocks:", dict(kinds), "held:", int(observed.metric("tidegate_kv_event_blocks")),
              "lost messages:", int(observed.metric("tidegate_kv_event_messages_lost_total")))
        assert observed.metric("tidegate_kv_event_messages_lost_total") == 0
        exact_counts(observed, port)
        until("the engine's metrics", lambda: observed.metric("tidegate_engine_kv_capacity_tokens") > 0, 10)
        print("kv capacity reported by the engine:", int(observed.metric("tidegate_engine_kv_capacity_tokens")),
              "computed tokens:", int(observed.metric("tidegate_engine_computed_tokens_total")))
        post(f"http://127.0.0.1:{port}/reset_prefix_cache", {})
        # vLLM publishes with its next step.
        post(f"{observed.url}/v1/completions", {"model": "tiny", "prompt": [5] * 20, "max_tokens": 1})
        until("a cleared cache", lambda: observed.metric("tidegate_kv_event_blocks") == 0, 10)
        print("cleared: the index is empty")
        observed.stop()
        alone = Tidegate(args, folder, port, 18410, False)
        running.append(alone.process)
        until("ready", lambda: get(f"{alone.admin}/readyz"), 20)
        record = traffic(alone, 2, args.requests)
        print("predicted from routed requests:", json.dumps(record))
        alone.stop()
        better = events["mean_absolute_error_of_hit_rate"] <= record["mean_absolute_error_of_hit_rate"]
        assert better, "events predict worse than routed requests"
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
        for process in running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


main()
