"""Comparisons: prompts, answers and votes in one SQLite file."""

from gpt_modules.storage.comparisons.database import is_store
from gpt_modules.storage.comparisons.desk import Desk, OwnVote, Standing, Wanted
from gpt_modules.storage.comparisons.prompts import Prompt, Spelled, prompt_field, said_last, spelled
from gpt_modules.storage.comparisons.records import (
    FLAGS,
    LONGEST_NAME,
    SCORES,
    Answer,
    Judgement,
    LabelerKind,
    Ranking,
    Source,
    Task,
    Vote,
    competition_ranks,
)
from gpt_modules.storage.comparisons.store import ComparisonStore, votes_digest

__all__ = [
    "FLAGS",
    "LONGEST_NAME",
    "SCORES",
    "Answer",
    "ComparisonStore",
    "Desk",
    "Judgement",
    "LabelerKind",
    "OwnVote",
    "Prompt",
    "Ranking",
    "Source",
    "Spelled",
    "Standing",
    "Task",
    "Vote",
    "Wanted",
    "competition_ranks",
    "is_store",
    "prompt_field",
    "said_last",
    "spelled",
    "votes_digest",
]
