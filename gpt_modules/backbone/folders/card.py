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
from gpt_modules.storage.durable import replace_durably
from gpt_modules.storage.hub import is_hub_name
from gpt_modules.storage.model_files import CARD_FILE
from gpt_modules.storage.paths import is_there, path_of

_KINDS = {"gpt": "language model", "reward": "reward model", "task": "classifier"}
_OPENED_BY = {"gpt": "AutoModelForCausalLM", "reward": "AutoModelForSequenceClassification"}


@dataclass(frozen=True)
class Facts:
    """What a folder does not say of itself.

    Args:
        procedure: the name of what trained it.
        recipe: as the user named it.
        base: folder or name of what it began from; None: new weights.
        data: by use ("train"), the sources as the user named them.
        metrics: validation metrics of these weights.
        steps: of the optimizer.
        versions: of libraries, by name.
    """

    procedure: str
    recipe: str | None = None
    base: str | None = None
    data: Mapping[str, Sequence[str]] = field(default_factory=dict)
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
        "Kind": _KINDS[kind],
        "Decoder": f"{document.theirs['model_type']}, {sizes}, {config.n_params():,} parameters as a language model",
        "Trained by": facts.procedure + ("" if facts.recipe is None else f", recipe `{facts.recipe}`"),
        "Steps": f"{facts.steps:,}",
        "Began from": "new weights" if facts.base is None else f"`{facts.base}`",
        **{f"Data ({use})": ", ".join(f"`{name}`" for name in names) for use, names in facts.data.items() if names},
        "Versions": ", ".join(f"{name} {version}" for name, version in facts.versions.items()),
    }
    metrics = {name: f"{value:.4g}" for name, value in sorted(facts.metrics.items())}
    title = f"# {facts.recipe or facts.procedure}\n\n"
    return (
        title + _table(("", ""), rows) + _section("Validation", ("metric", "value"), metrics) + _opening(folder, kind)
    )


def _section(title: str, head: tuple[str, str], rows: Mapping[str, str]) -> str:
    return f"\n## {title}\n\n{_table(head, rows)}" if rows else ""


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _opening(folder: Path, kind: str) -> str:
    document = open_document(folder)
    ours = "\n## How to open it\n\n```python\nfrom gpt_modules.backbone import load_pretrained\n\n"
    ours += 'model = load_pretrained("FOLDER")\n```\n'
    theirs = _OPENED_BY.get(kind)
    if theirs is None or read_family(document.theirs, document.path) == "gpt_modules":
        return ours
    return ours + (
        f"\n```python\nfrom transformers import {theirs}, AutoTokenizer\n\n"
        f'model, tokenizer = {theirs}.from_pretrained("FOLDER"), AutoTokenizer.from_pretrained("FOLDER")\n```\n'
    )
