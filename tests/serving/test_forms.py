"""Answers in the form that OpenAI documents, field by field."""

import math

from gpt_modules.backbone.decoding.batching import Likely
from gpt_modules.data.text.spelling import Spelling
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.serving.forms import Form, error_of, usage_of

TOKENIZER = Tokenizer.gpt2()
SPELLING = Spelling(TOKENIZER)
A, B = TOKENIZER.encode(" film")[0], TOKENIZER.encode("日")[0]
LIKELY = [Likely(A, -0.5, ((A, -0.5),)), Likely(B, -math.inf, ((A, -1.0),))]


def test_a_whole_chat():
    form = Form("chat.completion", "m", "fp_1", SPELLING, "1", 5)
    found = form.whole([form.choice(0, "hi", LIKELY, "stop")], usage_of(2, 3))
    byte = {"token": "bytes:\\xe6\\x97", "logprob": -9999.0, "bytes": [0xE6, 0x97]}
    film = {"token": " film", "logprob": -0.5, "bytes": list(b" film")}
    assert found == {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 5, "model": "m", "system_fingerprint": "fp_1",
        "choices": [{
            "index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi", "refusal": None},
            "logprobs": {"refusal": None, "content": [
                {**film, "top_logprobs": [film]}, {**byte, "top_logprobs": [{**film, "logprob": -1.0}]},
            ]},
        }],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
    }  # fmt: skip


def test_a_chat_in_chunks():
    form = Form("chat.completion", "m", "fp_1", SPELLING, "1", 5)
    names = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "m"}
    parts = [form.part(0, None, None, None), form.part(0, "hi", None, None), form.part(0, "", None, "stop")]
    assert [part["delta"] for part in parts] == [
        {"role": "assistant", "content": "", "refusal": None}, {"content": "hi"}, {}
    ]  # fmt: skip
    assert form.chunk(parts) == {**names, "system_fingerprint": "fp_1", "choices": parts}
    assert form.chunk([], usage_of(1, 1))["usage"]["total_tokens"] == 2


def test_log_probabilities_of_a_completion():
    form = Form("text_completion", "m", "fp_1", SPELLING, "1", 5)
    likely = [Likely(A, math.nan, ()), *LIKELY]
    found = form.choice(0, " film film", likely, "length", offset=4)
    assert found["logprobs"] == {
        "tokens": [" film", " film", "bytes:\\xe6\\x97"],
        "token_logprobs": [None, -0.5, -9999.0],
        "top_logprobs": [None, {" film": -0.5}, {" film": -1.0, "bytes:\\xe6\\x97": -9999.0}],
        "text_offset": [4, 9, 14],
    }
    assert form.choice(0, "x", None, "stop")["logprobs"] is None


def test_an_error():
    assert error_of("m", "t", "p") == {"error": {"message": "m", "type": "t", "param": "p", "code": None}}


def test_a_control_token_has_a_place_in_an_echo_and_none_in_an_answer():
    """An answer's text goes on without it: what follows it stands where it would have stood."""
    form = Form("text_completion", "m", "fp_1", SPELLING, "1", 5)
    ids = [A, TOKENIZER.eos_id, A, A, TOKENIZER.eos_id, A]
    text = SPELLING.text_of(ids[:3]) + " film film"
    told = form.choice(0, text, [Likely(id, -1.0, ()) for id in ids], "stop", echoed=3)["logprobs"]
    assert told["tokens"] == [" film", "<|endoftext|>", " film", " film", "<|endoftext|>", " film"]
    assert [text[at:].startswith(" film") for at in told["text_offset"]] == [True, False, True, True, True, True]
    assert told["text_offset"] == [0, 5, 18, 23, 28, 28]
