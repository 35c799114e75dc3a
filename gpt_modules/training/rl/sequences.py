"""Prompts with their responses: what is scored, as ids and as text."""

from typing import NamedTuple

from jaxtyping import Bool, Int
from torch import Tensor

from gpt_modules.data.text.tokenizers import Tokenizer


class Sequences(NamedTuple):
    """Prompts and their responses, right-padded.

    tokens: (B, T) ids, prompt then response, 0 where there is nothing.
    prompt_lengths: (B,) tokens of the prompt.
    lengths: (B,) tokens of prompt and response, the one that ends it included.
    ended: (B,) True where the response came to its end and was not cut off.
    rows: (B,) which row of the data the prompt is from.
    """

    tokens: Int[Tensor, "B T"]
    prompt_lengths: Int[Tensor, "B"]
    lengths: Int[Tensor, "B"]
    ended: Bool[Tensor, "B"]
    rows: Int[Tensor, "B"]

    def take(self, rows: Int[Tensor, "N"], width: int) -> "Sequences":
        """These rows, of which the longest has `width` tokens."""
        tokens, *others = (field[rows] for field in self)
        return Sequences(tokens[:, :width], *others)

    def ids(self) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of prompts and of responses."""
        rows = zip(self.tokens.tolist(), self.prompt_lengths.tolist(), self.lengths.tolist(), strict=True)
        pairs = [(ids[:start], ids[start:end]) for ids, start, end in rows]
        return [prompt for prompt, _ in pairs], [response for _, response in pairs]


def texts(sequences: Sequences, tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Prompts and responses as text: a conversation as its template has it, without what begins it, and a response
    without what ends it.
    """
    prompts, responses = sequences.ids()
    asked = [prompt[1:] if prompt[0] == tokenizer.bos_id else prompt for prompt in prompts]
    told = [tokenizer.decode(prompt, skip_special=False) for prompt in asked]
    return told, [tokenizer.within.decode(ids) for ids in responses]
