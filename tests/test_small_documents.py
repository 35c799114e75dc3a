"""Every small document, each leaf replaced, each key deleted, doubled and renamed: it is read, or refused in a line."""

import copy
import io
import json
from collections.abc import Iterator

import jaxtyping
import numpy as np
import pytest
from rich.console import Console

from gpt_modules.backbone import GPT, DecoderConfig, LabellingModel, RewardModel, load_pretrained, save_pretrained
from gpt_modules.commands.pipelines.document import Pipeline, Stage
from gpt_modules.commands.pipelines.fitting import fit_words
from gpt_modules.commands.pipelines.provenance import Origin, changes, read_origin, write_origin
from gpt_modules.commands.pipelines.reading import read_pipeline
from gpt_modules.commands.pipelines.report import result_tables
from gpt_modules.commands.pipelines.steps import steps_of
from gpt_modules.data.corpus.cleaning.survey import open_or_make_survey
from gpt_modules.data.corpus.shard_writer import refuse_other, write_shards
from gpt_modules.data.corpus.shards import open_shards
from gpt_modules.data.rows.classes import saved_task
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.evaluation.tasks.definitions import find_tasks
from gpt_modules.evaluation.tasks.measure import Result
from gpt_modules.evaluation.tasks.metrics import Estimate
from gpt_modules.evaluation.tasks.results import Results, table_rows
from gpt_modules.labelling import Labelling
from gpt_modules.storage.summary import Baseline, Summary, write_summary


class Raw(str):
    """JSON as it stands."""


VALUES = [None, True, -1, 0, 0.5, "", "x", "\0", [], {}, [[1]], 10**30, "y\n" * 500, Raw("1e400"), Raw("NaN")]
SIZES = {"vocab_size": 11, "n_positions": 8, "n_layer": 1, "n_head": 2, "n_embd": 4}


def places(node, here=()) -> Iterator[tuple]:
    yield here
    for key, item in node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, list) else []):
        yield from places(item, (*here, key))


def text_of(node) -> str:
    if isinstance(node, Raw):
        return str(node)
    if isinstance(node, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {text_of(item)}" for key, item in node.items()) + "}"
    return "[" + ", ".join(map(text_of, node)) + "]" if isinstance(node, list) else json.dumps(node)


def mutants(document) -> Iterator[str]:
    for *above, last in filter(None, places(document)):
        mutant = copy.deepcopy(document)
        parent = mutant
        for key in above:
            parent = parent[key]
        value = parent[last]
        for other in VALUES:
            parent[last] = other
            yield text_of(mutant)
        if isinstance(parent, dict):
            parent[last] = Raw(f"{text_of(value)}, {json.dumps(last)}: {text_of(value)}")
            yield text_of(mutant)
            del parent[last]
            yield text_of(mutant)
            yield text_of(mutant).replace("{", '{"odd": 1, ', 1)
            parent["z" * 1000] = value
            yield text_of(mutant)
    yield from ("", text_of(document)[:-1], "[" * 100_000, *map(text_of, VALUES))


def task(folder):
    path = folder / "task.yaml"
    texts = {"separator": "\n", "choices": ["{a}", "{b}"], "labels": ["0", "1"], "demonstrations": ["x.jsonl"]}
    path.write_text(json.dumps({"kind": "choice", "source": "a.jsonl", "gold": "{g}", "scoring": "ratio", **texts}))
    return path, lambda: find_tasks([str(path)])


def pipeline(folder):
    path = folder / "pipeline.yaml"
    (folder / "r.yaml").write_text("trainer: {max_steps: 1}\n")
    first = {"name": "a", "config": "r.yaml", "metrics": ["val/loss"]}
    second = {"name": "b", "config": ["r.yaml"], "feeds": {"model.x": "a"}, "set": {"y": [1]}}
    path.write_text(json.dumps({"root": "runs", "stages": [first, second], "prompts": ["a"], "sample_tokens": 3}))

    def read():
        found = read_pipeline(path)
        return [fit_words(step) for step in steps_of(found)]

    return path, read


def manifest(folder):
    tokenizer = Tokenizer.train(["Hello world"], 258)
    write_shards(folder, [["Hello"], ["world"]], tokenizer, shard_tokens=5, made_from={"source": "a"})
    return folder / "manifest.json", lambda: (
        open_shards(folder, tokenizer),
        refuse_other(folder, tokenizer, {"source": "a"}),
    )


def survey(folder):
    pytest.importorskip("datasketch")
    texts = [[" ".join(f"w{j}" for j in range(20))]] * 2

    def read():
        return open_or_make_survey(folder, texts, {"source": "x"}, 0.8, np.empty(0, np.uint64), 0)

    read()
    return folder / "survey.json", read


def results(folder):
    definitions = {"quiz": {"kind": "choice", "sha256": {"source": "0" * 64}}}

    def read():
        found = Results(folder, {"weights": "w", "limit": None, "seed": 0}, definitions)
        return [line for entry in found.entries for line in table_rows(entry, ["quiz"])], found

    found = read()[1]
    found.write(found.add("quiz", 0, Result({"acc": Estimate(0.5, 0.1)}, 6, 0, 1, 0, 1.5, [])), None)
    return folder / "results.json", read


def summary(folder):
    write_summary(folder / "a", Summary({"loss": 2.5}, {"loss": 1.5}, 9.0, 7, {"loss": Baseline("b", 2.0)}))
    run = Pipeline(folder, [Stage("a", "r.yaml", metrics=["loss"])])
    return folder / "a" / "summary.json", lambda: Console(file=io.StringIO()).print(*result_tables(run))


def origin(folder):
    known = Origin({"a": 1, "b": "SHA-256 x", "c": [None, {"d": 1}]})
    write_origin(folder, known)
    return folder / "stage.json", lambda: changes(read_origin(folder), known)


def model(make):
    def document(folder):
        save_pretrained(folder / "m", make(), extra={"a": 1})
        return folder / "m" / "config.json", lambda: (saved_task(str(folder / "m")), load_pretrained(folder / "m"))

    return document


PRE, POST = DecoderConfig.from_dict(SIZES), DecoderConfig.from_dict({**SIZES, "norm": "post", "init": "gpt1"})
BANDED = DecoderConfig.from_dict({**SIZES, "attention": ["banded"], "qkv_bias": False})
READERS = {
    "task": task, "pipeline": pipeline, "manifest": manifest, "survey": survey, "results": results,
    "summary": summary, "origin": origin, "reward model": model(lambda: RewardModel(PRE)),
    "task model": model(lambda: LabellingModel(POST, Labelling("similarity", ("a", "b")))),
    "GPT-Neo": model(lambda: GPT(BANDED)),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_no_mutant_is_more_than_a_line(name, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would speak first, in tests only
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    path, read = READERS[name](tmp_path)
    whole = path.read_text()
    read()
    lines = {}
    for text in mutants(json.loads(whole)):
        path.write_text(text)
        try:
            read()
        except UserError as error:
            lines[text[:500]] = str(error)
    assert len(lines) > 50
    assert {text: line for text, line in lines.items() if "\n" in line or len(line) > 500} == {}
    assert {text: line for text, line in lines.items() if str(tmp_path) not in line and path.name not in line} == {}
    path.write_text(whole)
    read()
