import chats
import pytest

from gpt_modules.data.demonstrations import encode_demonstrations
from gpt_modules.data.rows.chat import encode_conversation
from gpt_modules.data.text.chat_template import ChatTemplate
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError

TOLD = [{"role": "system", "content": "Be brief."}]
FIRST = [{"role": "user", "content": "Who wrote Hamlet?"}, {"role": "assistant", "content": "Shakespeare."}]
SECOND = [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "1600."}]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.gpt2()


def chatting(template):
    return Tokenizer(chats.byte_level(), "</s>", ChatTemplate(chats.TEMPLATES[template], tuple(chats.NAMES.items())))


def test_long_rows_are_cut_or_dropped_and_counted_once(tokenizer, caplog):
    rows = [
        {"prompt": "a", "response": " b"},
        {"prompt": "a", "response": " b" * 50},
        {"prompt": " a" * 50, "response": " b"},
    ]
    kept = encode_demonstrations(rows, tokenizer, 10, "train")
    assert [len(example.tokens) for example in kept] == [3, 11]
    assert kept[1].tokens[-1] != tokenizer.eos_id
    (record,) = caplog.records
    assert record.getMessage() == (
        "train: of 3 rows, 1 are cut to the context of 10 tokens, 1 whose prompt fills it are left out"
    )
    with pytest.raises(UserError, match="train: found no row that fits a context of 10 tokens"):
        encode_demonstrations(rows[2:], tokenizer, 10, "train")


def test_a_row_without_tokens_is_left_out_and_not_counted_as_cut(caplog):
    tokenizer = Tokenizer.train(["some words"] * 3, 270, "gpt1")
    rows = [{"prompt": "\x07", "response": "\x07"}, {"prompt": "some", "response": "words"}]
    assert len(encode_demonstrations(rows, tokenizer, 10, "train")) == 1
    assert "of 2 rows, 0 are cut to the context of 10 tokens, 1 " in caplog.text


def learned(example, tokenizer):
    return tokenizer.decode(example.tokens[example.learned].tolist(), skip_special=False)


def test_every_answer_of_a_conversation_is_learned_with_its_end_and_nothing_else(tokenizer):
    (example,) = encode_demonstrations([{"messages": [*TOLD, *FIRST, *SECOND]}], tokenizer, 128, "x")
    assert learned(example, tokenizer) == " Shakespeare.<|endoftext|> 1600.<|endoftext|>"
    prompt = encode_conversation([*TOLD, *FIRST, *SECOND[:1]], tokenizer)
    assert example.tokens[: len(prompt)].tolist() == prompt


@pytest.mark.parametrize("template", ["ours", "llama3", "qwen3"])
def test_each_answer_stands_behind_the_ids_of_its_prompt(template):
    """Over the hard corpus: what is asked in chat, and what follows it, is what was learned; each answer once."""
    tokenizer = chatting(template)
    for text in [*chats.PLAIN, *chats.HARD, chats.THINKING]:
        for asked in chats.conversations([text]):
            messages = [*asked, {"role": "assistant", "content": text}]
            turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
            prompts = [encode_conversation(messages[:i], tokenizer) for i in turns]
            examples = encode_demonstrations([{"messages": messages}], tokenizer, 4096, "x")
            begins = [
                example.tokens[:i].tolist()
                for example in examples
                for i in range(1, len(example.tokens))
                if example.learned[i] and not example.learned[i - 1]
            ]
            assert begins == prompts
            ends = sum((example.tokens[example.learned] == tokenizer.turns.end).sum() for example in examples)
            assert ends == len(turns)


def test_a_template_that_forgets_thoughts_gives_each_answer_its_own_example():
    tokenizer = chatting("qwen3")
    turns = [*FIRST[:1], {"role": "assistant", "content": chats.THINKING}, *SECOND]
    first, second = encode_demonstrations([{"messages": turns}], tokenizer, 4096, "x")
    assert learned(first, tokenizer) == "<think>\nwell\n</think>\n\nSo.<|im_end|>"
    assert learned(second, tokenizer) == "<think>\n\n</think>\n\n1600.<|im_end|>"


def test_oldest_turns_are_left_out_whole_and_counted(tokenizer, caplog):
    messages = [*TOLD, *FIRST, *SECOND]
    answer = [*tokenizer.encode(" 1600."), tokenizer.eos_id]
    whole = len(encode_conversation(messages[:-1], tokenizer)) + len(answer)
    (example,) = encode_demonstrations([{"messages": messages}], tokenizer, whole - 1, "x")
    assert len(example.tokens) == whole
    assert not caplog.records
    first, second = encode_demonstrations([{"messages": messages}], tokenizer, whole - 2, "x")
    assert learned(first, tokenizer) == " Shakespeare.<|endoftext|>"
    assert second.tokens.tolist() == encode_conversation([*TOLD, *SECOND[:1]], tokenizer) + answer
    (record,) = caplog.records
    assert record.getMessage() == f"x: 1 conversations lose their oldest turns in a context of {whole - 2} tokens"


def test_a_template_without_an_end_is_refused_before_any_work():
    open_ended = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(UserError, match="no token that ends an answer"):
        encode_demonstrations([{"messages": FIRST}], Tokenizer(chats.byte_level(), "</s>", open_ended), 64, "x")


def test_weights_and_the_last_answer(tokenizer):
    unlearned = [FIRST[0], {**FIRST[1], "weight": 0}, *SECOND]
    for messages, turns in ((unlearned, "all"), ([*FIRST, *SECOND], "last")):
        (example,) = encode_demonstrations([{"messages": messages}], tokenizer, 128, "x", turns)
        assert learned(example, tokenizer) == " 1600.<|endoftext|>"
        assert "Shakespeare" in tokenizer.decode(example.tokens.tolist())
