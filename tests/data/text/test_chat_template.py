import json

import chats
import pytest

from gpt_modules.data.text.chat_template import OURS, ChatTemplate
from gpt_modules.errors import UserError

ASKED = [{"role": "user", "content": "Why?"}]


def test_ours_by_hand():
    template = ChatTemplate().with_end("<|endoftext|>")
    messages = [{"role": "system", "content": "Be brief."}, *ASKED, {"role": "assistant", "content": "So."}, *ASKED]
    told = "System: Be brief.\nUser: Why?\nAssistant: So.<|endoftext|>\nUser: Why?\n"
    assert template.render(messages, speak=False) == told
    assert template.render(messages, speak=True) == told + "Assistant:"
    assert template.render(messages[:3], speak=False) == "System: Be brief.\nUser: Why?\nAssistant: So.<|endoftext|>"


def test_a_folder_without_one_has_ours(tmp_path):
    assert ChatTemplate.beside(tmp_path).source == OURS


def write(folder, **settings):
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_where_a_folder_keeps_it(tmp_path):
    begin = {"content": "<s>", "special": True}
    write(tmp_path, chat_template="one", bos_token=begin, eos_token="</s>", pad_token=None)
    found = ChatTemplate.beside(tmp_path)
    assert (found.source, dict(found.names)) == ("one", {"bos_token": "<s>", "eos_token": "</s>"})
    several = [{"name": "rag", "template": "no"}, {"name": "default", "template": "two"}]
    write(tmp_path, chat_template=several)
    assert ChatTemplate.beside(tmp_path).source == "two"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert ChatTemplate.beside(tmp_path).source == "three"


@pytest.mark.parametrize("found", [3, [{"name": "rag", "template": "no"}], ["x"], {"default": 3}])
def test_what_is_no_template_of_a_folder(tmp_path, found):
    write(tmp_path, chat_template=found)
    with pytest.raises(UserError, match=r"tokenizer_config.json: chat_template: found .*, expected a text"):
        ChatTemplate.beside(tmp_path)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("a\n{% for %}", r"chat_template.jinja:2: found TemplateSyntaxError: .*expected a template of Jinja"),
        ("{{ " + "(" * 5000, r"chat_template.jinja: found RecursionError.*expected a template"),
        ("{{ raise_exception('no\nsystem') }}", r"jinja: TemplateError: no system, in a conversation of 1, expected"),
        ("{{ messages[7].role.x }}", r"jinja: UndefinedError"),
        ("{% for i in range(10**9) %}{% endfor %}", r"jinja: SecurityError: makes too large a value"),
    ],
)
def test_a_template_that_is_none_gets_its_line(tmp_path, source, line):
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(UserError, match=line) as told:
        ChatTemplate.beside(tmp_path).render(ASKED, speak=True)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", chats.TEMPLATES)
def test_text_is_that_of_transformers(name):
    """Over the corpus, plain and hard."""
    from transformers.utils.chat_template_utils import render_jinja_template

    source, texts = chats.TEMPLATES[name], [*chats.PLAIN, *chats.HARD, chats.THINKING]
    ours = ChatTemplate(source, tuple(chats.NAMES.items()))
    for messages in chats.conversations(texts):
        for speak in (True, False):
            theirs, _ = render_jinja_template(
                [messages], chat_template=source, add_generation_prompt=speak, **chats.NAMES
            )
            assert [ours.render(messages, speak)] == theirs


def test_templates_read_alike_by_text_and_names():
    source = "{{ eos_token }}{{ bos_token }}"
    one = ChatTemplate(source, (("eos_token", "a"), ("bos_token", "b")), "here")
    assert one.reads_like(ChatTemplate(source, (("bos_token", "b"), ("eos_token", "a"), ("pad_token", "c")), "there"))
    assert not one.reads_like(ChatTemplate(source, (("bos_token", "b"),)))
    assert not one.reads_like(ChatTemplate(source + " ", one.names))
