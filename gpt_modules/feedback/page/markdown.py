"""Markdown as a tree of names and texts, from which the page builds elements: nobody makes HTML of what a model wrote.

Links and images are their words and their addresses, as text: nothing leads away and nothing is loaded. A text of which
Markdown would leave out or change more than ASCII punctuation (a cell beyond its table, a nesting beyond the parser's)
has no tree and stays text.
"""

import string
from collections.abc import Iterator, Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

LONGEST = 20_000  # characters of a text that is parsed; longer ones stay text
Node = str | dict[str, Any]
"""A text, or {"tag": a name, "of": its nodes}; an item of an ordered list has its "number"."""

_PARSER = (
    MarkdownIt("commonmark", {"html": False})
    .enable(["table", "strikethrough"])
    .disable(["reference", "entity"])  # a definition is shown nowhere, an entity as another letter
)
_NAMES = {
    **{name: name for name in ("p", "ul", "ol", "li", "blockquote", "table", "thead", "tbody", "tr", "th", "td", "em",
                               "strong", "s", "hr", "br")},
    **{f"h{level}": "heading" for level in range(1, 7)},
    "a": "link",
}  # fmt: skip


def tree_of(text: str) -> list[Node] | None:
    """The nodes of a text; None: it is to be shown as text."""
    if len(text) > LONGEST:
        return None
    nodes = _nodes(_PARSER.parse(text))
    return nodes if _plain("".join(_texts(nodes))) == _plain(text) else None


def _nodes(tokens: Sequence[Token]) -> list[Node]:
    root: list[Node] = []
    opened = [root]
    addresses: list[str] = []
    for token in tokens:
        if token.nesting < 0:
            if token.tag == "a":
                _add_address(opened[-1], addresses.pop())
            opened.pop()
        elif token.type == "inline":
            opened[-1].extend(_nodes(token.children or []))
        elif token.nesting > 0:
            if token.tag == "a":
                addresses.append(_address(token, "href"))
            opened.append(opened[-1] if token.hidden else _added(opened[-1], token))
        else:
            opened[-1].append(_leaf(token))
    return root


def _added(nodes: list[Node], token: Token) -> list[Node]:
    """The nodes of a new node; a paragraph of a tight list is none (`hidden`)."""
    node: dict[str, Any] = {"tag": _NAMES[token.tag], "of": []}
    if token.tag == "li" and token.info:
        node["number"] = token.info
    nodes.append(node)
    return node["of"]  # type: ignore[no-any-return]


def _leaf(token: Token) -> Node:
    if token.type in ("text", "softbreak"):
        return "\n" if token.type == "softbreak" else token.content
    if token.type == "image":
        words: list[Node] = list(_texts(_nodes(token.children or [])))
        _add_address(words, _address(token, "src"))
        return {"tag": "image", "of": words}
    if token.type in ("fence", "code_block"):
        head: list[Node] = [{"tag": "info", "of": [token.info]}] if token.info.strip() else []
        return {"tag": "pre", "of": [*head, token.content.removesuffix("\n")]}
    if token.type == "code_inline":
        return {"tag": "code", "of": [token.content]}
    return {"tag": _NAMES[token.tag], "of": []}


def _address(token: Token, name: str) -> str:
    title = token.attrs.get("title")
    return f'{token.attrs[name]} "{title}"' if title else str(token.attrs[name])


def _add_address(words: list[Node], address: str) -> None:
    if words != [address]:
        words.append({"tag": "address", "of": [address]})


def _texts(nodes: Sequence[Node]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        else:
            yield node.get("number", "")
            yield from _texts(node["of"])


def _plain(text: str) -> list[str]:
    """What is neither space nor possibly markup."""
    return [letter for letter in text if letter not in string.punctuation and not letter.isspace()]
