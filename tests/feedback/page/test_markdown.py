"""Markdown as a tree: names of a list, all texts, and nothing that leads away, loads or runs."""

import pytest

from gpt_modules.feedback.page.markdown import LONGEST, tree_of


def flat(nodes):
    """A tree as one line: tag(text ...)."""
    return "".join(
        node if isinstance(node, str) else f"{node['tag']}{node.get('number', '')}({flat(node['of'])})"
        for node in nodes
    )


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("Two *words*\nand **more**", "p(Two em(words)\nand strong(more))"),
        ("# One\n\nTwo\n---", "heading(One)heading(Two)"),
        ("- a\n- b\n  1. c\n  2. d", "ul(li(a)li(bol(li1(c)li2(d))))"),
        ("7) a\n\n8) b", "ol(li7(p(a))li8(p(b)))"),
        ("> a\n\n---", "blockquote(p(a))hr()"),
        ("```py\nx = '<b>'\n```", "pre(info(py)x = '<b>')"),
        ("`a` ~~b~~ c  \nd", "p(code(a) s(b) cbr()d)"),
        ("|a|b|\n|-|-|\n|1|2|", "table(thead(tr(th(a)th(b)))tbody(tr(td(1)td(2))))"),
        ('[a *b*](http://c "d")', 'p(link(a em(b)address(http://c "d")))'),
        ("![a](http://c) <http://d>", "p(image(aaddress(http://c)) link(http://d))"),
        ("<script>alert(1)</script>", "p(<script>alert(1)</script>)"),
        ("<b onclick=x>a</b>", "p(<b onclick=x>a</b>)"),
        ("<!-- a -->", "p(<!-- a -->)"),
        ("[a](javascript:alert(1))", "p([a](javascript:alert(1)))"),
        ("[a](data:text/html,b)", "p([a](data:text/html,b))"),
        ("&lt;b&gt; &#8238;", "p(&lt;b&gt; &#8238;)"),
        ("a\u202eb\u200bc", "p(a\u202eb\u200bc)"),
        ("[a]: http://b\n\nc", "p([a]: http://b)p(c)"),
        ("[http://good](http://evil)", "p(link(http://goodaddress(http://evil)))"),
    ],
)
def test_what_a_text_is(text, tree):
    assert flat(tree_of(text)) == tree


@pytest.mark.parametrize(
    "text",
    [
        "|a|b|\n|-|-|\n|1|2|left out|",
        "|a|\n|-|\n|1|\U0001f600|",
        "> " * 50 + "too deep",
        "- " * 50 + "too deep",
        "[a](http://\u00e4.example)",  # an address that would be written otherwise
        "a\0b",
        "x" * (LONGEST + 1),
    ],
)
def test_a_text_of_which_a_part_would_be_missing_or_changed_stays_text(text):
    assert tree_of(text) is None


@pytest.mark.parametrize("part", ["[", "![", "[a](", "*a ", "> ", "- ", "`a", "|a", "<a ", "_a_", "1. a\n", "~~a"])
def test_a_tree_is_no_deeper_than_a_browser_can_build(part):
    def depth(nodes):
        return 1 + max((depth(node["of"]) for node in nodes if not isinstance(node, str)), default=0)

    assert depth(tree_of(part * 600) or []) < 60
