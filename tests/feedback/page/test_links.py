"""The links of labelers."""

from gpt_modules.feedback.page.links import tokens_of


def test_links_are_of_their_store_and_their_labeler():
    one = tokens_of(b"a" * 32, ["ann", "ben"])
    assert one == tokens_of(b"a" * 32, ["ann", "ben"])
    assert len({*one.values(), *tokens_of(b"b" * 32, ["ann", "ben"]).values()}) == 4
    assert all(len(token) == 32 for token in one.values())
