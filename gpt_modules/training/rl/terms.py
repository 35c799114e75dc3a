"""What says a score of a response: a frozen reward model, on ids or through text, or a function of the user's own."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gpt_modules.backbone import RewardModel, load_pretrained, model_digest
from gpt_modules.data.collate import pad_right
from gpt_modules.data.rows.chat import as_text, encode_answers, encode_asked
from gpt_modules.data.text.tokenizers import Tokenizer, load_fitting
from gpt_modules.errors import UserError
from gpt_modules.scoring import further_arguments, import_reward, source_digest, text_scores, unknown_argument
from gpt_modules.storage.comparisons import Prompt
from gpt_modules.training.rl.sequences import Sequences, texts

log = logging.getLogger(__name__)

MESSAGES = "messages"  # the column that has a conversation
OF_ANSWERS = ("ended", "token_ids", "prompt_token_ids")
"""What a function may ask for of each response, beside the columns of its prompt's row."""


@runtime_checkable
class Columns(Protocol):
    """The data's further columns, see `PPODataModule`."""

    def columns(self) -> Mapping[str, int]:
        """Names, each with the number of rows that lack it."""

    def column(self, name: str, rows: Sequence[int]) -> list[Any]:
        """What it holds in these rows."""


class ModelScores:
    """A frozen reward model as a term. Its head and its constants stay float32, whatever the trunk becomes.

    It reads the policy's token ids as they are. Where its tokenizer is another one it reads texts in its own tokens,
    where its chat template is, conversations by its own; a warning says so. After a response that came to its end it
    reads what ended one in its training, whatever did so here: what the template writes behind an answer in a
    conversation, else the end-of-text token. After one that was cut off it does not.

    Args:
        tokenizer: the policy's.
        place: brings a trunk to the device and the precision of the run.
        data: where the prompts are from.
    """

    def __init__(
        self,
        folder: str,
        tokenizer: Tokenizer,
        place: Callable[[nn.Module], nn.Module],
        data: Columns | None = None,
    ) -> None:
        self.folder, self.tokenizer, self.data = folder, tokenizer, data
        self.talks = data is not None and MESSAGES in data.columns()  # once: it counts all rows
        self.model = open_reward_model(folder)
        self.own = load_fitting(folder, self.model.config.vocab_size)
        self.digest: str | None = model_digest(self.model)
        trunk = place(self.model.decoder)
        self.model.to(next(trunk.parameters()).device)
        other = "tokenizer" if not tokenizer.reads_like(self.own) else "chat template" if self.through_text else None
        if other is not None:
            log.warning("%s: its %s is not the policy's: it reads texts, encoded anew in its own tokens", folder, other)

    @cached_property
    def through_text(self) -> bool:
        """Whether its ids are others than the policy's."""
        return not self.tokenizer.reads_like(self.own) or (
            self.talks and not self.tokenizer.template.reads_like(self.own.template)
        )

    def _asked(self, sequences: Sequences) -> list[Prompt] | None:
        """The conversations of these rows; None: they are plain prompts."""
        if self.data is None or not self.talks:
            return None
        return self.data.column(MESSAGES, sequences.rows.tolist())

    def __call__(self, sequences: Sequences) -> Float[Tensor, "B"]:
        """The model's score at the last token of each row.

        Raises:
            UserError: a text has more of its tokens than its context.
        """
        scores: Tensor = self.model(*(self._anew(sequences) if self.through_text else self._closed(sequences)))
        return scores

    def _closed(self, sequences: Sequences) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B"]]:
        """Ids with the token that its training ended answers with, where another one ended the response."""
        tokens, _, lengths, ended, _ = sequences
        end = (self.own.turns.end if self.talks else None) or self.own.eos_id
        open_ended = ended & (tokens.gather(1, lengths[:, None] - 1)[:, 0] != end)
        if not bool(open_ended.any()):
            return tokens, lengths
        tokens = torch.cat([tokens, tokens.new_zeros(len(tokens), 1)], 1)
        tokens = tokens.scatter(1, lengths[:, None], torch.where(open_ended, end, 0)[:, None])
        return tokens, lengths + open_ended

    def _anew(self, sequences: Sequences) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B"]]:
        """Its own ids of prompt and response, as in its training (`data.reward`)."""
        prompts, responses = texts(sequences, self.tokenizer)
        asked = self._asked(sequences) or prompts
        pairs = encode_answers([*zip(asked, responses, strict=True)], self.own)
        ends = sequences.ended.tolist()
        rows = [[*of.prompt, *(of.answer if ended else of.answer[:-1])] for of, ended in zip(pairs, ends, strict=True)]
        for row, prompt in zip(rows, prompts, strict=True):
            self._expect_room(len(row), f"of an answer to {prompt[:40]!r}, its prompt among them")
        device = sequences.tokens.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        return pad_right([torch.tensor(row).numpy() for row in rows]).to(device), lengths

    def check_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        """Of a model that reads texts: whether prompts, in the policy's tokens, leave room for an answer.

        Raises:
            UserError: one does not; before the first response.
        """
        if not self.through_text:
            return
        told = sorted({self.tokenizer.decode(prompt, skip_special=False) for prompt in prompts})
        for prompt, ids in zip(told, encode_asked(told, self.own), strict=True):
            self._expect_room(len(ids) + 2, f"of the prompt {prompt[:40]!r}, an answer's first and the end token")

    def _expect_room(self, count: int, what: str) -> None:
        if count > (room := self.model.config.n_positions):
            raise UserError(f"rewards: {self.folder}: found {count} of its tokens {what}, expected at most its context "
                            f"of {room}; data.max_prompt_tokens leaves out longer prompts")  # fmt: skip


class FunctionScores:
    """A function on texts as a term; it gets `prompts`, conversations among them as `as_text` has them, and
    `responses`; and by name what its signature asks for beside them: `ended`, `token_ids`, `prompt_token_ids`, or a
    column of the prompts' rows, each a list; where it takes `**columns`, all of these but for columns that some rows
    lack.

    Raises:
        UserError: there is no such function, or it asks for what there is not.
    """

    def __init__(self, name: str, tokenizer: Tokenizer, data: Columns | None = None) -> None:
        self.name, self.tokenizer, self.function, self.data = name, tokenizer, import_reward(name), data
        self.digest = source_digest(name, self.function)
        columns = {} if data is None else data.columns()
        self.asked, self.talks = self._fitting(columns), columns.get(MESSAGES) == 0

    def __call__(self, sequences: Sequences) -> Float[Tensor, "B"]:
        """What the function says of each row's texts."""
        further = {name: self._values(name, sequences) for name in self.asked}
        prompts, responses = texts(sequences, self.tokenizer)
        if self.data is not None and self.talks:
            prompts = [as_text(asked) for asked in self.data.column(MESSAGES, sequences.rows.tolist())]
        scores = text_scores(f"rewards: {self.name}", self.function, prompts, responses, further)
        return torch.tensor(scores, dtype=torch.float32, device=sequences.tokens.device)

    def _values(self, name: str, sequences: Sequences) -> list[Any]:
        if name in OF_ANSWERS:
            prompts, responses = sequences.ids()
            return {"ended": sequences.ended.tolist(), "token_ids": responses, "prompt_token_ids": prompts}[name]
        assert self.data is not None
        return self.data.column(name, sequences.rows.tolist())

    def _fitting(self, columns: Mapping[str, int]) -> list[str]:
        """The names that it asks for and gets: all but one that has a default and is nothing here."""
        where, known = f"rewards: {self.name}", {*OF_ANSWERS, *columns} - {"prompts", "responses"}
        asked = further_arguments(where, self.function, known)
        given = [*OF_ANSWERS, *(name for name, lacking in columns.items() if not lacking)]
        named = further_arguments(where, self.function)
        for name, required in asked.items():
            if name in columns and name in OF_ANSWERS:
                raise UserError(f"{where} asks for {name!r}, which is a column of the data too, expected one of them")
            if columns.get(name) and name in named:
                raise UserError(f"{where} asks for {name!r}, which {columns[name]} rows of training and validation "
                                "lack, expected a column that every row has")  # fmt: skip
            if required and name not in given:
                raise unknown_argument(where, name, given)
        return [name for name in asked if name in given]


def open_reward_model(folder: str) -> RewardModel:
    """A frozen reward model without dropout.

    Raises:
        UserError: when the folder holds none.
    """
    model = load_pretrained(folder, kind="reward", **{f"{part}_pdrop": 0.0 for part in ("embd", "attn", "resid")})
    return model.requires_grad_(False).eval()


def check_tokenizer(folder: str, tokenizer: Tokenizer) -> None:
    """Raises:
    UserError: the folder's tokenizer is not the policy's.
    """
    if not tokenizer.reads_like(Tokenizer.load(folder)):
        raise UserError(
            f"{folder}/tokenizer.json: differs from the policy's tokenizer, expected the same: "
            "token ids are scored as they are"
        )
