"""tidegate in front of two real vLLM engines: equal answers, real transfers, roles swapped under load, one engine killed.

Run by run.sh, which starts and stops the engines. Python's standard library only. Prints its measurements; exits 1 at the
first failed check. Equal text does not prove a hand-off (a decode engine without KV recomputes silently), so every transfer is
verified by the engines' counters.
"""
import argparse, contextlib, http.client, json, os, pathlib, random, signal, subprocess, sys, tempfile, threading, time

HOST, FIRST, DATA, ADMIN = "127.0.0.1", 18100, 18200, 18290
LEASE_SECONDS = 30
ENGINES = ("e0", "e1")


def exchange(port, method, path, body=None, headers=None, timeout=120):
    """One HTTP exchange; returns status, headers, text."""
    link = http.client.HTTPConnection(HOST, port, timeout=timeout)
    payload = None if body is None else json.dumps(body)
    link.request(method, path, payload, {"content-type": "application/json", **(headers or {})})
    answer = link.getresponse()
    text = answer.read().decode()
    link.close()
    return answer.status, dict(answer.getheaders()), text


def text_of(kind, stream, raw):
    """Returns text, finish reason and completion tokens of an answer."""
    text, finish, usage = "", None, None
    chunks = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")] if stream else [json.loads(raw)]
    for chunk in chunks:
        if "error" in chunk:
            raise RuntimeError(f"error in the answer: {chunk['error']}")
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            part = choice["text"] if kind == "completions" else (choice.get("delta") or choice.get("message") or {}).get("content")
            text += part or ""
            finish = choice["finish_reason"] or finish
    if stream and "data: [DONE]" not in raw:
        raise RuntimeError("the stream has no [DONE]")
    return text, finish, usage and usage["completion_tokens"]


def request(kind, seed, stream, max_tokens=24):
    """A request with a unique prompt of a few hundred tokens."""
    rng = random.Random(seed)
    words = " ".join(f"{rng.choice(['alpha', 'module', 'import', 'tide', 'gate'])}_{rng.randrange(10**6)}" for _ in range(60))
    body = {"model": "tiny", "max_tokens": max_tokens, "temperature": 0, "stream": stream, "ignore_eos": True}
    if stream:
        body["stream_options"] = {"include_usage": True}
    if kind == "completions":
        return "/v1/completions", {**body, "prompt": words}
    return "/v1/chat/completions", {**body, "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": words}]}


def ask(port, kind, seed, stream, max_tokens=24):
    path, body = request(kind, seed, stream, max_tokens)
    status, _, raw = exchange(port, "POST", path, body)
    if status != 200:
        raise RuntimeError(f"{status}: {raw[:300]}")
    return text_of(kind, stream, raw)


def counter(engine, name, label=""):
    _, _, page = exchange(FIRST + engine, "GET", "/metrics")
    rows = [line for line in page.splitlines() if line.startswith(name) and label in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in rows)


def counters(engine):
    return {
        "bytes pulled": counter(engine, "vllm:nixl_bytes_transferred_sum"),
        "tokens pulled": counter(engine, "vllm:prompt_tokens_by_source_total", 'source="external_kv_transfer"'),
        "failed transfers": counter(engine, "vllm:nixl_num_failed_transfers_total"),
        "leases expired": counter(engine, "vllm:nixl_num_kv_expired_reqs_total"),
        "late notifications": counter(engine, "vllm:nixl_num_notifications_after_expiry_total"),
    }


def check(what, holds, detail=""):
    print(f"{'ok  ' if holds else 'FAIL'} {what} {detail}", flush=True)
    if not holds:
        sys.exit(1)


def config(model, directory):
    lines = [f'[server]\nlisten = ["{HOST}:{DATA}"]\nlinger_seconds = 0', f'[admin]\nlisten = "{HOST}:{ADMIN}"', "[planner]\nenabled = false", "[placement]\nspill = false"]
    lines.append(f'[[models]]\nname = "tiny"\ntokenizer = "{model}/tokenizer.json"')
    for i, name in enumerate(ENGINES):
        role = "prefill" if i == 0 else "decode"
        lines.append(f'[[backends]]\nname = "{name}"\nurl = "http://{HOST}:{FIRST + i}"\nengine = "vllm"\nconnector = "nixl"\nkv_role = "kv_both"\nrole = "{role}"\npin = true')
    path = pathlib.Path(directory, "tidegate.toml")
    path.write_text("\n\n".join(lines) + "\n")
    return path


def set_role(tidegate, name, role):
    subprocess.run([tidegate, "pin", name, role, "--admin", f"{HOST}:{ADMIN}"], check=True, stdout=subprocess.DEVNULL)


def equal_answers():
    """Each answer through tidegate equals that of one engine alone, which is queried afterwards."""
    rows = 0
    for kind in ("completions", "chat"):
        for stream in (False, True):
            for n in range(3):
                seed = f"equal {kind} {stream} {n} {time.time()}"
                ours = ask(DATA, kind, seed, stream)
                alone = ask(FIRST, kind, seed, stream)
                check(f"{kind}, {'streamed' if stream else 'plain'}, prompt {n}: equal to one engine alone", ours == alone, "" if ours == alone else f"{ours} != {alone}")
                rows += 1
    return rows


class Load:
    """Threads that send requests until stopped, each with its own prompts."""

    def __init__(self, threads, max_tokens):
        self.done, self.failures, self.stop = 0, [], threading.Event()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.run, args=(n, max_tokens)) for n in range(threads)]
        for thread in self.threads:
            thread.start()

    def run(self, n, max_tokens):
        turn = 0
        while not self.stop.is_set():
            turn += 1
            try:
                _, finish, tokens = ask(DATA, ("completions", "chat")[turn % 2], f"load {n} {turn} {time.time()}", True, max_tokens)
                if finish != "length" or tokens != max_tokens:
                    raise RuntimeError(f"{finish} after {tokens} tokens")
                with self.lock:
                    self.done += 1
            except Exception as error:  # every kind counts as one failed request
                with self.lock:
                    self.failures.append(str(error))

    def finish(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def swaps(tidegate):
    """Roles swapped through the admin address under load: no request fails, and both engines pull KV."""
    before = [counters(e) for e in range(2)]
    load = Load(threads=4, max_tokens=32)
    for turn in range(6):
        time.sleep(4)
        first = "decode" if turn % 2 == 0 else "prefill"
        # The second role first, so that neither pool is ever empty.
        set_role(tidegate, "e1", "mixed")
        set_role(tidegate, "e0", first)
        set_role(tidegate, "e1", "prefill" if first == "decode" else "decode")
    load.finish()
    after = [counters(e) for e in range(2)]
    check(f"roles swapped 6 times under load: {load.done} requests, none failed", not load.failures and load.done >= 12, str(load.failures[:3]))
    for e in range(2):
        moved = after[e]["bytes pulled"] - before[e]["bytes pulled"]
        check(f"{ENGINES[e]} pulled KV from the other", moved > 0, f"{moved:.0f} bytes, {after[e]['tokens pulled'] - before[e]['tokens pulled']:.0f} tokens")


def leases():
    print(f"waiting {LEASE_SECONDS + 4} s: an unreleased lease expires within this time", flush=True)
    time.sleep(LEASE_SECONDS + 4)
    for e in range(2):
        now = counters(e)
        check(f"{ENGINES[e]}: no transfer failed, no lease expired", not any(now[k] for k in ("failed transfers", "leases expired", "late notifications")), str(now))


def kill(tidegate, engines):
    """e1 is killed while it decodes: only streams already begun on it may be lost; later requests are served."""
    set_role(tidegate, "e0", "prefill")
    set_role(tidegate, "e1", "decode")
    load = Load(threads=4, max_tokens=64)
    time.sleep(6)
    _, _, raw = exchange(ADMIN, "GET", "/v1/requests")
    begun = sum(1 for r in json.loads(raw) if r["backend"] == "e1" and r["output_tokens"] > 0)
    os.kill(int(pathlib.Path(engines, "engine-1.pid").read_text()), signal.SIGKILL)
    subprocess.run(["pkill", "-9", "-P", pathlib.Path(engines, "engine-1.pid").read_text().strip()], check=False)
    time.sleep(1)
    done_then = load.done
    time.sleep(15)
    load.finish()
    # Streams may begin between the query and the kill; four threads bound their number.
    check(f"e1 killed with {begun} streams begun on it: {len(load.failures)} lost", len(load.failures) <= max(begun, 4) and all("went away" in f or "error in the answer" in f for f in load.failures), str(load.failures[:4]))
    check("requests are served by the remaining engine", load.done > done_then + 4, f"{load.done - done_then} after the kill")


def settled():
    for _ in range(50):
        _, _, raw = exchange(ADMIN, "GET", "/v1/fleet")
        fleet = json.loads(raw)
        if fleet["live_requests"] == 0 and all(b["streams"] == b["prefill_legs"] == b["kv_tokens"] == 0 for b in fleet["backends"]):
            return check("every counter has returned to zero", True)
        time.sleep(0.1)
    check("every counter has returned to zero", False, raw)


def start(tidegate, path, directory, headers=None):
    """Starts tidegate with this configuration; returns it and its log once it serves the model, or after 10 s."""
    log = open(pathlib.Path(directory, "tidegate.log"), "w")
    proxy = subprocess.Popen([tidegate, "serve", "--config", path], stdout=log, stderr=log)
    for _ in range(100):
        try:
            if "tiny" in exchange(DATA, "GET", "/v1/models", headers=headers)[2]:
                break
        except OSError:
            pass
        time.sleep(0.1)
    return proxy, log


@contextlib.contextmanager
def serving(tidegate, path, directory, headers=None):
    """Like start; stops tidegate at the end of the block."""
    proxy, log = start(tidegate, path, directory, headers)
    try:
        yield
    finally:
        proxy.terminate()
        proxy.wait(timeout=45)
        log.close()
        print(f"the proxy's log: {log.name}")


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--tidegate", required=True)
    args.add_argument("--engines", required=True)
    args.add_argument("--model", required=True)
    args = args.parse_args()
    directory = tempfile.mkdtemp()
    proxy, log = start(args.tidegate, config(args.model, directory), directory)
    try:
        for engine in range(2):  # the first request of an engine includes compilation and handshake
            ask(FIRST + engine, "completions", f"warm {engine}", False)
        before = counters(1)
        rows = equal_answers()
        moved = counters(1)["bytes pulled"] - before["bytes pulled"]
        check(f"e1 pulled KV for those {rows} answers", moved > 0, f"{moved:.0f} bytes")
        swaps(args.tidegate)
        leases()
        kill(args.tidegate, args.engines)
        settled()
        proxy.send_signal(signal.SIGTERM)
        check("tidegate exits with code 0 after SIGTERM", proxy.wait(timeout=45) == 0)
        print("check: all checks passed")
    finally:
        if proxy.poll() is None:
            proxy.kill()
            proxy.wait()
        log.close()
        print(f"the proxy's log: {log.name}")


if __name__ == "__main__":
    main()
