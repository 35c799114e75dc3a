"""Sequences as ids and as texts."""

import torch

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
