import huggingface_hub
import pytest

from gpt_modules.errors import UserError
from gpt_modules.storage.hub import fetch, is_hub_name


def test_names_of_the_hub_are_told_from_paths():
    assert all(map(is_hub_name, ["gpt2", "openai-community/gpt2", "a.b/c_d"]))
    assert not any(map(is_hub_name, ["", "./a", "/a", "~/a", "a/b/c", "tokenizer.json", "a/tokenizer.json", "a b"]))


def test_only_what_is_asked_for_is_fetched(tmp_path, monkeypatch):
    asked = {}

    def snapshot_download(name, allow_patterns):
        asked[name] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert fetch("a/b", ("tokenizer.json",)) == tmp_path
    assert asked == {"a/b": ["tokenizer.json"]}


@pytest.mark.parametrize(
    ("error", "reason"), [(OSError("404\nand a long story"), "404"), (TimeoutError(), "TimeoutError")]
)
def test_whatever_the_hub_raises_is_one_line(monkeypatch, error, reason):
    def snapshot_download(name, allow_patterns):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError) as caught:
        fetch("a/b", ["x"])
    assert str(caught.value) == f"a/b: no such folder, and not to be had from the Hugging Face hub: {reason}"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("exprot", "exprot: found no such file or folder; did you mean export?"),
        ("run/tiny", "run/tiny: found no such file or folder; did you mean runs/tiny?"),
        ("runs/large", "runs/large: found no such file or folder, expected something in runs"),
    ],
)
def test_what_was_meant_to_be_here_is_not_asked_of_the_hub(tmp_path, monkeypatch, name, line):
    (tmp_path / "export").mkdir()
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(UserError) as caught:
        fetch(name, ["x"])
    assert str(caught.value) == line
