"""Makes the small tokenizers of families/ and the renderings of templates.json, the expected values
of the tests. Each tokenizer has a family's structure (normalizer, pre-tokenizer, model flags, post-
processor, added tokens as its published tokenizer.json has them) and a vocabulary of about 1,500
tokens trained here, so that files stay small. Needs PyPI's tokenizers 0.23 and transformers 5:

    python make_tokenizers.py
"""

import json
import os
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers

HERE = pathlib.Path(__file__).parent
CODE = [p.read_text(errors="ignore")[:20000] for p in sorted(pathlib.Path(json.__file__).parent.glob("*.py"))]
PROSE = [
    "The quick brown fox doesn't jump over the lazy dog; it's 12345 times tired, I'm told. " * 3,
    "Il s'agit d'un été très chaud à Genève. Größe, Straße, façade, naïve, Łódź, İstanbul. " * 3,
    "Съешь ещё этих мягких французских булок, да выпей чаю. Ελληνικά γράμματα και λέξεις. " * 3,
    "我们今天去北京看长城，天气很好。你好，世界！机器学习模型需要大量的数据。" * 4,
    "今日はとても良い天気ですね。カタカナとひらがなと漢字を混ぜて書きます。" * 4,
    "안녕하세요 세계. 오늘 날씨가 좋습니다. 한국어 문장을 씁니다. " * 4,
    "مرحبا بالعالم، كيف حالك اليوم؟ שלום עולם, מה שלומך היום? नमस्ते दुनिया, आप कैसे हैं? สวัสดีชาวโลก " * 4,
    "😀 😃 👨‍👩‍👧‍👦 🇨🇭🇯🇵 👍🏽 ❤️ ✈️ 🏳️‍🌈 " * 4,
    "\t\n\r\n   \n\n    indented\n\t\ttabs\r\n" * 8,
]
SIZE = 1500
BYTES = pre_tokenizers.ByteLevel.alphabet()
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
TEKKEN = O200K.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace(r"\p{N}{1,3}", r"\p{N}")
DEEPSEEK = [
    r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]


def split(*patterns):
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    return pre_tokenizers.Sequence(steps + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def special(*names):
    return [AddedToken(name, special=True, normalized=False) for name in names]


def train(tokenizer, alphabet, unk=None, reserved=()):
    names = ([unk] if unk else []) + list(reserved)
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=names, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(PROSE * 3 + CODE, trainer)
    return tokenizer


def byte_level(pre, normalizer=None, tokens=(), post=None, **flags):
    tokenizer = Tokenizer(models.BPE(**flags))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, BYTES)
    tokenizer.add_tokens(list(tokens))
    if post:
        tokenizer.post_processor = post(tokenizer)
    return tokenizer


def bos(name, first=None):
    def make(tokenizer):
        template = processors.TemplateProcessing(
            single=f"{name} $A", pair=f"{name} $A {name}:1 $B:1", special_tokens=[(name, tokenizer.token_to_id(name))])
        return processors.Sequence([first, template]) if first else template
    return make


def sentencepiece(normalizer, pre, names, normalized, post):
    """Trained on words with their leading ▁, then given the flags and bytes of a SentencePiece model."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?[^▁]+"), "isolated")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    train(tokenizer, [], "<unk>", [*names, *bytes_])
    made = json.loads(tokenizer.to_str())
    made["pre_tokenizer"] = pre
    made["added_tokens"] = [t for t in made["added_tokens"] if t["content"] in ("<unk>", *names)]
    for token in made["added_tokens"]:
        token["normalized"] = normalized
    made["post_processor"] = json.loads(post(tokenizer).__getstate__()) if post else None
    made["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    return made


def families():
    header = special("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    yield "llama3", byte_level(split(LLAMA3), tokens=header, ignore_merges=True,
        post=bos("<|begin_of_text|>", processors.ByteLevel(trim_offsets=True)))
    plain = [AddedToken("<tool_call>", special=False, normalized=False), AddedToken("</tool_call>", special=False, normalized=False)]
    yield "qwen2", byte_level(split(QWEN2), normalizers.NFC(), special("<|endoftext|>", "<|im_start|>", "<|im_end|>") + plain,
        post=lambda t: processors.ByteLevel(trim_offsets=False))
    yield "gpt2", byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), tokens=special("<|endoftext|>"),
        post=lambda t: processors.ByteLevel(trim_offsets=False))
    yield "gpt_oss", byte_level(split(O200K), tokens=special("<|start|>", "<|message|>", "<|end|>", "<|channel|>"), ignore_merges=False)
    yield "mistral_nemo", byte_level(split(TEKKEN), tokens=special("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), ignore_merges=True, post=bos("<s>"))
    yield "deepseek_v3", byte_level(split(*DEEPSEEK), tokens=special("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
        + [AddedToken("<｜User｜>", normalized=False), AddedToken("<｜Assistant｜>", normalized=False)],
        post=bos("<｜begin▁of▁sentence｜>"))
    # Phi-3 and others: tokens that absorb the white space after or before them.
    strips = [AddedToken("<|user|>", rstrip=True, normalized=False, special=True), AddedToken("<mask>", lstrip=True, normalized=False, special=True),
        AddedToken("word", single_word=True, normalized=True)]
    yield "stripping", byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), tokens=strips)
    yield "gpt2_prefix_space", byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))
    # Falcon and StarCoder split digits one by one.
    yield "starcoder", byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]), tokens=special("<|endoftext|>"))
    llama2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    yield "llama2", sentencepiece(llama2, None, ["<s>", "</s>"], False, bos("<s>"))
    yield "llama2_normalized_specials", sentencepiece(llama2, None, ["<s>", "</s>"], True, bos("<s>"))
    gemma = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    yield "gemma", sentencepiece(normalizers.Replace(" ", "▁"), gemma, ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], False, bos("<bos>"))
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    yield "mistral_v3_metaspace", sentencepiece(normalizers.Replace(" ", "▁"), metaspace, ["<s>", "</s>"], False, bos("<s>")) | {"normalizer": None}


def templates():
    """Our own templates, of the kinds that models have, rendered by transformers itself."""
    from transformers.utils.chat_template_utils import render_jinja_template

    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Grüezi <b>&</b> 'you'\n"},
        {"role": "assistant", "content": "<think>hm\n</think>\n\nHello"}, {"role": "user", "content": "我们 👍🏽"}]
    call = {"type": "function", "id": "c1", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 3, "deep": [1.5, True, None, {}], "e": []}}}
    tools = [{"type": "function", "function": {"name": "weather", "description": "it's \"nice\"\n", "parameters": {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "number"}}}}}]
    calls = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "{\"t\": 1}", "tool_call_id": "c1", "name": "weather"}]
    chatml = "{%- for m in messages %}\n    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
    loops = """{%- set ns = namespace(last=-1, n=0) %}
{%- for m in messages[::-1] %}
    {%- if m.role == 'user' and ns.last < 0 %}{% set ns.last = messages | length - 1 - loop.index0 %}{% endif %}
{%- endfor %}
{% for m in messages %}
  {% if loop.first and m['role'] == 'system' %}
[SYS]{{ m['content'] | trim }}[/SYS]
    {%- continue %}
  {% endif %}
  {%- if m.role == 'assistant' and '</think>' in m.content %}
A:{{ m.content.split('</think>')[-1].lstrip('\\n') }}|
  {%- elif m.role == 'user' %}
U{{ loop.index }}/{{ loop.length }}{{ ':' if loop.index0 == ns.last else ';' }}{{ m.content.strip() }}{{ '' if not loop.last else '!' }}
  {%- endif %}
{% endfor %}
{{ messages[1:] | length }} {{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}"""
    toolish = """{{ bos_token }}{% macro show(t, pad='') %}{{ pad }}{{ t | tojson }}{% endmacro %}
{% if tools is defined and tools is not none %}Tools:
{% for tool in tools %}{{ show(tool) }}
{{ tool | tojson(indent=4) }}
{{ tool.function.parameters.properties.items() | list | length }}
{% endfor %}{% endif %}
{% for m in messages %}
{% if m.tool_calls is defined and m.tool_calls %}
{% for c in m.tool_calls %}{{ c.function.name }} {{ c.function.arguments | tojson }}{% for k, v in c.function.arguments.items() %}
{{ k }}={{ v if v is string else v | tojson }} {% endfor %}

{% endfor %}
{% elif m.role == 'tool' %}{{ m.tool_call_id }} {{ m.get('name', 'none') }} {{ m.get('nothing', 'none') }} {{ m.content }}
{% else %}{{ m.content }}{{ m.get('tool_calls') }}
{% endif %}{% endfor %}{{ true }} {{ none }} {{ 7 // 2 }} {{ 7 / 2 }} {{ undefined_thing }}{{ 'x' ~ 1 ~ none }} {{ documents is none }}{% if not date is defined %} no date{% endif %}"""
    training = "{% for m in messages %}{{ m.role }}:{%- generation %} {{ m.content }}{% endgeneration %}\n{% endfor %}"
    parts = "{% for m in messages %}{{ m.role | upper }}{% if m.content is string %}S{{ m.content }}{% else %}{% for part in m.content %}{% if part.type == 'text' %}P{{ part['text'] }}{% elif part.type == 'image' %}<image>{% endif %}{% endfor %}{% endif %}{% endfor %}"
    kwargs = "{% if enable_thinking is defined and enable_thinking is false %}off{% else %}on{% endif %}{{ style | default('plain') }}{% if style is defined %}{{ style.title() }}{% endif %}{% for m in messages %}{{ m.content.replace('Be', 'Was')[:4] }}{% endfor %}{{ reasoning_effort }}"
    strict = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}{% endfor %}ok"
    texts = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    cases = [
        ("chatml", chatml, talk, {}), ("chatml_no_prompt", chatml, talk, {"add_generation_prompt": False}),
        ("chatml_continues", chatml, talk[:3], {"add_generation_prompt": False, "continue_final_message": True}),
        ("loops", loops, talk, {}), ("tools", toolish, calls, {"tools": tools}), ("no_tools", toolish, talk, {}),
        ("generation_tags", training, talk, {}), ("parts", parts, texts, {}),
        ("parts_of_strings", parts, [{"role": "user", "content": [{"type": "text", "text": "plain"}]}], {}),
        ("joined_parts", chatml, [{"role": "user", "content": "one\ntwo"}], {}),
        ("kwargs", kwargs, talk, {"chat_template_kwargs": {"enable_thinking": False, "style": "loud words"}}),
        ("effort", kwargs, talk, {"reasoning_effort": "low"}), ("refused", strict, talk, {}), ("not_refused", strict, talk[1:], {}),
    ]
    for name, template, messages, options in cases:
        known = {k: v for k, v in options.items() if k in ("tools", "continue_final_message")}
        extra = options.get("chat_template_kwargs", {}) | {k: v for k, v in options.items() if k == "reasoning_effort"}
        prompt = options.get("add_generation_prompt", True)
        try:
            rendered, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=prompt,
                bos_token="<s>", eos_token="</s>", **known, **extra)
            expected = rendered[0]
        except Exception as refused:
            expected = None
        sent = [dict(m) for m in messages]
        if name == "joined_parts":
            sent = texts
        if name == "parts_of_strings":
            sent = [{"role": "user", "content": "plain"}]
        for message in sent:
            for c in message.get("tool_calls", []):
                if not isinstance(c["function"]["arguments"], str):
                    message["tool_calls"] = [{**c, "function": {**c["function"], "arguments": json.dumps(c["function"]["arguments"])}}]
        yield {"name": name, "template": template, "body": json.dumps({"model": "m", "messages": sent, **options}), "expected": expected}


def recorded(transcripts):
    """What vLLM 0.32 itself counted: requests and prompt_tokens in recorded transcripts of a real engine."""
    chat = json.loads((transcripts / "vllm_0.32.0_nixl_chat.json").read_text())
    completion = json.loads((transcripts / "vllm_0.32.0_nixl_completions_0.json").read_text())
    misc = json.loads((transcripts / "vllm_0.32.0_misc.json").read_text())
    for path, one in (("/v1/chat/completions", chat), ("/v1/completions", completion)):
        yield {"path": path, "body": one["decode_request"], "prompt_tokens": one["prefill_response"]["usage"]["prompt_tokens"]}
    for name in ("n2", "tokens_in", "dead_kv_params"):
        answer = json.loads(misc[name]["response"])
        yield {"path": "/v1/completions", "body": misc[name]["request"], "prompt_tokens": answer["usage"]["prompt_tokens"]}
    answer = json.loads(misc["tokenize"]["response"])
    yield {"path": "/tokenize", "body": misc["tokenize"]["request"], "prompt_tokens": answer["count"], "ids": answer["tokens"]}


if __name__ == "__main__":
    for name, tokenizer in families():
        made = tokenizer if isinstance(tokenizer, dict) else json.loads(tokenizer.to_str())
        text = json.dumps(made, ensure_ascii=False, separators=(",", ":"))
        (HERE / "families" / f"{name}.json").write_text(text + "\n")
    (HERE / "templates.json").write_text(json.dumps(list(templates()), ensure_ascii=False, indent=1) + "\n")
    # Recorded with tests/real; without a folder the committed counts stay.
    transcripts = pathlib.Path(os.environ.get("TIDEGATE_TRANSCRIPTS", "none"))
    if transcripts.exists():
        (HERE / "vllm_0.32.0_counts.json").write_text(json.dumps(list(recorded(transcripts)), ensure_ascii=False, indent=1) + "\n")
