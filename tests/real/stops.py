"""A hung engine (SIGSTOP): its connections stay open and carry no bytes. Requests without a byte of answer are retried on the other
engine within seconds, and no request fails after SIGCONT.

Run by run.sh on two running engines whose roles the planner may change. Exits 1 at the first failed check.
"""
import argparse, json, os, pathlib, signal, subprocess, tempfile, threading, time

from check import ADMIN, DATA, ask, check, config, exchange, set_role, settled, serving

REQUESTS = 9
# Silence is detected within seconds, in addition to a queue of nine prefills of some hundred tokens on one core.
WITHIN_SECONDS = 20


def tree(pid):
    """A process and its descendants."""
    below = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [pid, *(each for child in below for each in tree(int(child)))]


def send(run, engine, what):
    for pid in tree(int(pathlib.Path(run, f"engine-{engine}.pid").read_text())):
        os.kill(pid, what)


def fleet():
    return {b["name"]: b for b in json.loads(exchange(ADMIN, "GET", "/v1/fleet")[2])["backends"]}


def until(what, holds, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return
        time.sleep(0.2)
    check(what, False, f"not within {seconds} s: {json.dumps(fleet())[:600]}")


class Burst:
    """Concurrent requests, half of them streamed: the seconds to each answer, and the failures."""

    def __init__(self, name, count):
        self.seconds, self.failures = [], []
        self.threads = [threading.Thread(target=self.one, args=(f"{name} {n} {time.time()}", n % 2 == 0)) for n in range(count)]
        for thread in self.threads:
            thread.start()

    def one(self, seed, stream):
        began = time.monotonic()
        try:
            ask(DATA, "chat", seed, stream, 12)
            self.seconds.append(time.monotonic() - began)
        except Exception as error:  # every kind counts as one failed request
            self.failures.append(f"{error} after {time.monotonic() - began:.1f} s")

    def finish(self, seconds):
        end = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0, end - time.monotonic()))
        return sum(thread.is_alive() for thread in self.threads)


def stopped(args, engine, role):
    """Stops an engine in this role for longer than the silence limit."""
    name, other = f"e{engine}", f"e{1 - engine}"
    set_role(args.tidegate, other, "mixed")
    set_role(args.tidegate, name, role)
    set_role(args.tidegate, other, "decode" if role == "prefill" else "prefill")
    until("both are up", lambda: all(b["health"] == "up" for b in fleet().values()), 60)
    check(f"{role} engine {name}: requests are served before", not Burst("before", 4).failures)
    time.sleep(3)
    # Released to the planner, which may change the role of the remaining engine.
    for each in (name, other):
        exchange(ADMIN, "POST", f"/v1/backends/{each}/role", {"pin": False})
    send(args.engines, engine, signal.SIGSTOP)
    try:
        burst = Burst(f"stopped {role}", REQUESTS)
        waiting = burst.finish(WITHIN_SECONDS)
        check(f"{role} engine stopped: {REQUESTS} requests are answered by the other engine within {WITHIN_SECONDS} s", waiting == 0 and not burst.failures, f"{len(burst.seconds)} answered, the last after {max(burst.seconds, default=0):.1f} s; {waiting} pending; {burst.failures[:3]}; {name} is {fleet()[name]['health']}")
        later = Burst(f"stopped {role}, later", REQUESTS)
        waiting = later.finish(WITHIN_SECONDS)
        check(f"{role} engine stopped and detected: {REQUESTS} more", waiting == 0 and not later.failures, f"the last after {max(later.seconds, default=0):.1f} s; {waiting} pending; {later.failures[:3]}")
    finally:
        send(args.engines, engine, signal.SIGCONT)
    for each in range(5):
        again = Burst(f"continued {role} {each}", 4)
        waiting = again.finish(60)
        check(f"{role} engine continued, {each}: no late error", waiting == 0 and not again.failures, f"the last after {max(again.seconds, default=0):.1f} s; {again.failures[:3]}")
    until("the engine is up again", lambda: fleet()[name]["health"] == "up", 60)


def main():
    args = argparse.ArgumentParser()
    for name in ("tidegate", "model", "engines"):
        args.add_argument(f"--{name}", required=True)
    args = args.parse_args()
    directory = tempfile.mkdtemp()
    path = config(args.model, directory)
    text = path.read_text().replace("pin = true", "pin = false").replace("[planner]\nenabled = false", "[planner]\nenabled = true")
    path.write_text(text)
    with serving(args.tidegate, path, directory):
        for n in range(2):  # an engine's first request compiles
            ask(DATA, "chat", f"warm {n} {time.time()}", False)
        stopped(args, 1, "decode")
        stopped(args, 0, "prefill")
        settled()
        print("stops: all checks passed")


if __name__ == "__main__":
    main()
