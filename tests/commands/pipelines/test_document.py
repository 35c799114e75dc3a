"""A pipeline's file is checked whole before anything runs: keys, types, names, and the recipes that it names."""

import pytest

from gpt_modules.commands.pipelines.document import ROOT_KEY
from gpt_modules.commands.pipelines.reading import read_pipeline
from gpt_modules.errors import UserError

GOOD = {"name": "a", "config": "one.yaml"}


FAULTS = [
    ({"stages": [GOOD]}, r"root: missing, expected a folder"),
    ({"root": "", "stages": [GOOD]}, r"root: found '', expected a folder to write into"),
    ({"root": ["x"], "stages": [GOOD]}, r"root: found \['x'\], expected a folder to write into"),
    ({"root": "runs", "stages": []}, r"stages: found \[\], expected at least one stage"),
    ({"root": "runs", "stages": GOOD}, r"stages: found \{.*\}, expected a list"),
    ({"root": "runs", "stages": ["a"]}, r"stages\[1\]: found 'a', expected a mapping"),
    ({"root": "runs", "stages": [{"name": "a"}]}, r"stages\[1\]\.config: found neither of config and command"),
    ({"root": "runs", "stages": [{**GOOD, "config": []}]}, r"stages\[1\]\.config: found \[\], expected at least one"),
    ({"root": "runs", "stages": [{**GOOD, "config": 3}]}, r"stages\[1\]\.config: found 3, expected the path"),
    ({"root": "runs", "stages": [{**GOOD, "feed": {}}]}, r"stages\[1\]\.feed: unknown key, expected one of name"),
    ({"root": "runs", "stages": [{**GOOD, "feeds": {"x": "b"}}]}, r"stages\[1\]\.feeds\.x: found 'b', .* stage: none$"),
    ({"root": "runs", "stages": [{**GOOD, "feeds": {"x": "a"}}]}, r"stages\[1\]\.feeds\.x: found 'a', .* stage: none$"),
    ({"root": "runs", "stages": [GOOD, {**GOOD, "name": "b", "feeds": ["a"]}]}, r"stages\[2\]\.feeds: found \['a'\]"),
    ({"root": "runs", "stages": [{**GOOD, "set": {"--x": 1}}]}, r"stages\[1\]\.set\.--x: found this key"),
    ({"root": "runs", "stages": [{**GOOD, "set": {"ckpt_path": "x"}}]}, r"stages\[1\]\.set\.ckpt_path: found this key"),
    ({"root": "r", "stages": [{**GOOD, "set": {"trainer": {"default_root_dir": "x"}}}]}, r".*set\.trainer: found this"),
    ({"root": "r", "stages": [{**GOOD, "set": {ROOT_KEY + "+": "x"}}]}, r"stages\[1\]\.set\..*dir\+: found this key"),
    ({"root": "runs", "stages": [{**GOOD, "metrics": "val/loss"}]}, r"stages\[1\]\.metrics: found 'val/loss', .* list"),
    ({"root": "runs", "stages": [GOOD, GOOD]}, r"stages\[2\]\.name: found 'a', expected a name that no earlier"),
    ({"root": "runs", "stages": [{**GOOD, "name": "../a"}]}, r"stages\[1\]\.name: found '\.\./a', expected the name"),
    ({"root": "runs", "stages": [{**GOOD, "name": ".."}]}, r"stages\[1\]\.name: found '\.\.'"),
    ({"root": "runs", "stages": [{**GOOD, "config": "absent.yaml"}]}, r"stages\[1\]\.config: absent.yaml: no such"),
    ({"root": "runs", "stages": [GOOD], "stage": []}, "stage: unknown key"),
    ({"root": "runs", "stages": [GOOD], "prompts": "x"}, "prompts: found 'x', expected a list"),
    ({"root": "runs", "stages": [GOOD], "prompts": [1]}, r"prompts\[1\]: found 1, expected text"),
    ({"root": "runs", "stages": [GOOD], "sample_tokens": 0}, "sample_tokens: found 0, expected a whole number from 1"),
    ({"root": "runs", "stages": [GOOD], "sample_tokens": True}, "sample_tokens: found True"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "part"), FAULTS)
def test_mistakes_in_a_pipeline_are_one_line(content, part, pipeline):
    with pytest.raises(UserError, match=rf"^pipeline\.yaml: {part}") as error:
        read_pipeline(pipeline(content))
    assert "\n" not in str(error.value)
