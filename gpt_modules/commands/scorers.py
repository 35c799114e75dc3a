"""The terms of `--by`: reward-model folders and functions, each with its weight, as scorers."""

import math
import re
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, NamedTuple

from gpt_modules.commands.arguments import device_of
from gpt_modules.errors import UserError
from gpt_modules.storage.paths import is_there, path_of

if TYPE_CHECKING:
    from gpt_modules.feedback.labelers import Scorer

_WEIGHTED = re.compile(r"(.+)\*([-+0-9.eE]+)")


class Term(NamedTuple):
    """A folder, or a function `package.module:name`, and its factor in the sum."""

    name: str
    weight: float
    is_function: bool


def read_term(text: str) -> Term:
    """SCORES or SCORES*WEIGHT.

    Raises:
        UserError: the weight is no number.
    """
    weighted = None if is_there(path_of(text)) else _WEIGHTED.fullmatch(text)
    weight, name = 1.0, text
    if weighted is not None:
        name = weighted[1]
        try:
            weight = float(weighted[2])
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise UserError(f"--by: found the weight {weighted[2]!r}, expected a number")
    return Term(plain_name(name), weight, ":" in name and not is_there(path_of(name)))


def open_scorer(term: Term, options: Namespace) -> "Scorer":
    """The scorer of a term, on the device of `options`.

    Raises:
        UserError: there is no such reward model or function, or it cannot be opened.
    """
    from gpt_modules.feedback.labelers import function_scorer, model_scorer

    if term.is_function:
        return function_scorer(term.name, term.weight)
    if "torch" not in sys.modules:  # which takes seconds, in which nothing else is said
        sys.stderr.write(f"--by: opening {term.name}\n")
    from gpt_modules.backbone import load_pretrained
    from gpt_modules.data.text.tokenizers import load_fitting

    model = load_pretrained(term.name, kind="reward")
    tokenizer = load_fitting(term.name, model.config.vocab_size)
    return model_scorer(term.name, model.to(device_of(options)).eval(), tokenizer, term.weight)


def plain_name(name: str) -> str:
    """One name for what is here, however it is written: folder/ and ./folder are one labeler."""
    return str(path) if is_there(path := path_of(name)) else name
