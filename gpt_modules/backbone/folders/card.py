"""The model card of a folder, `README.md`: what the model is, where it comes from, what it reached, how to open it.

YAML before and Markdown after, as the Hugging Face hub reads it. All that stands there was said by the user, measured
by the run, or is in the folder.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpt_modules.backbone.folders.documents import decoder_of, open_document
from gpt_modules.backbone.folders.model_families import read_family
from gpt_modules.labelling import Labelling
from gpt_modules.storage.durable import replace_durably
from gpt_modules.storage.hub import is_hub_name
from gpt_modules.storage.model_files import CARD_FILE
from gpt_modules.storage.paths import is_there, path_of

_KINDS = {"gpt": "language model", "reward": "reward model", "task": "classifier"}
_CLASSIFIER = "AutoModelForSequenceClassification"
_OPENED_BY = {"gpt": "AutoModelForCausalLM", "reward": _CLASSIFIER, "task": _CLASSIFIER}


@dataclass(frozen=True)
class Facts:
    """What a folder does not say of itself.

    Args:
        procedure: the name of what trained it.
        recipe: as the user named it.
        base: folder or name of what it began from; None: new weights.
        kind: what it is, where its folder does not say so: a critic has the form of a reward model.
        weights: how they were taken, where they are not those of a step.
        models: by use ("Reference"), the other models that it learnt from.
        data: by use ("train"), the sources as the user named them.
        ends: where its answers end, where its tokenizer does not say so.
        before, metrics: validation metrics before the first step, and those of these weights.
        steps: of the optimizer.
        versions: of libraries, by name.
    """

    procedure: str
    recipe: str | None = None
    base: str | None = None
    kind: str | None = None
    weights: str | None = None
    models: Mapping[str, Sequence[str]] = field(default_factory=dict)
    data: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ends: str | None = None
    before: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)


def write_card(folder: Path, facts: Facts) -> None:
    """Write the card of a model's folder.

    Raises:
        UserError: there is no model in the folder, or it cannot be written.
    """
    replace_durably(folder / CARD_FILE, _front(folder, facts) + _body(folder, facts))


def _front(folder: Path, facts: Facts) -> str:
    document = open_document(folder)
    speaks = document.ours.kind == "gpt"
    known = read_family(document.theirs, document.path) != "gpt_modules"
    fields: dict[str, object] = {
        "library_name": "transformers" if known else "gpt_modules",
        "pipeline_tag": "text-generation" if speaks else "text-classification",
        "tags": ["gpt_modules", facts.procedure],
    }
    if facts.base is not None and is_hub_name(facts.base) and not is_there(path_of(facts.base)):
        fields["base_model"] = facts.base  # only a name on the hub: it looks for it there
    return "---\n" + "".join(f"{name}: {json.dumps(value)}\n" for name, value in fields.items()) + "---\n\n"


def _body(folder: Path, facts: Facts) -> str:
    document = open_document(folder)
    config, kind = decoder_of(document), document.ours.kind or "gpt"
    sizes = f"n_layer {config.n_layer}, n_embd {config.n_embd}, n_positions {config.n_positions}"
    rows = {
        "Kind": facts.kind or _KINDS[kind],
        "Decoder": f"{document.theirs['model_type']}, {sizes}, {config.n_params():,} parameters as a language model",
        "Trained by": facts.procedure + ("" if facts.recipe is None else f", recipe `{facts.recipe}`"),
        "Steps": f"{facts.steps:,}",
        **({} if facts.weights is None else {"Weights": facts.weights}),
        "Began from": "new weights" if facts.base is None else f"`{facts.base}`",
        **_named(facts.models),
        **_named({f"Data ({use})": names for use, names in facts.data.items()}),
        **({} if facts.ends is None else {"Answers end": facts.ends}),
        "Versions": ", ".join(f"{name} {version}" for name, version in facts.versions.items()),
    }
    title = f"# {facts.recipe or facts.procedure}\n\n"
    return title + _table(("", ""), list(rows.items())) + _validation(facts) + _opening(folder, kind)


def _named(uses: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {use: ", ".join(f"`{name}`" for name in names) for use, names in uses.items() if names}


def _validation(facts: Facts) -> str:
    if not facts.metrics:
        return ""
    found = sorted(facts.metrics.items())
    if not facts.before:
        return f"\n## Validation\n\n{_table(('metric', 'value'), [(name, f'{value:.4g}') for name, value in found])}"
    told = [
        (name, f"{facts.before[name]:.4g}" if name in facts.before else "", f"{value:.4g}") for name, value in found
    ]
    return f"\n## Validation\n\n{_table(('metric', 'before', 'after'), told)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _opening(folder: Path, kind: str) -> str:
    document = open_document(folder)
    ours = "\n## How to open it\n\n```python\nfrom gpt_modules.backbone import load_pretrained\n\n"
    ours += 'model = load_pretrained("FOLDER")\n```\n'
    if read_family(document.theirs, document.path) == "gpt_modules":
        return ours
    task = document.ours.task if kind == "task" else None
    choice = task is not None and task.kind == "multiple_choice"
    theirs = document.theirs["architectures"][0] if choice else _OPENED_BY[kind]
    lines = [
        *(["import torch"] if choice else []),
        f"from transformers import {theirs}, AutoTokenizer\n",
        f'model, tokenizer = {theirs}.from_pretrained("FOLDER"), AutoTokenizer.from_pretrained("FOLDER")',
    ]
    if kind == "reward":  # no token is there to pad with: a text may end with any
        lines.append("# One text at a time, a prompt with its answer and the token that ended it (text +")
        lines.append("# tokenizer.eos_token); the same scores as ours but for a constant and a positive factor.")
        lines.append('scores = [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]')
    code = "\n".join([*lines, *([] if task is None else _labelling(task))])
    return f"{ours}\n```python\n{code}\n```\n"


def _labelling(task: Labelling) -> list[str]:
    """Code that makes labels of texts; the tokens around them are put there by the tokenizer."""
    reading = 'return_tensors="pt", truncation=True'
    if task.kind == "multiple_choice":
        return [
            "# One question at a time; its texts are `text` and `choices`.",
            'rows = [tokenizer(text, choice, return_tensors="pt").input_ids[None] for choice in choices]',
            "ends = [torch.tensor([[row.shape[-1] - 1]]) for row in rows]",
            "scores = [model(row, mc_token_ids=end).mc_logits.item() for row, end in zip(rows, ends)]",
            "answer = choices[scores.index(max(scores))]",
        ]
    if task.kind == "similarity":
        told = "# Two texts at a time; both orders add up."
        outputs = "outputs = [sum(model(**tokenizer(*pair, READING)).logits[0] for pair in ((a, b), (b, a)))"
        of = f"{outputs} for a, b in texts]"
    else:
        pair = task.kind == "entailment"
        told = "# Two texts at a time." if pair else "# One text at a time, or two where it learnt from pairs."
        of = "outputs = [model(**tokenizer(*text, READING)).logits[0] for text in texts]"
        of = of if pair else of.replace("*text,", "text,")
    return [told, of.replace("READING", reading), _decision(task)]


def _decision(task: Labelling) -> str:
    if task.levels is not None:
        low, high = task.levels
        return (
            f"scores = [sum(p * n for p, n in zip(of.softmax(0).tolist(), range({low}, {high + 1}))) for of in outputs]"
        )
    if task.kind == "regression":
        return f"numbers = [of.item() * {task.std!r} + {task.mean!r} for of in outputs]"
    return "labels = [model.config.id2label[int(of.argmax())] for of in outputs]"
