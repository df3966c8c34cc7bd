"""Short prompts on two real vLLM engines behind tidegate, compared with the same load sent to the engines directly: prints rates
and ratios.

64 in flight, an 11-word prompt, max_tokens 8, the README's configuration; fresh, and after 40 sequential prompts of 1,500 tokens.
Rates are not asserted: on two cores the clients, the proxy and both engines share the cores that one engine alone would have. The
target is 0.9 times the number of engines times one engine's rate; "both at once" is the rate of two engines on this machine.
Where nginx is installed, it forwards the same load to both engines (least connections), as a measure of any proxy's cost here.
Run by run.sh on two running engines. Exits 1 if a request fails.
"""
import argparse, contextlib, http.client, json, pathlib, random, shutil, subprocess, tempfile, threading, time

from check import DATA, FIRST, HOST, ADMIN, ask, check, exchange, settled, serving

IN_FLIGHT, SECONDS = 64, 10
NGINX = FIRST + 90
WORDS = "alpha module import tide gate under over water stone bridge north".split()


def shorts(ports):
    """Sends the load to these ports; returns requests per second, p50 and p99 in ms, and failures."""
    end, lock, took, failures = time.monotonic() + SECONDS, threading.Lock(), [], []

    def one(n):
        rng, port = random.Random(f"{n} {time.time()}"), ports[n % len(ports)]
        link = http.client.HTTPConnection(HOST, port, timeout=60)
        mine, bad = [], []
        while time.monotonic() < end:
            prompt = " ".join(rng.choice(WORDS) for _ in range(11))
            body = json.dumps({"model": "tiny", "max_tokens": 8, "temperature": 0, "ignore_eos": True, "messages": [{"role": "user", "content": prompt}]})
            began = time.monotonic()
            link.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            answer = link.getresponse()
            raw = answer.read()
            mine.append(time.monotonic() - began)
            if answer.status != 200:
                bad.append(f"{answer.status} {raw[:200]!r}")
        link.close()
        with lock:
            took.extend(mine)
            failures.extend(bad)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(IN_FLIGHT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took.sort()
    at = lambda share: took[min(len(took) - 1, int(share * len(took)))] * 1e3 if took else 0
    return len(took) / SECONDS, at(0.5), at(0.99), failures


def measure(what, ports, against=None):
    rate, p50, p99, failures = shorts(ports)
    beside = "".join(f", {rate / base:.2f} of {name}" for name, base in (against or {}).items())
    check(f"{what}: {rate:.0f} requests/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms{beside}", not failures, str(failures[:2]) if failures else "")
    return rate


def config(model, directory):
    """Writes the README's configuration: two engines with names and addresses only."""
    lines = [f'[server]\nlisten = ["{HOST}:{DATA}"]\nlinger_seconds = 0', f'[admin]\nlisten = "{HOST}:{ADMIN}"', f'[[models]]\nname = "tiny"\ntokenizer = "{model}/tokenizer.json"']
    lines += [f'[[backends]]\nname = "e{i}"\nurl = "http://{HOST}:{FIRST + i}"\nengine = "vllm"\nconnector = "nixl"' for i in range(2)]
    path = pathlib.Path(directory, "tidegate.toml")
    path.write_text("\n\n".join(lines) + "\n")
    return path


@contextlib.contextmanager
def nginx(directory):
    """Starts an nginx that forwards requests to both engines."""
    path = pathlib.Path(directory, "nginx.conf")
    temp = " ".join(f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    path.write_text(f"""worker_processes 1; daemon off; pid {directory}/nginx.pid; error_log {directory}/nginx.log;
events {{ worker_connections 1024; }}
http {{ access_log off; {temp}
  upstream engines {{ least_conn; server {HOST}:{FIRST}; server {HOST}:{FIRST + 1}; keepalive 128; }}
  server {{ listen {HOST}:{NGINX};
    location / {{ proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }} }}
""")
    process = subprocess.Popen(["nginx", "-c", path, "-p", directory], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


def main():
    args = argparse.ArgumentParser()
    for name in ("tidegate", "model"):
        args.add_argument(f"--{name}", required=True)
    args = args.parse_args()
    directory = tempfile.mkdtemp()
    with serving(args.tidegate, config(args.model, directory), directory):
        for port in (FIRST, FIRST + 1, DATA):
            ask(port, "chat", f"warm {port} {time.time()}", False)
        one = measure("one engine directly", [FIRST])
        both = measure("both engines directly, half of the load each", [FIRST, FIRST + 1])
        against = {"2 × one engine's": 2 * one, "both at once": both}
        if shutil.which("nginx"):
            with nginx(directory):
                time.sleep(1)
                against["nginx"] = measure("nginx over both engines", [NGINX], against)
        measure("tidegate, fresh", [DATA], against)
        for n in range(40):
            rng = random.Random(f"long {n} {time.time()}")
            body = {"model": "tiny", "max_tokens": 4, "prompt": [rng.randrange(10, 4000) for _ in range(1500)]}
            status, _, raw = exchange(DATA, "POST", "/v1/completions", body)
            if status != 200:
                check("prompts of 1,500 tokens, one after the other", False, f"{status} {raw[:200]}")
        measure("tidegate, after 40 prompts of 1,500 tokens", [DATA], against)
        settled()
        print("speed: no request failed")


if __name__ == "__main__":
    main()
