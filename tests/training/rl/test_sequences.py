"""Sequences as ids and as texts."""

import chats
import torch
from tokenizers import processors

from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.training.rl.sequences import Sequences, texts


def test_ids_and_texts_are_those_of_prompt_and_response_without_padding(micro):
    encode, eos = micro.tokenizer.encode, micro.tokenizer.eos_id
    prompts, responses = ["the film", "a story is"], [" is good.", " bad"]
    rows = [[*encode(prompts[0]), *encode(responses[0]), eos], [*encode(prompts[1]), *encode(responses[1])]]
    tokens = torch.full((2, 40), encode("x")[0])
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row)] = torch.tensor(row)
    starts, lengths = torch.tensor([len(encode(text)) for text in prompts]), torch.tensor(list(map(len, rows)))
    sequences = Sequences(tokens, starts, lengths, torch.tensor([True, False]), torch.arange(2))
    assert sequences.ids() == ([encode(text) for text in prompts], [[*encode(responses[0]), eos], encode(responses[1])])
    assert texts(sequences, micro.tokenizer) == (prompts, responses)


def test_rows_that_are_taken_are_as_wide_as_is_said():
    tokens, lengths = torch.arange(15).view(3, 5), torch.tensor([5, 2, 3])
    sequences = Sequences(tokens, torch.tensor([1, 1, 2]), lengths, torch.tensor([True, False, True]), torch.arange(3))
    found = sequences.take(torch.tensor([2, 1]), 3)
    assert [field.tolist() for field in found] == [[[10, 11, 12], [5, 6, 7]], [2, 1], [3, 2], [True, False], [2, 1]]


def test_a_prompt_is_told_with_the_tokens_of_its_template_and_without_what_begins_it():
    backend = chats.byte_level()
    begin, user, end = (backend.token_to_id(token) for token in ("<s>", "<|user|>", "</s>"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    tokenizer = Tokenizer(backend, "</s>")
    hi, so = (backend.encode(text, add_special_tokens=False).ids for text in ("Hi", "So."))
    rows = torch.tensor([[begin, user, *hi, *so, end]])
    ends = torch.tensor([[2 + len(hi)], [rows.shape[1]]])
    assert texts(Sequences(rows, *ends, torch.tensor([True]), torch.tensor([0])), tokenizer) == (
        ["<|user|>Hi"],
        ["So."],
    )
