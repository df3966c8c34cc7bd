"""A third real vLLM joins and leaves while requests run: an absent backend has no effect, a started one receives its
share and takes part in hand-offs in both directions, and a killed one loses only the streams begun on it.

Run by run.sh beside two running engines; starts the third itself. Exits 1 at the first failed check.
"""
import argparse, json, os, pathlib, signal, subprocess, tempfile, time

from check import ADMIN, DATA, FIRST, HOST, Load, ask, check, config, counter, exchange, set_role, settled, start

THIRD = FIRST + 2


def backend(name):
    return next(b for b in json.loads(exchange(ADMIN, "GET", "/v1/fleet")[2])["backends"] if b["name"] == name)


def until(what, holds, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return time.monotonic() - end + seconds
        time.sleep(0.2)
    check(what, False, f"not within {seconds} s: {json.dumps(backend('e2'))[:400]}")


def pulled(engine):
    return counter(engine, "vllm:nixl_bytes_transferred_sum")


def computed(engine):
    return counter(engine, "vllm:prompt_tokens_by_source_total", 'source="local_compute"')


def joins(args, run):
    """e2 is absent at first and started under load; then it decodes after prefills on e0."""
    done = args.load.done
    until("requests are served without it", lambda: args.load.done >= done + 4, 120)
    check("a backend that is configured and absent costs nothing", not args.load.failures, f"{args.load.done} requests, e2 is {backend('e2')['health']}")
    began = time.monotonic()
    subprocess.run(["bash", f"{args.engines}/start.sh", args.venv, run, args.model, "1", str(THIRD)], check=True)
    print(f"e2 was healthy after {time.monotonic() - began:.0f} s", flush=True)
    took = until("e2 joins", lambda: backend("e2")["health"] == "up", 30)
    shown, e0 = backend("e2"), backend("e0")
    check("e2 joins within seconds, with the same version and group", (shown["version"], shown["group"], shown["misfits"]) == (e0["version"], e0["group"], []), f"{took:.1f} s, version {shown['version']}")
    until("e2 decodes after a prefill on another engine", lambda: pulled(2) > 0, 120)
    check("e2 pulls KV from another engine", True, f"{pulled(2):.0f} bytes")


def hands_over(tidegate):
    """e2 prefills, and the others decode."""
    set_role(tidegate, "e2", "prefill")
    set_role(tidegate, "e0", "decode")
    before = (computed(2), pulled(0) + pulled(1))
    until("e2 prefills for the others", lambda: computed(2) > before[0] and pulled(0) + pulled(1) > before[1], 120)
    check("e2 hands off to the others", True, f"{computed(2) - before[0]:.0f} tokens computed there, {pulled(0) + pulled(1) - before[1]:.0f} bytes pulled from it")
    set_role(tidegate, "e0", "prefill")
    set_role(tidegate, "e2", "decode")
    until("e2 decodes again", lambda: backend("e2")["streams"] > 0, 120)


def leaves(load, run):
    """SIGKILL to e2 and its descendants: only streams begun on it are lost."""
    check("no request has failed so far", not load.failures, str(load.failures[:3]))
    begun = sum(1 for r in json.loads(exchange(ADMIN, "GET", "/v1/requests")[2]) if r["backend"] == "e2")
    pid = pathlib.Path(run, "engine-0.pid").read_text().strip()
    below = subprocess.run(["ps", "-o", "pid=", "--ppid", pid], capture_output=True, text=True).stdout.split()
    for each in [pid, *below]:
        os.kill(int(each), signal.SIGKILL)
    done = load.done
    until("e2 is out of service", lambda: backend("e2")["health"] == "down", 30)
    until("requests are served without it", lambda: load.done >= done + 8, 180)
    load.finish()
    # Streams may begin between the query and the kill; four threads bound their number.
    lost = all("went away" in f or "error in the answer" in f for f in load.failures)
    check(f"e2 killed with {begun} requests on it: {len(load.failures)} lost", lost and len(load.failures) <= max(begun, 4), str(load.failures[:4]))
    check("requests were served without it", load.done >= done + 8, f"{load.done - done} after the kill, {load.done} in all")


def main():
    args = argparse.ArgumentParser()
    for name in ("tidegate", "model", "venv", "engines"):
        args.add_argument(f"--{name}", required=True)
    args = args.parse_args()
    directory, run = tempfile.mkdtemp(), tempfile.mkdtemp()
    path = config(args.model, directory)
    third = f'[[backends]]\nname = "e2"\nurl = "http://{HOST}:{THIRD}"\nengine = "vllm"\nconnector = "nixl"\nkv_role = "kv_both"\nrole = "decode"\npin = true\n'
    path.write_text(f"{path.read_text()}\n{third}\n[probe]\nslow_return_seconds = 5\n")
    proxy, log = start(args.tidegate, path, directory)
    args.load = None
    try:
        ask(DATA, "chat", f"warm {time.time()}", False)
        args.load = Load(threads=4, max_tokens=48)
        joins(args, run)
        hands_over(args.tidegate)
        leaves(args.load, run)
        settled()
        print("membership: all checks passed")
    finally:
        if args.load:
            args.load.finish()
        proxy.terminate()
        proxy.wait(timeout=45)
        subprocess.run(["bash", f"{args.engines}/stop.sh", run], check=False)
        log.close()
        print(f"the proxy's log: {log.name}")


if __name__ == "__main__":
    main()
