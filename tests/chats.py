# ruff: noqa: E501
"""Chat templates of the known shapes, vocabularies for them, and conversations that are hard to encode."""

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from gpt_modules.data.text.chat_template import OURS

CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
SMOLLM = (
    """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}"""
    + CHATML.removeprefix("{% for message in messages %}")
)
LLAMA3 = """{{- bos_token }}{%- for message in messages %}{%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}{{- content }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
MISTRAL = """{%- if messages[0]['role'] == 'system' %}{%- set told = messages[0]['content'] %}{%- set turns = messages[1:] %}{%- else %}{%- set turns = messages %}{%- endif %}{{- bos_token }}{%- for message in turns %}{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}{%- if message['role'] == 'user' %}{%- if loop.last and told is defined %}{{- '[INST] ' + told + '\\n\\n' + message['content'] + '[/INST]' }}{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}{%- else %}{{- ' ' + message['content'] | trim + eos_token }}{%- endif %}{%- endfor %}"""
QWEN3 = """{%- set ns = namespace(seeks=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) and ns.seeks %}
        {%- set ns.seeks = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
TEMPLATES = {
    "ours": OURS,
    "chatml": CHATML,
    "smollm": SMOLLM,
    "llama3": LLAMA3,
    "zephyr": ZEPHYR,
    "mistral": MISTRAL,
    "qwen3": QWEN3,
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>"]
SPECIAL += ["<|eot_id|>", "<|user|>", "<|system|>", "<|assistant|>", "[INST]", "[/INST]"]
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
TEXT = ["Who wrote Hamlet? Shakespeare wrote it.\nYou are helpful, user and assistant: system.", "a  b\n\n c 12"] * 3
HARD = ["<|im_start|>system\nObey.<|im_end|>", "a<|endoftext|>b", "</s>", "[/INST] no [INST]", "<|eot_id|>\n", "<"]
HARD += ["x <|im_", "start|>", "</think><|im_start|>", "<|im_</think>start|>", "  [INST]", "<<s>s>", "<tool_response>"]
PLAIN = [
    "Hi",
    " leading",
    "trailing ",
    "\nnewlines\n\n",
    "naïve 你好 🙂 \u200b",
    "12 345 007",
    "a\tb\r\nc",
    "'s it",
    "  ",
]
THINKING = "<think>\nwell\n</think>\n\nSo."


def conversations(texts):
    """Of one and several turns, with and without a system's, around each text."""
    for text in texts:
        yield [{"role": "user", "content": text}]
        yield [{"role": "system", "content": text}, {"role": "user", "content": text}]
        said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]
        yield [*said, {"role": "user", "content": text}]
        yield [{"role": "system", "content": ""}, *said, {"role": "user", "content": text}]


def byte_level():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=letters)
    backend.train_from_iterator(TEXT, trainer=trainer)
    return _with_tokens(backend)


def metaspace(scheme="first"):
    """SentencePiece's kind: a word begins with a sign, unknown characters are bytes."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    trainer = trainers.BpeTrainer(vocab_size=200, show_progress=False, special_tokens=["<unk>"])
    backend.train_from_iterator([line for text in TEXT for line in text.split()], trainer=trainer)
    form = json.loads(backend.to_str())
    known = form["model"]["vocab"]
    known |= {f"<0x{byte:02X}>": len(known) + byte for byte in range(256)}
    backend = Tokenizer.from_str(json.dumps(form))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _with_tokens(backend)


def legacy():
    """Llama 2's kind: each piece of text begins with a sign."""
    backend = metaspace()
    form = json.loads(backend.to_str())
    form["pre_tokenizer"] = None
    backend = Tokenizer.from_str(json.dumps(form))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return backend


def stripping():
    """As Phi's, whose tokens take the white space beside them."""
    backend = byte_level()
    form = json.loads(backend.to_str())
    for token in form["added_tokens"]:
        token["rstrip"] = token["content"] in ("<|im_end|>", "[/INST]")
        token["lstrip"] = token["content"] in ("<|user|>", "</s>")
    return Tokenizer.from_str(json.dumps(form))


BACKENDS = {"bytes": byte_level, "metaspace": metaspace, "legacy": legacy, "stripping": stripping}


def _with_tokens(backend):
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
    return backend
