import time

import pytest

from gpt_modules.data.text import sandbox
from gpt_modules.data.text.sandbox import compile_template, constants, render, size_of

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}%s{% endfor %}{% endfor %}"
DOUBLES = "{% set ns = namespace(s='xx', l=[1]) %}{% for i in range(60) %}%s{% endfor %}{{ ns.s }}{{ ns.l }}"
TOO_MUCH = {
    "a range": "{% for i in range(1000000000) %}{% endfor %}",
    "loops": LOOPS.replace("%s", ""),
    "recursion": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "two recursions": "{% macro f(n) %}{% if n > 0 %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "output": LOOPS.replace("%s", "{{ 'x' * 100000 }}"),
    "a product": "{{ 'x' * 1000000000 }}",
    "a list": "{{ ['x'] * 1000000000 }}",
    "a power": "{{ 10 ** 10 ** 10 }}",
    "joining": DOUBLES.replace("%s", "{% set ns.s = ns.s ~ ns.s %}"),
    "adding": DOUBLES.replace("%s", "{% set ns.s = ns.s + ns.s %}"),
    "blocks": DOUBLES.replace("%s", "{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = x %}"),
    "lists in lists": DOUBLES.replace("%s", "{% set ns.l = [ns.l, ns.l] %}"),
    "their JSON": DOUBLES.replace("%s", "{% set ns.l = [ns.l, ns.l] %}").replace("{{ ns.l }}", "{{ ns.l | tojson }}"),
    "a method": "{{ 'x'.ljust(1000000000) }}",
    "a replacement": "{% set a = 'x' * 10000000 %}{{ a.replace('x', a) }}",
    "a filter": "{{ 'x' | center(1000000000) }}",
    "a format": "{{ '%1000000000d' % 1 }}",
    "a filter's format": "{{ '%*d' | format(1000000000, 1) }}",
    "a method's format": "{{ '{:1000000000}'.format(1) }}",
    "a format of a format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "a sum of lists": "{% set l = [['x'], ['x']] * 8000 %}{{ l | sum(start=[]) | length }}",
    "bytes as data": "{{ given | replace('x', 'y') | length }}{{ given.replace(given, given) }}",
    **{
        f"{of} of each letter": f"{{% set a = 'x' * 4000000 %}}{{{{ a | {of} | list | length }}}}"
        for of in (
            "groupby('a', default='b')",
            "map('upper')",
            "select('string')",
            "map(attribute='a')",
            "reject('none')",
            "map('default', 1)",
            "selectattr('a')",
            "sort(attribute=0)",
        )
    },
}
FORBIDDEN = {
    "files": "{% include '/etc/passwd' %}",
    "imports": "{% import 'os' as os %}",
    "insides": "{{ ''.__class__.__mro__ }}",
    "what is given": "{{ messages.append(1) }}",
    "chance": "{{ [1, 2] | random }}",
    "chance's text": "{{ lipsum() }}",
    **{f"bytes of {of}": f"{{{{ {of} }}}}" for of in ("'x'.encode()", "'x' | attr('encode')()", "(1).to_bytes(9)")},
    **{f"what is quadratic, {of}": f"{{{{ 'x' | {of} }}}}" for of in ("wordwrap(1)", "urlize", "striptags")},
    "what is quadratic, a method": "{{ ('x' | safe).striptags() }}",
}


@pytest.mark.parametrize("source", TOO_MUCH.values(), ids=TOO_MUCH)
def test_what_takes_too_long_or_too_much_is_cut_off(source, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    begun = time.thread_time()
    with pytest.raises(Exception, match=r"too (large|wide)|not done|more than|recursion"):
        render(compile_template(source), given=b"x")
    assert time.thread_time() - begun < 2


@pytest.mark.parametrize("source", FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_is_no_business_of_a_template(source):
    with pytest.raises(Exception, match=r"loader|unsafe|undefined|not callable|No filter|import_module|safely"):
        render(compile_template(source), messages=[])


def test_what_templates_use():
    source = """
    {%- macro told(text, many=2) %}{% for i in range(many) %}({{ text }}){% endfor %}{% endmacro -%}
    {%- set ns = namespace(seen=0) -%}
    {%- for m in messages -%}
        {%- if m.role == 'system' %}{% continue %}{% endif -%}
        {%- set ns.seen = ns.seen + 1 -%}
        {{- told(m['content'] | trim) ~ loop.index -}}
    {%- endfor -%}
    {{- ' %s ' % ns.seen }}{{ '{} '.format(1) }}{{ messages | map(attribute='role') | join(',') }}
    {%- generation %} {{ messages[0] | tojson }}{% endgeneration %}"""
    messages = [{"role": "system", "content": "é"}, {"role": "user", "content": " <b> "}]
    expected = '(<b>)(<b>)2 1 1 system,user {"role": "system", "content": "é"}'
    assert render(compile_template(source), messages=messages) == expected


def test_a_message_of_the_template_is_told():
    with pytest.raises(Exception, match="roles must alternate"):
        render(compile_template("{{ raise_exception('roles must alternate') }}"))


def test_constants_are_the_texts_of_expressions():
    assert constants("<a>{% if '</think>' in x %}{{ 'b' ~ 3 }}{% endif %}") == {"</think>", "b"}


def test_sizes_by_hand():
    assert size_of("abc") == 4
    assert size_of(10**9) == 10**9 + 1
    assert size_of(["a", {"b": 1}]) == 1 + 2 * 64 + 2 + 1 + 64 + 2 + 2
