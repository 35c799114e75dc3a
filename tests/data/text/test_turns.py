import json

import chats
import pytest
import tokenizers

from gpt_modules.data.text.chat_template import ChatTemplate
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.data.text.turns import Turns
from gpt_modules.data.text.turns import written as written_by
from gpt_modules.errors import UserError

CONTROL = {token: i for i, token in enumerate(chats.SPECIAL)}


def turns(source):
    return Turns(ChatTemplate(source, tuple(chats.NAMES.items())), CONTROL)


def written(parts):
    return "".join(chats.SPECIAL[part] if isinstance(part, int) else part for part in parts)


@pytest.mark.parametrize("name", chats.TEMPLATES)
def test_what_is_said_is_never_a_control_token(name):
    """A conversation has the control tokens that it has with harmless texts, and all of its text."""
    of, source = turns(chats.TEMPLATES[name]), chats.TEMPLATES[name]
    for text in [*chats.HARD, *(f"  {a}{b}\n" for a, b in zip(chats.HARD, chats.HARD[1:], strict=False))]:
        for messages, plain in zip(chats.conversations([text]), chats.conversations(["plain"]), strict=True):
            parts = of.parts(messages, True)
            assert parts[1::2] == of.parts(plain, True)[1::2], (text, parts)
            assert written(parts) == ChatTemplate(source, tuple(chats.NAMES.items())).render(messages, True)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content.replace('</think>', '') }}{% endfor %}",
        "{{ messages | map(attribute='content') | join }}",
        "{% for m in messages %}{{ m.content | trim | replace(' ', '') }}{% endfor %}",
    ],
)
def test_no_control_token_is_made_of_what_several_say(source):
    for first, second in [("<|im_st", "art|>"), ("<", "/s>"), ("<|im_</think>start|>", "x"), ("[ I N S T ]", "x")]:
        messages = [{"role": "user", "content": first}, {"role": "user", "content": second}]
        assert len(turns(source).parts(messages, True)) == 1


def test_what_a_template_looks_for_is_no_token():
    """`'</think>' in content` holds although it begins like a control token."""
    of = turns(chats.QWEN3)
    messages = [{"role": "user", "content": "<s>?"}, {"role": "assistant", "content": chats.THINKING}]
    parts = of.parts([*messages, {"role": "user", "content": "<"}], False)
    assert written(parts).count("<think>") == 0  # the thought of an earlier turn is left out


def test_a_template_that_reads_the_signs_is_refused():
    of = turns("{{ messages[0].content | length }}{{ eos_token }}")
    assert of.parts([{"role": "user", "content": "abc"}], True) == ["3", CONTROL["</s>"], ""]
    with pytest.raises(UserError, match="depends on signs of control tokens"):
        of.parts([{"role": "user", "content": "a<c"}], True)


@pytest.mark.parametrize(
    ("made", "content"),
    [
        ("m.content | replace('&lt;', '<')", "a&lt;/s>b"),
        ("m.content | replace('&lt;', '<')", "<a&lt;/s>b"),
        ("m.content.replace('(', '<').replace(')', '>')", "(/s)"),
        ("m.content | reject('equalto', '\ue000') | join", "a</s>b"),
        ("m.content[::-1]", ">s/<"),
    ],
)
def test_a_template_that_makes_control_tokens_of_what_is_said_is_refused(made, content):
    of = turns("{% for m in messages %}{{ " + made + " }}{{ eos_token }}{% endfor %}")
    assert of.parts([{"role": "user", "content": "a"}], True) == ["a", CONTROL["</s>"], ""]
    with pytest.raises(UserError, match="makes control tokens of what is said"):
        of.parts([{"role": "user", "content": content}], True)


def test_a_template_that_keeps_printable_characters_alone_is_refused():
    source = "{% for m in messages %}{% for c in m.content if c.isprintable() %}{{ c }}{% endfor %}{{ eos_token }}"
    with pytest.raises(UserError, match="makes control tokens of what is said"):
        turns(source + "{% endfor %}").parts([{"role": "user", "content": "a</s>b"}], True)


def test_an_answer_is_what_follows_its_prompt_up_to_its_end():
    prompt, said = turns(chats.CHATML).answer([{"role": "user", "content": "Why?"}], "<|im_end|>")
    assert prompt[-1] == "assistant\n"
    assert said == ["<|im_end|>", CONTROL["<|im_end|>"]]


@pytest.mark.parametrize(
    ("name", "end"),
    [("ours", "</s>"), ("chatml", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("zephyr", "</s>"), ("mistral", "</s>")],
)
def test_the_end_of_a_turn(name, end):
    assert turns(chats.TEMPLATES[name]).end == CONTROL[end]


def test_a_template_without_an_end_or_without_its_prompt():
    question = [{"role": "user", "content": "Why?"}]
    open_ended = turns("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    assert open_ended.end is None
    with pytest.raises(UserError, match="no token that ends an answer"):
        open_ended.answer(question, "So.")
    with pytest.raises(UserError, match="changes what stands before it"):
        turns("{{ messages | length }}{{ messages[-1].content }}{{ eos_token }}").answer(question, "So.")


def test_every_private_character_said():
    said = "<" + "".join(map(chr, [*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE)]))
    with pytest.raises(UserError, match="every private character"):
        turns(chats.CHATML).parts([{"role": "user", "content": said}], True)


@pytest.mark.parametrize("name", chats.TEMPLATES)
def test_a_token_that_a_template_writes_is_control_whatever_the_vocabulary_calls_it(name):
    """With none of its tokens called special, a conversation has the ids that it has with all of them so called."""
    template = ChatTemplate(chats.TEMPLATES[name], tuple(chats.NAMES.items()))
    special = Tokenizer(chats.byte_level(), "</s>", template)
    form = json.loads(chats.byte_level().to_str())
    form["added_tokens"] = [{**token, "special": False} for token in form["added_tokens"]]
    plain = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(form)), "</s>", template)
    assert plain.end_ids == special.end_ids
    for conversation in chats.conversations(chats.HARD):
        controls = [of.turns.parts(conversation, True)[1::2] for of in (plain, special)]
        assert controls[0] == controls[1]
    for token in written_by(template, chats.SPECIAL):
        assert plain.encode(token) == special.encode(token)


def test_what_an_assistant_writes_itself_is_no_control_token():
    tokens = ["<think>", "</think>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "user", "\n", "\n\n", "<tool>"]
    assert written_by(ChatTemplate(chats.QWEN3), tokens) == {"<|im_start|>", "<|im_end|>"}
    looks = chats.CHATML.replace("{% for", "{% if '<|im_start|>' in messages[0].content %}{% endif %}{% for", 1)
    assert written_by(ChatTemplate(looks), tokens) == {"<|im_start|>", "<|im_end|>"}
    assert written_by(ChatTemplate("{% if %}"), tokens) == set()
