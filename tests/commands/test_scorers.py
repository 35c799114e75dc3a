"""Terms of --by: folders and functions, with weights, by one name however they are written."""

from argparse import Namespace
from pathlib import Path

import pytest

from gpt_modules.commands.scorers import Term, open_scorer, plain_name, read_term
from gpt_modules.errors import UserError


def test_a_weight_stands_behind_what_it_weighs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_term("m.n:f") == Term("m.n:f", 1.0, True)
    assert read_term("m.n:f*-0.5") == Term("m.n:f", -0.5, True)
    assert read_term("owner/model*2e1") == Term("owner/model", 20.0, False)
    Path("a:b*2").mkdir()  # a folder of this name is one
    assert read_term("a:b*2") == Term("a:b*2", 1.0, False)
    for text in ("m:f*1e999", "m:f*1.2.3", "m:f*-"):
        with pytest.raises(UserError, match=r"^--by: found the weight .*, expected a number"):
            read_term(text)


def test_what_is_here_has_one_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m").mkdir()
    assert {plain_name(name) for name in ("m", "m/", "./m", ".//m")} == {"m"}
    assert plain_name("not/here/") == "not/here/"


def test_a_term_opens_as_what_it_is(micro):
    scorer = open_scorer(read_term(f"{micro.reward}*2"), Namespace(device="cpu"))
    assert (scorer.name, scorer.weight) == (str(micro.reward), 2.0)
    (score,) = scorer.scores(["the film"], [" is good."])
    assert isinstance(score, float)
    assert open_scorer(read_term("gpt_modules.evaluation.sentiment:vader"), Namespace()).digest is not None
