"""A model folder that continues prompts: in batches of bounded size, in order, each with noise of its own."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gpt_modules.commands.arguments import Arguments, add_device, device_of, number, whole_number
from gpt_modules.errors import UserError

if TYPE_CHECKING:
    import argparse

    from gpt_modules.backbone import GPT
    from gpt_modules.data.text.tokenizers import Tokenizer

MODEL = "an exported folder, a transformers folder, or a hub name"
BATCH_TOKENS = 4096  # of prompts and answers at a time, padding among them: their keys and values fill memory
USUAL_LENGTH = 64  # tokens of an answer
LARGEST_WINDOW = 256  # prompts that are read ahead, to find those of like length


class Prompt(NamedTuple):
    """Token ids to continue. place: what makes its noise its own, such as its number. name: for what is said of it."""

    ids: list[int]
    place: str
    name: str


class Answer(NamedTuple):
    """A continuation, without the end token; whether it came to its end or was cut off."""

    text: str
    ended: bool


class Sampling(NamedTuple):
    """How tokens are drawn, as `backbone.generate` has it."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


def speaking_parser(command: str, description: str) -> Arguments:
    """The arguments that choose a model and how it speaks."""
    parser = Arguments(prog=f"gpt {command}", description=description)
    parser.add_argument("--model", required=True, help=MODEL)
    add_sampling(parser)
    return parser


def add_sampling(parser: Arguments) -> None:
    """How a model speaks, and on which device: for `sampling_of` and `device_of`."""
    parser.add_argument("--max-new-tokens", type=whole_number(1), metavar="N",
                        help=f"of an answer (default {USUAL_LENGTH}, or half the model's context, whichever is "
                        "less)")  # fmt: skip
    parser.add_argument("--temperature", type=number(lambda value: value >= 0, "a number from 0"), default=1.0,
                        help="0 takes the likeliest token (default 1)")  # fmt: skip
    parser.add_argument("--top-k", type=whole_number(1), metavar="K", help="sample from the K likeliest tokens")
    parser.add_argument("--top-p", type=number(lambda value: 0 < value <= 1, "a number above 0, up to 1"), metavar="P",
                        help="sample from the smallest set of tokens with probability P")  # fmt: skip
    parser.add_argument("--seed", type=whole_number(0), default=0)
    add_device(parser)


def sampling_of(options: "argparse.Namespace", *models: "GPT") -> Sampling:
    """What `add_sampling` has read; an answer whose length nobody has said leaves half of each model's context to what
    stands before it.

    Raises:
        UserError: a filter of the distribution that nothing is drawn from.
    """
    usual = min([USUAL_LENGTH, *(max(1, model.config.n_positions // 2) for model in models)])
    given = {name: getattr(options, name) for name in Sampling._fields}
    sampling = Sampling(**{**given, "max_new_tokens": given["max_new_tokens"] or usual})
    for name in ("top_k", "top_p") if sampling.temperature == 0 else ():
        if (value := getattr(sampling, name)) is not None:
            raise UserError(f"--{name.replace('_', '-')}: found {value} with --temperature 0, which takes the "
                            "likeliest token, expected a temperature above 0")  # fmt: skip
    return sampling


class Speaker:
    """A language model and its tokenizer, and how it speaks.

    Raises:
        UserError: An answer of `sampling.max_new_tokens` leaves no room for a prompt.
    """

    def __init__(self, model: "GPT", tokenizer: "Tokenizer", sampling: Sampling) -> None:
        context = model.config.n_positions
        if sampling.max_new_tokens >= context:
            found = f"found {sampling.max_new_tokens}, expected fewer than the model's context of {context}"
            raise UserError(f"--max-new-tokens: {found} tokens")
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.room = context - sampling.max_new_tokens
        """Tokens of a prompt that the model can see."""

    @classmethod
    def open(cls, options: "argparse.Namespace") -> "Speaker":
        """That of a command line."""
        from gpt_modules.commands.opening import open_language_model

        sampling_of(options)  # which refuses what needs no model
        model, tokenizer = open_language_model(options.model, device_of(options))
        return cls(model, tokenizer, sampling_of(options, model))

    def answers(self, prompts: Iterable[Prompt]) -> Iterator[Answer]:
        """One continuation a prompt, in order, as they come.

        Prompts are read ahead of their answers, the first alone, then twice as many each time, up to `LARGEST_WINDOW`.
        An empty prompt begins with the end token; one that is too long loses its beginning, which stderr is told.
        """
        source, size = iter(prompts), 1
        while window := list(islice(source, size)):
            rows = [self._fitting(prompt) for prompt in window]
            said: dict[int, Answer] = {}
            next_one = 0
            for batch in _batches([len(row) + self.sampling.max_new_tokens for row in rows]):
                answers = self._continue([rows[i] for i in batch], [window[i].place for i in batch])
                said |= dict(zip(batch, answers, strict=True))
                while next_one in said:
                    yield said.pop(next_one)
                    next_one += 1
            size = min(2 * size, LARGEST_WINDOW)

    def _fitting(self, prompt: Prompt) -> list[int]:
        if (lost := len(prompt.ids) - self.room) > 0:
            limit = f"the context of {self.model.config.n_positions} less --max-new-tokens"
            sys.stderr.write(f"{prompt.name}: {len(prompt.ids)} tokens, the first {lost} are not read: there is room "
                             f"for {self.room}, {limit}\n")  # fmt: skip
        return (prompt.ids or [self.tokenizer.start_id])[-self.room :]

    def _continue(self, rows: Sequence[list[int]], places: Sequence[str]) -> list[Answer]:
        from gpt_modules.backbone import generate, noise_of

        most, temperature, top_k, top_p, seed = self.sampling
        drawn = generate(
            self.model,
            rows,
            max_new_tokens=most,
            eos_id=self.tokenizer.end_ids,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=[noise_of(f"{seed} {place}") for place in places],
        )
        ids = [row[keep].tolist() for row, keep in zip(drawn.tokens, drawn.mask, strict=True)]
        return [Answer(self.tokenizer.within.decode(row), row[-1] in self.tokenizer.end_ids) for row in ids]


def _batches(widths: Sequence[int]) -> list[list[int]]:
    """Numbers of rows, like widths together, up to `BATCH_TOKENS` with padding; first the batch of the first row."""
    batches: list[list[int]] = []
    for i in sorted(range(len(widths)), key=lambda i: -widths[i]):
        if not batches or (len(batches[-1]) + 1) * widths[batches[-1][0]] > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(i)
    return sorted(batches, key=min)


def folder_texts(folder: Path, prompts: Sequence[str], max_new_tokens: int, seed: int) -> list[str]:
    """What a stage's model says to these prompts, up to its context; the same noise for every stage."""
    import torch

    from gpt_modules.commands.opening import open_language_model

    model, tokenizer = open_language_model(str(folder), torch.device("cpu"))
    most = min(max_new_tokens, model.config.n_positions - 1)
    speaker = Speaker(model, tokenizer, Sampling(most, temperature=0.7, seed=seed))
    rows = enumerate(tokenizer.opening(prompts), start=1)
    return [said.text for said in speaker.answers(Prompt(ids, str(n), f"prompt {n}") for n, ids in rows)]
