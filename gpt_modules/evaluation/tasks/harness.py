"""lm-evaluation-harness on our folders: its tasks and prompts, our scoring. Version 0.4.13; the extra `eval`.

    python -m gpt_modules.evaluation.tasks.harness run --model gpt_modules --model_args model=FOLDER --tasks TASKS

The words are those of its own command `lm-eval`, to which importing this module makes the model `gpt_modules` known.
Log-probabilities are those of its model `hf` on the same folder, with one difference: where a text happens to contain
the characters `<|endoftext|>`, those are read as characters and never as the end token.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from gpt_modules.backbone import generate, load_pretrained
from gpt_modules.data.text.tokenizers import load_fitting
from gpt_modules.errors import UserError
from gpt_modules.evaluation.tasks.perplexity import document_nats
from gpt_modules.evaluation.tasks.prompts import encode_pairs
from gpt_modules.evaluation.tasks.scoring import continuation_logprobs

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as error:
    raise UserError("lm_eval: the package is not installed; pip install 'gpt-modules[eval]'") from error

# Tokens said before the answers are searched for what ends them; then twice as many, and so on.
_FIRST_PIECE = 16


@register_model("gpt_modules")
class HarnessModel(TemplateLM):  # type: ignore[misc]  # the package has no types
    """A model folder as the harness wants one.

    Args:
        model: Folder, or name on the hub.
        device: By default a GPU where there is one.
        dtype: Type of the weights: float32, bfloat16, float64.
        max_tokens_a_batch: As of `continuation_logprobs`.
        batch_size, max_batch_size: What the harness always gives. Batches here are measured in tokens.
    """

    def __init__(
        self,
        model: str,
        device: str | None = None,
        dtype: str = "float32",
        max_tokens_a_batch: int = 8192,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if dtype not in ("float32", "bfloat16", "float64"):
            raise UserError(f"dtype: found {dtype!r}, expected float32, bfloat16 or float64")
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = load_pretrained(model, "gpt").to(self._device, getattr(torch, dtype))
        self.text = load_fitting(model, self.model.config.vocab_size)
        self.max_tokens = max_tokens_a_batch

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        return self.text.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What the first token of a text is predicted from."""
        return self.text.start_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, behind the begin token where the family has one. The harness parts context and continuation by
        this.
        """
        return self.text.encode(string) if add_special_tokens is False else self.text.opening([string])[0]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The harness's own tokens of both; where these leave one of them without any, because one token reaches across
        the border or the context is white space alone, that token is the continuation's (`encode_pairs`).

        Raises:
            UserError: The continuation is empty.
        """
        before, after = super()._encode_pair(context, continuation)
        if not (before and after):
            ((before, after),) = encode_pairs(self.text, [(context, continuation)], end_token=False)
        if not after:
            raise UserError(f"continuation of {context[-40:]!r}: found no token in {continuation!r}, expected some")
        return before, after

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        rows = [(context, continuation) for _, context, continuation in requests]
        answers = [(score.logprob, score.greedy) for score in continuation_logprobs(self.model, rows, self.max_tokens)]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of each whole text, from the end or begin token on, windows not overlapping."""
        documents = [self.text.encode(request.args[0]) for request in requests]
        nats = document_nats(self.model, documents, self.prefix_token_id, max_tokens_a_batch=self.max_tokens)
        for request, lost in zip(requests, nats, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, -lost)
        return [-lost for lost in nats]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What greedy decoding says, up to the first of the request's `until` or the end token."""
        alike: dict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            alike[_settings(request.args[1])].append(number)
        answers = [""] * len(requests)
        for (limit, until), numbers in alike.items():
            prompts = [self._prompt(requests[number].args[0], limit) for number in numbers]
            for number, answer in zip(numbers, self._answers(prompts, limit, until), strict=True):
                answers[number] = answer
                self.cache_hook.add_partial("generate_until", requests[number].args, answer)
        return answers

    def _prompt(self, text: str, limit: int) -> list[int]:
        """A prompt that is too long loses its beginning."""
        room = self.model.config.n_positions - limit
        if room < 1:
            raise UserError(
                f"max_gen_toks: found {limit}, expected less than n_positions = {self.model.config.n_positions}"
            )
        return (self.text.opening([text])[0] or [self.eot_token_id])[-room:]

    def _answers(self, prompts: list[list[int]], limit: int, until: tuple[str, ...]) -> list[str]:
        """In pieces of growing length: `generate` knows no texts that end an answer, and most answers are short.

        To read a prompt and its answer so far once more for each piece costs less than to say what nobody wants.
        """
        said: list[list[int]] = [[] for _ in prompts]
        speaking, length, piece = list(range(len(prompts))), 0, min(_FIRST_PIECE, limit)
        while speaking and piece:
            for batch in self._batches(speaking, prompts, length + piece):
                texts = [prompts[i] + said[i] for i in batch]
                found = generate(
                    self.model, texts, max_new_tokens=piece, eos_id=self.eot_token_id, temperature=0.0
                )  # fmt: skip
                for i, tokens, real in zip(batch, found.tokens.tolist(), found.mask.sum(1).tolist(), strict=True):
                    said[i] += tokens[:real]
            length += piece
            piece = min(length, limit - length)
            speaking = [i for i in speaking if not self._ended(said[i], until)]
        return [_cut(self.text.within.decode(tokens), until) for tokens in said]

    def _batches(self, rows: list[int], prompts: list[list[int]], length: int) -> list[list[int]]:
        """Prompts of alike length together, as many as fit with `length` tokens of answer."""
        batches: list[list[int]] = []
        for i in sorted(rows, key=lambda i: -len(prompts[i])):
            widest = len(prompts[batches[-1][0]]) + length if batches else 0
            if not batches or (len(batches[-1]) + 1) * widest > self.max_tokens:
                batches.append([])
            batches[-1].append(i)
        return batches

    def _ended(self, tokens: list[int], until: tuple[str, ...]) -> bool:
        return tokens[-1] == self.eot_token_id or any(end in self.text.decode(tokens) for end in until)


def _settings(given: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Most tokens to say and the texts that end an answer.

    Raises:
        UserError: A task that wants anything but greedy decoding.
    """
    settings = normalize_gen_kwargs(given)
    if settings["do_sample"] and settings.get("temperature", 1.0) > 0.0:
        raise UserError(f"generation_kwargs: found do_sample = true in {given}, expected greedy decoding")
    if settings.get("num_beams", 1) != 1:
        raise UserError(f"generation_kwargs: found num_beams in {given}, expected greedy decoding")
    return settings["max_gen_toks"], tuple(end for end in settings["until"] if end)


def _cut(text: str, until: tuple[str, ...]) -> str:
    for end in until:
        text = text.split(end)[0]
    return text


def main() -> None:
    """The harness's own command line."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
