"""The command line on two real vLLM engines, without a configuration file: doctor, init, serve URL URL, explain, top --json.

Run by run.sh on two engines that run already. The engines' own counters prove the trial hand-offs and the served ones, as in
check.py. Exits 1 at the first check that fails.
"""
import argparse, contextlib, json, pathlib, signal, subprocess, tempfile, time

from check import ADMIN, DATA, FIRST, HOST, ask, check, counters, exchange, request, settled, text_of

URLS = [f"http://{HOST}:{FIRST + engine}" for engine in range(2)]
ADDRESSES = ["--listen", f"{HOST}:{DATA}", "--admin", f"{HOST}:{ADMIN}"]


def run(args, *words, expected=0):
    """Runs a subcommand; returns stdout."""
    done = subprocess.run([args.tidegate, *words], capture_output=True, text=True, timeout=300)
    check(f"tidegate {' '.join(words)[:70]}: exit code {expected}", done.returncode == expected, done.stdout[-600:] + done.stderr[-600:] if done.returncode != expected else "")
    return done.stdout


def findings(report, what):
    return [each for each in report["findings"] if each["check"] == what]


def doctor(args):
    """Every check is ok on two equal engines; trial hand-offs move tokens both ways; another tokenizer is an error."""
    before = [counters(engine)["bytes pulled"] for engine in range(2)]
    report = json.loads(run(args, "doctor", *URLS, "--tokenizer", args.tokenizer, "--json"))
    # The limit of open files is this machine's.
    bad = [each for each in report["findings"] if each["level"] != "ok" and each["check"] != "open files"]
    check(f"doctor: {len(report['findings'])} lines, none on the engines a warning or an error", not bad, str(bad))
    compared = findings(report, "tokenizer")
    check("doctor: the tokenizer equals /tokenize of both engines on 10 samples", len(compared) == 2 and all("10 samples" in each["detail"] for each in compared), str(compared))
    trials = findings(report, "hand-off")
    check("doctor: a trial hand-off each way", len(trials) == 2 and all("tokens moved" in each["detail"] for each in trials), "; ".join(each["detail"] for each in trials))
    moved = [counters(engine)["bytes pulled"] - before[engine] for engine in range(2)]
    check("doctor: both engines pulled KV", all(moved), f"{moved} bytes")
    other = pathlib.Path(args.directory, "other.json")
    vocabulary = json.loads(pathlib.Path(args.tokenizer).read_text())
    # The last merges are gone: long words fall into more tokens.
    vocabulary["model"]["merges"] = vocabulary["model"]["merges"][: len(vocabulary["model"]["merges"]) // 2]
    other.write_text(json.dumps(vocabulary))
    report = json.loads(run(args, "doctor", *URLS, "--tokenizer", str(other), "--no-trial", "--json", expected=1))
    compared = findings(report, "tokenizer")
    check("doctor: another tokenizer is an error", all(each["level"] == "error" for each in compared), compared[0]["detail"])


def init(args):
    """The written file has what the engines report, and check accepts it."""
    path = str(pathlib.Path(args.directory, "tidegate.toml"))
    run(args, "init", *URLS, "--tokenizer", args.tokenizer, "-o", path)
    text = pathlib.Path(path).read_text()
    wanted = ['connector = "nixl"', "vllm 0.32.0", "tiny (4096 tokens)"]
    check("init: version, connector, model and context length", all(text.count(each) == 2 for each in wanted), text if not all(text.count(each) == 2 for each in wanted) else "")
    run(args, "check", "--config", path)
    draft = json.loads(run(args, "init", *URLS, "--json"))
    check("init --json: the same engines", [each["connector"] for each in draft["backends"]] == ["nixl", "nixl"])


@contextlib.contextmanager
def serving(args, *more):
    """tidegate serve URL URL, until the block ends; SIGTERM ends it with exit code 0."""
    log = open(pathlib.Path(args.directory, f"serve-{len(more)}.log"), "w")
    proxy = subprocess.Popen([args.tidegate, "serve", *URLS, *ADDRESSES, *more], stdout=log, stderr=log)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                if exchange(ADMIN, "GET", "/readyz")[0] == 200:
                    break
            time.sleep(0.1)
        yield
        proxy.send_signal(signal.SIGTERM)
        check("serve: SIGTERM ends it with exit code 0", proxy.wait(timeout=45) == 0)
    finally:
        if proxy.poll() is None:
            proxy.kill()
            proxy.wait()
        log.close()
        print(f"the proxy's log: {log.name}", flush=True)


def send(kind, seed):
    """One streamed request without usage, so that tidegate shows its own count; then an engine alone is asked for its usage,
    which tidegate does not see. Returns the first one's request id, its text, and the prompt tokens of the engine."""
    path, body = request(kind, seed, True)
    usage = body.pop("stream_options")
    status, headers, raw = exchange(DATA, "POST", path, body)
    check(f"serve: {seed.split(' ')[0]} is answered", status == 200 and "data: [DONE]" in raw, raw[:200] if status != 200 else "")
    _, _, counted = exchange(FIRST, "POST", path, {**body, "stream_options": usage, "max_tokens": 1})
    chunks = [json.loads(line[6:]) for line in counted.splitlines() if line.startswith("data: {")]
    return headers["x-request-id"], text_of(kind, True, raw)[0], next(chunk["usage"]["prompt_tokens"] for chunk in chunks if chunk.get("usage"))


def explain(args, id, counted):
    """The waterfall as JSON and as text: exact prompt, phases in order, the choice in words."""
    told = json.loads(run(args, "explain", id, "--json", "--admin", f"{HOST}:{ADMIN}"))
    check("explain: the prompt is counted as the engine counts it", told["prompt_exact"] and told["prompt_tokens"] == counted, f"{told['prompt_tokens']} tokens, engine {counted}")
    phases = [phase["name"] for phase in told["phases"]]
    check("explain: phases end with decode", phases and phases[-1] == "decode", f"{phases}, {told['choice']}")
    check("explain: predicted beside observed", told["predicted"]["ttft_seconds"] is not None and told["observed"]["ttft_seconds"] > 0, f"TTFT {told['predicted']['ttft_seconds']:.3f} s predicted, {told['observed']['ttft_seconds']:.3f} s observed")
    text = run(args, "explain", id, "--admin", f"{HOST}:{ADMIN}")
    check("explain: the text names the request, its engine and the choice", id in text and told["backend"] in text and told["choice"] in text)


def top(args):
    """Two readings, one JSON object each."""
    lines = run(args, "top", "--json", "--count", "2", "--interval", "0.5", "--admin", f"{HOST}:{ADMIN}").splitlines()
    readings = [json.loads(line) for line in lines]
    backends = readings[-1]["fleet"]["backends"]
    check("top --json: two readings of two engines that are up", len(readings) == 2 and [each["health"] for each in backends] == ["up", "up"], str([each["name"] for each in backends]))
    check("top --json: the targets' model", [each["model"] for each in readings[-1]["targets"]["models"]] == ["tiny"])


def calibrates(args):
    """Without a tokenizer, /tokenize of the real engines corrects the estimate."""
    estimates = []
    for n in range(60):
        id, _, counted = send("chat", f"estimate {n} {time.time()}")
        told = json.loads(exchange(ADMIN, "GET", f"/v1/requests/{id}")[2])
        check("the prompt is estimated", not told["prompt_exact"]) if n == 0 else None
        estimates.append(told["prompt_tokens"] / counted)
        if abs(estimates[-1] - 1) < 0.05 and n > 5:
            break
        time.sleep(0.3)
    check("serve without a tokenizer: the estimate comes within 5 % of the engine's count", abs(estimates[-1] - 1) < 0.05, f"{estimates[0]:.2f} of it at first, {estimates[-1]:.2f} after {len(estimates)} requests")


def main():
    args = argparse.ArgumentParser()
    for name in ("tidegate", "model"):
        args.add_argument(f"--{name}", required=True)
    args = args.parse_args()
    args.tidegate = str(pathlib.Path(args.tidegate).resolve())
    args.tokenizer, args.directory = f"{args.model}/tokenizer.json", tempfile.mkdtemp()
    for engine in range(2):  # an engine's first request compiles
        ask(FIRST + engine, "chat", f"warm {engine} {time.time()}", True)
    doctor(args)
    init(args)
    with serving(args, "--tokenizer", args.tokenizer):
        # The random model says special tokens only to chats, which are no text.
        served = [send("completions", f"served {n} {time.time()}") for n in range(4)]
        check("serve: answers have text", all(text for _, text, _ in served))
        explain(args, served[-1][0], served[-1][2])
        top(args)
        settled()
    with serving(args):
        calibrates(args)
        settled()
    print("face: all checks passed")


if __name__ == "__main__":
    main()
