"""Responses as people read them: texts with their scores."""

from typing import Any

from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.training.rl.rollout import Scored
from gpt_modules.training.rl.sequences import texts


def predictions(scored: Scored, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Prompt, response and score of each row."""
    prompts, responses = texts(scored.sequences, tokenizer)
    rows = zip(prompts, responses, scored.scores.tolist(), strict=True)
    return [{"prompt": prompt, "response": response, "score": score} for prompt, response, score in rows]


def side_by_side(answers: dict[str, Scored], tokenizer: Tokenizer) -> list[dict[str, str]]:
    """Each prompt with what every model answered, and its score, under the model's name."""
    table: list[dict[str, str]] = []
    for name, scored in answers.items():
        rows = predictions(scored, tokenizer)
        table = table or [{"prompt": row["prompt"]} for row in rows]
        for line, row in zip(table, rows, strict=True):
            line |= {name: row["response"], f"{name} score": f"{row['score']:.2f}"}
    return table
