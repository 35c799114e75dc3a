import json

import chats
import pytest

from gpt_modules.data.demonstrations import encode_demonstrations
from gpt_modules.data.ppo import encode_prompts
from gpt_modules.data.reward import Comparisons
from gpt_modules.data.rows.chat import (
    encode_conversation,
    encode_conversations,
    encode_exchanges,
    fit_conversation,
    render_conversation,
)
from gpt_modules.data.rows.sources import load_rows
from gpt_modules.data.text.chat_template import ChatTemplate
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who wrote Hamlet?"},
    {"role": "assistant", "content": "Shakespeare."},
    {"role": "user", "content": "When?"},
]
OTHERS = [name for name in chats.TEMPLATES if name != "ours"]


def tokenizer_of(backend, template):
    return Tokenizer(backend(), "</s>", ChatTemplate(chats.TEMPLATES[template], tuple(chats.NAMES.items())))


def test_prompt_ends_where_the_assistant_speaks():
    expected = (
        "System: Be brief.\nUser: Who wrote Hamlet?\nAssistant: Shakespeare.<|endoftext|>\nUser: When?\nAssistant:"
    )
    assert render_conversation(MESSAGES, Tokenizer.gpt2()) == expected


def test_ours_encodes_as_its_pieces():
    """The form that models of this package have learnt from before there were templates."""
    tokenizer = Tokenizer.gpt2()
    pieces = ["System: Be brief.\nUser: Who wrote Hamlet?\nAssistant:", " Shakespeare.", "\nUser: When?\nAssistant:"]
    first, second, third = map(tokenizer.encode, pieces)
    assert encode_conversation(MESSAGES, tokenizer) == [*first, *second, tokenizer.eos_id, *third]
    (both,) = encode_exchanges([(MESSAGES, "1600.")], tokenizer)
    assert both == (encode_conversation(MESSAGES, tokenizer), [*tokenizer.encode(" 1600."), tokenizer.eos_id])


@pytest.mark.parametrize("kind", chats.BACKENDS)
@pytest.mark.parametrize("template", chats.TEMPLATES)
def test_ids_are_those_of_transformers(kind, template):
    from transformers import PreTrainedTokenizerFast

    tokenizer = tokenizer_of(chats.BACKENDS[kind], template)
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=chats.BACKENDS[kind](), chat_template=chats.TEMPLATES[template], **chats.NAMES
    )
    asked = [*chats.conversations([*chats.PLAIN, chats.THINKING])]
    expected = [
        theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) for messages in asked
    ]
    assert encode_conversations(asked, tokenizer) == expected


@pytest.mark.parametrize(
    ("kind", "template"), [*zip(chats.BACKENDS, ["qwen3", "llama3", "mistral", "zephyr"], strict=True)]
)
def test_control_tokens_are_those_of_the_template(kind, template):
    """As in a harmless conversation; what is said has the ids of text."""
    tokenizer = tokenizer_of(chats.BACKENDS[kind], template)
    control = {*tokenizer.turns.control.values()}
    (*plain,) = chats.conversations(["plain"])
    for text in chats.HARD:
        (*asked,) = chats.conversations([text])
        for ids, harmless in zip(*(encode_conversations(some, tokenizer) for some in (asked, plain)), strict=True):
            assert [i for i in ids if i in control] == [i for i in harmless if i in control], text


@pytest.mark.parametrize("template", chats.TEMPLATES)
def test_hard_texts_survive(template):
    tokenizer = tokenizer_of(chats.byte_level, template)
    for messages in chats.conversations(chats.HARD):
        ids = encode_conversation(messages, tokenizer)
        assert tokenizer.decode(ids, skip_special=False) == render_conversation(messages, tokenizer)


@pytest.mark.parametrize(
    ("kind", "template"), [*zip(chats.BACKENDS, ["qwen3", "llama3", "mistral", "zephyr"], strict=True)]
)
def test_a_prompt_is_the_same_with_and_without_its_answer(kind, template):
    tokenizer = tokenizer_of(chats.BACKENDS[kind], template)
    texts = [*chats.PLAIN, *chats.HARD]
    asked = [(messages, text) for text in texts for messages in chats.conversations([text])]
    exchanges = encode_exchanges(asked, tokenizer)
    assert [of.prompt for of in exchanges] == encode_conversations([messages for messages, _ in asked], tokenizer)
    control = {*tokenizer.turns.control.values()}
    for of in exchanges:
        assert of.answer[-1] == tokenizer.turns.end
        assert not control & {*of.answer[:-1]}


def test_whole_turns_are_left_out_and_the_system_stays():
    tokenizer = Tokenizer.gpt2()
    told, first, second = MESSAGES[:1], MESSAGES[1:3], MESSAGES[3:]
    whole = encode_conversation(MESSAGES, tokenizer)
    last = encode_conversation([*told, *second], tokenizer)
    assert fit_conversation(MESSAGES, tokenizer, len(whole)) == (whole, 0)
    assert fit_conversation(MESSAGES, tokenizer, len(whole) - 1) == (last, 1)
    assert fit_conversation(MESSAGES, tokenizer, 1) == (last, 1)
    longer = [*told, *first, *first, *second]
    assert fit_conversation(longer, tokenizer, len(whole)) == (whole, 1)
    answered = [*told, {"role": "assistant", "content": "Hello."}, *MESSAGES[1:]]  # before anybody asks
    assert fit_conversation(answered, tokenizer, len(last)) == (last, 1)


@pytest.mark.parametrize(
    "encode",
    [lambda of, to: encode_conversations(of, to), lambda of, to: encode_exchanges([(one, "So.") for one in of], to)],
)
def test_what_a_template_refuses_is_found_among_many(encode):
    tokenizer = tokenizer_of(chats.byte_level, "mistral")
    twice = [{"role": "user", "content": "Why?"}, {"role": "user", "content": "And how?"}]
    with pytest.raises(UserError, match=r"roles must alternate.*the user says 'And how\?'\)$"):
        encode([MESSAGES, twice], tokenizer)


@pytest.mark.parametrize(
    ("schema", "encode"),
    [
        ("sft", lambda rows, tokenizer: encode_demonstrations(rows, tokenizer, 4096, "train")),
        ("reward", lambda rows, tokenizer: Comparisons(lambda epoch: rows, tokenizer, 4096, "train")),
        ("ppo", lambda rows, tokenizer: encode_prompts(rows, tokenizer, 4096, "train")),
    ],
)
def test_what_a_template_refuses_is_named_with_its_row(tmp_path, schema, encode):
    why, so = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    more = {"sft": {}, "reward": {"chosen": "a", "rejected": "b"}, "ppo": {}}[schema]
    rows = [{"messages": [*asked, *([so] if schema == "sft" else [])]} | more for asked in ([why, so, why], [why, why])]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tokenizer = Tokenizer(chats.byte_level(), "</s>", ChatTemplate(chats.MISTRAL, tuple(chats.NAMES.items())))
    with pytest.raises(UserError, match=rf"^{path}:2: .*roles must alternate.* \(in the conversation in which"):
        encode(load_rows(str(path), "train", schema), tokenizer)
