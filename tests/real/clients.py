"""Common clients against tidegate in front of two real vLLM engines: the `openai` and `anthropic` packages (both are
requirements of vLLM), with request features that disaggregation must preserve.

Run by run.sh before check.py, on the same engines. Every answer is compared with the same call to one engine alone; where an
engine refuses a call, tidegate must return the same refusal. Exits 1 at the first failed check.
"""
import argparse, concurrent.futures, json, tempfile, time

import anthropic, openai
from check import DATA, FIRST, HOST, check, config, counters, exchange, request, settled, serving

KEY = "sk-tidegate-real-clients"
LONG = " ".join(f"tide_{n * 7919 % 100003}" for n in range(80))
TOOLS = [{"type": "function", "function": {"name": "tide", "description": "The tide's height.", "parameters": {"type": "object", "properties": {"place": {"type": "string", "enum": ["gate", "quay"]}}, "required": ["place"]}}}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}}}
# Members that differ between any two answers: ids and times.
OWN = {"id", "created", "created_at", "completed_at", "system_fingerprint", "request_id", "item_id", "metrics", "kv_transfer_params", "prompt_tokens_details", "input_tokens_details"}


def plain(value):
    """Returns the part of an answer that must be equal."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in OWN}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value


def call(of):
    """Returns the answer, or the class and status of the error that the client library raises."""
    try:
        answer = of()
        if hasattr(answer, "model_dump"):
            return plain(answer.model_dump())
        return text_of_stream(answer)
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        return {"error": type(error).__name__, "status": error.status_code}


def text_of_stream(events):
    """Returns text, finish reasons and usage of a stream; the grouping of tokens into events may differ."""
    text, finish, usage = "", [], None
    for event in events:
        event = event.model_dump()
        for choice in event.get("choices") or []:
            part = choice["text"] if "text" in choice else choice["delta"].get("content")
            text += part or ""
            finish += [choice["finish_reason"]] if choice["finish_reason"] else []
        delta = event.get("delta")
        text += (delta if isinstance(delta, str) else (delta or {}).get("text") or "") if event.get("type") else ""
        usage = plain(event.get("usage")) or usage
    return {"text": text, "finish": finish, "usage": usage}


def both(what, of, expect=None):
    """Makes the same call to tidegate and then to one engine alone. Both answer, unless an error is expected."""
    ours, alone = call(lambda: of(clients["tidegate"])), call(lambda: of(clients["alone"]))
    refused = f"both refuse: {ours['error']} {ours['status']}" if ours.get("error") else ""
    check(f"{what}: equal to one engine alone", ours == alone, refused if ours == alone else "; ".join(differences(ours, alone)))
    check(f"{what}: {expect or 'an answer'}", ours.get("error") == expect, str(ours)[:200] if expect or ours.get("error") else "")
    return ours


def calls(what, of):
    """Both answer with a tool call. The arguments of a model with random weights are not always an object."""
    answer = both(what, of)
    made = [call["function"] for choice in answer["choices"] for call in choice["message"].get("tool_calls") or []]
    check(f"{what}: the tool is called", bool(made) and all(call["name"] == "tide" and call["arguments"] for call in made), str(made)[:200])


def differences(a, b, path=""):
    """Lists the differences between two answers."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [row for k in sorted({*a, *b}) for row in differences(a.get(k), b.get(k), f"{path}.{k}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [row for i, pair in enumerate(zip(a, b)) for row in differences(*pair, f"{path}[{i}]")]
    return [] if a == b else [f"{path}: {json.dumps(a)[:200]} != {json.dumps(b)[:200]}"]


def fresh(name):
    """Returns a prompt that is in no prefix cache, so that KV is pulled; the same for both calls of a check."""
    return f"{name} {began} {LONG}"


def chat(client, **more):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": LONG}]
    return client.openai.chat.completions.create(**{"model": "tiny", "messages": messages, "max_tokens": 16, "temperature": 0, "extra_body": {"ignore_eos": True}, **more})


def features():
    both("openai: chat", chat)
    both("openai: chat, streamed", lambda c: chat(c, stream=True, stream_options={"include_usage": True}))
    both("n=2, seeded", lambda c: chat(c, n=2, seed=7, temperature=0.8))
    both("logprobs", lambda c: chat(c, logprobs=True, top_logprobs=3))
    both("stop strings", lambda c: chat(c, stop=["import", "tide"], extra_body={}))
    both("tools, tool_choice none", lambda c: chat(c, tools=TOOLS, tool_choice="none"))
    named = {"type": "function", "function": {"name": "tide"}}
    calls("tools, named tool_choice", lambda c: chat(c, tools=TOOLS, tool_choice=named, max_tokens=60, extra_body={}))
    # A random model under this constraint does not end within any length: an answer is required, not a call.
    both("tools, tool_choice required", lambda c: chat(c, tools=TOOLS, tool_choice="required", max_tokens=120, extra_body={}))
    both("tools, tool_choice auto", lambda c: chat(c, tools=TOOLS, tool_choice="auto"))
    both("structured output", lambda c: chat(c, response_format=SCHEMA, max_tokens=40, extra_body={}))
    ids = [1] + [(n * 31) % 500 + 10 for n in range(300)]
    completion = lambda c, **more: c.openai.completions.create(**{"model": "tiny", "prompt": ids, "max_tokens": 12, "temperature": 0, **more})
    both("openai: completion of token ids", completion)
    both("openai: completion, streamed", lambda c: completion(c, stream=True))
    both("several prompts", lambda c: completion(c, prompt=[LONG, LONG[::-1]]))
    both("echo with logprobs", lambda c: completion(c, prompt=LONG[:200], echo=True, logprobs=2))
    both("openai: responses", lambda c: c.openai.responses.create(model="tiny", input=LONG[:300], max_output_tokens=16, temperature=0))
    both("openai: responses, streamed", lambda c: c.openai.responses.create(model="tiny", input=LONG[:300], max_output_tokens=16, temperature=0, stream=True))
    before = counters(1)["bytes pulled"]
    both("openai: responses with instructions", lambda c: c.openai.responses.create(model="tiny", instructions="Be brief.", input=[{"role": "user", "content": fresh("response")}], max_output_tokens=16, temperature=0))
    moved = counters(1)["bytes pulled"] - before
    check("a response is split: its decode engine pulled the prompt's KV", moved > 0, f"{moved:.0f} bytes")
    both("openai: models", lambda c: c.openai.models.list())


def errors():
    both("unknown model", lambda c: chat(c, model="unknown"), "NotFoundError")
    both("temperature out of range", lambda c: chat(c, temperature=9), "BadRequestError")
    both("prompt too long", lambda c: chat(c, messages=[{"role": "user", "content": "tide " * 20000}]), "BadRequestError")
    unknown_client = openai.OpenAI(base_url=f"http://{HOST}:{DATA}/v1", api_key="sk-unknown-key", max_retries=0)
    refused = call(lambda: unknown_client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}]))
    check("a wrong key: AuthenticationError", refused == {"error": "AuthenticationError", "status": 401}, str(refused))


def messages(client, **more):
    return client.anthropic.messages.create(**{"model": "tiny", "max_tokens": 16, "messages": [{"role": "user", "content": LONG[:400]}], "extra_body": {"temperature": 0}, **more})


def anthropics():
    both("anthropic: message", messages)
    before = counters(1)["bytes pulled"]
    both("anthropic: message with a system prompt", lambda c: messages(c, system="Be brief.", messages=[{"role": "user", "content": fresh("message")}]))
    moved = counters(1)["bytes pulled"] - before
    check("a message is split: its decode engine pulled the prompt's KV", moved > 0, f"{moved:.0f} bytes")
    both("anthropic: message, streamed", lambda c: messages(c, stream=True))
    both("anthropic: unknown model", lambda c: messages(c, model="unknown"), "NotFoundError")
    unknown_client = anthropic.Anthropic(base_url=f"http://{HOST}:{DATA}", api_key="sk-unknown-key", max_retries=0)
    refused = call(lambda: messages(Client(None, unknown_client)))
    check("anthropic: a wrong key: AuthenticationError", refused == {"error": "AuthenticationError", "status": 401}, str(refused))


def mixed(count=100):
    """Concurrent requests, long and short, streamed and not: all are answered, as by one engine alone."""
    def one(n):
        path, body = request(("completions", "chat")[n % 2], f"mixed {n} {began}", n % 3 == 0, 4 + n % 13)
        status, _, raw = exchange(DATA, "POST", path, body, {"authorization": f"Bearer {KEY}"})
        return path, body, status, raw
    began = time.time()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(count)))
    bad = [(status, raw[:200]) for _, _, status, raw in answers if status != 200]
    check(f"{count} requests, 8 at once, none failed", not bad, str(bad[:2]))
    from check import text_of
    differ = 0
    for path, body, _, raw in answers:
        kind = "chat" if "chat" in path else "completions"
        alone = exchange(FIRST, "POST", path, body)[2]
        differ += text_of(kind, body["stream"], raw) != text_of(kind, body["stream"], alone)
    check(f"{count - differ} of them equal the answer of one engine alone", differ == 0)


class Client:
    def __init__(self, of_openai, of_anthropic):
        self.openai, self.anthropic = of_openai, of_anthropic


def client(port, key):
    base = f"http://{HOST}:{port}"
    return Client(openai.OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0, timeout=120), anthropic.Anthropic(base_url=base, api_key=key, max_retries=0, timeout=120))


began = time.time()
clients = {"tidegate": client(DATA, KEY), "alone": client(FIRST, "no key")}


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--tidegate", required=True)
    args.add_argument("--model", required=True)
    args = args.parse_args()
    directory = tempfile.mkdtemp()
    path = config(args.model, directory)
    path.write_text(path.read_text() + f'\n[[auth.keys]]\nname = "real"\nkey = "{KEY}"\n')
    with serving(args.tidegate, path, directory, {"authorization": f"Bearer {KEY}"}):
        before = counters(1)["bytes pulled"]
        features()
        errors()
        anthropics()
        mixed()
        moved = counters(1)["bytes pulled"] - before
        check("the decode engine pulled KV for them", moved > 0, f"{moved:.0f} bytes")
        settled()
        print(f"clients: all checks passed (openai {openai.__version__}, anthropic {anthropic.__version__})")


if __name__ == "__main__":
    main()
