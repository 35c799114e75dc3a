"""Tables for TensorBoard's text tab."""

from gpt_modules.training.callbacks.writer import markdown_table


def test_a_table_in_markdown():
    rows = [{"prompt": "a|b", "answer": "one\ntwo"}]
    assert markdown_table(rows).splitlines() == ["| prompt | answer |", "| --- | --- |", "| a\\|b | one ⏎ two |"]
    assert markdown_table([]) == ""
