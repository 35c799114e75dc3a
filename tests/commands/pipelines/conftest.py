"""A pipeline's file in the current folder, beside a recipe."""

from pathlib import Path

import pytest
import yaml


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("one.yaml").write_text("trainer: {max_steps: 1}\n")

    def write(content):
        Path("pipeline.yaml").write_text(yaml.safe_dump(content))
        return Path("pipeline.yaml")

    return write
