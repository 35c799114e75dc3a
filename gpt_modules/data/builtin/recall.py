"""A task in two turns whose best answer is known: to say what a friend likes, who was told of before.

    User: My friend Anna likes music.
    Assistant: I see.
    User: What does Anna like?
    Assistant: Music.

A model that learns from `recall_demonstrations` answers with a thing, half the time with the right one; that it is to
be the right one, only `recalled` tells it. It cannot know without reading the first turn.
"""

import random
from itertools import product

from gpt_modules.data.splits import Row, Split, split_of

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Kate", "Leo")
THINGS = ("music", "films", "books", "games", "phones", "stories", "songs", "pictures")
FORMAT_VERSION = 1  # of what is drawn


def recall_prompts(split: Split) -> list[Row]:
    """`{"messages"}` that end with a question, each pair of a name and a thing once; a tenth validates, by hash."""
    pairs = (pair for pair in product(NAMES, THINGS) if split_of(" ".join(pair)) == split)
    conversations = (_asked(name, thing) for name, thing in pairs)
    return [{"messages": messages, "columns": {"messages": messages}} for messages in conversations]


def recall_demonstrations(split: Split, seed: int = 0) -> list[Row]:
    """`{"messages"}`: each of these conversations eight times with an answer, half of which name another thing."""
    rng = random.Random(f"recall {seed}")
    rows = []
    for row in recall_prompts(split):
        others = [thing for thing in THINGS if thing != _thing(row["messages"])]
        for thing in [_thing(row["messages"])] * 4 + rng.sample(others, 4):
            rows.append({"messages": [*row["messages"], {"role": "assistant", "content": _answer(thing)}]})
    return rows


def recalled(prompts: list[str], responses: list[str], messages: list[list[Row]]) -> list[float]:
    """A reward: 1 for the thing that was told of, 0 for all else."""
    return [float(said.strip() == _answer(_thing(told))) for said, told in zip(responses, messages, strict=True)]


def _asked(name: str, thing: str) -> list[Row]:
    said = [f"My friend {name} likes {thing}.", "I see.", f"What does {name} like?"]
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), said, strict=True)]


def _thing(messages: list[Row]) -> str:
    return str(messages[0]["content"]).rsplit(" ", 1)[1].removesuffix(".")


def _answer(thing: str) -> str:
    return f"{thing.capitalize()}."
