"""A public load generator, guidellm, against tidegate in front of two real vLLM engines: its report contains no failed request.

Run by run.sh, with guidellm in a virtual environment of its own (its version pins conflict with vLLM's). Exits 1 if its report
contains a failed request, or fewer requests than were ordered.
"""
import argparse, json, os, pathlib, subprocess, tempfile

from check import DATA, HOST, check, config, counters, settled, serving

REQUESTS = 60


def report(args, folder):
    """Returns guidellm's report of one run."""
    path = pathlib.Path(folder, "report.json")
    command = [
        f"{args.guide}/bin/guidellm", "run", "--disable-console-interactive",
        "--backend", f"kind=openai_http,target=http://{HOST}:{DATA},model=tiny",
        "--profile", "kind=concurrent,streams=6",
        "--constraint", f"kind=max_requests,count={REQUESTS}",
        "--tokenizer", f"kind=huggingface_auto,model={args.model}",
        "--data", "kind=synthetic_text,prompt_tokens=200,output_tokens=24",
        "--output", f"kind=json,path={path}",
    ]
    environment = dict(os.environ, HF_HUB_OFFLINE="1", DO_NOT_TRACK="1")
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    check("guidellm ran to its end", ran.returncode == 0 and path.exists(), (ran.stderr or ran.stdout)[-600:] if ran.returncode else "")
    return json.loads(path.read_text())


def main():
    args = argparse.ArgumentParser()
    for name in ("tidegate", "model", "guide"):
        args.add_argument(f"--{name}", required=True)
    args = args.parse_args()
    directory = tempfile.mkdtemp()
    with serving(args.tidegate, config(args.model, directory), directory):
        before = counters(1)["bytes pulled"]
        results = report(args, directory)
        for benchmark in results["benchmarks"]:
            totals = benchmark["metrics"]["request_totals"]
            version = results.get("metadata", {}).get("guidellm_version", "")
            failed = totals["errored"] + totals["incomplete"]
            check(f"guidellm {version} reports {totals['successful']} successful requests, {totals['errored']} errored, {totals['incomplete']} incomplete", failed == 0 and totals["successful"] >= REQUESTS, "")
        moved = counters(1)["bytes pulled"] - before
        check("the decode engine pulled KV for them", moved > 0, f"{moved:.0f} bytes")
        settled()


if __name__ == "__main__":
    main()
