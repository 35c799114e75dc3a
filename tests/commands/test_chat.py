"""`gpt chat`: lines and commands in, answers out; the conversation as the model gets it."""

import io
import json
import shutil
import sys

import pytest

from gpt_modules.backbone import GPT, save_pretrained
from gpt_modules.commands import chat
from gpt_modules.commands.telling import Voice
from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import ComparisonStore


@pytest.fixture
def talk(micro, monkeypatch, capsys):
    """talk(stdin, words): (the conversations that were answered, what was printed); answers are one, two, three."""

    def run(stdin, *words):
        asked, settings = [], []

        def answer(self, messages, sampling, place):
            asked.append([message["content"] for message in messages])
            settings.append((sampling, place))
            said = ["one", "two", "three", "four", "five"][len(asked) - 1]
            sys.stdout.write(said + "\n")
            return said, True

        monkeypatch.setattr(Voice, "answer", answer)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        chat.main(["--model", str(micro.gpt), "--device", "cpu", "--max-new-tokens", "4", *words])
        run.settings = settings
        return asked, capsys.readouterr().out

    return run


def test_the_conversation_is_kept(talk):
    asked, said = talk("hello\n\nagain\n")
    assert asked == [["hello"], ["hello", "one", "again"]]
    assert said == "one\ntwo\n"


def test_no_line_is_no_answer(talk):
    assert talk("\n\n") == ([], "")


def test_commands_edit_the_conversation(talk):
    asked, _ = talk("a\nb\n/undo\nc\n/reset\nd\n/system Be brief.\n//e\n", "--system", "Hm.")
    assert asked == [
        ["Hm.", "a"], ["Hm.", "a", "one", "b"], ["Hm.", "a", "one", "c"], ["Hm.", "d"], ["Be brief.", "d", "four", "/e"]
    ]  # fmt: skip


def test_another_answer_to_the_same_question(talk):
    asked, _ = talk("a\n/retry\n/retry\nb\n")
    assert asked == [["a"], ["a"], ["a"], ["a", "three", "b"]]
    assert [place for _, place in talk.settings] == ["1", "1 1", "1 2", "2"]


def test_settings_hold_from_then_on(talk):
    talk("a\n/set temperature 0.5\n/set top_k 3\n/set seed 9\nb\n/set top_k none\nc\n")
    sampled = [(of.temperature, of.top_k, of.seed) for of, _ in talk.settings]
    assert sampled == [(1.0, None, 0), (0.5, 3, 9), (0.5, None, 9)]


def test_a_conversation_is_saved_and_gone_on_from(talk, tmp_path):
    file = tmp_path / "talk.jsonl"
    talk(f"a\n/save {file}\n")
    assert json.loads(file.read_text()) == {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "one"}]
    }
    asked, _ = talk(f"/load {file}\nb\n")
    assert asked == [["a", "one", "b"]]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("/what", "/what: found this command, expected one of /help, /reset"),
        ("/retry", "/retry: found no question yet"),
        ("/undo", "/undo: found no question yet"),
        ("/undo 3", "/undo: found '3', expected nothing behind it"),
        ("/save", "/save: found nothing behind it, expected a file"),
        ("/load nothing.jsonl", "nothing.jsonl"),
        ("/set heat 3", "/set: found 'heat', expected one of max_new_tokens, temperature"),
        ("/set temperature hot", "/set temperature: found 'hot', expected a number from 0"),
        ("/set max_new_tokens 32", "--max-new-tokens: found 32, expected fewer than the model's context of 32"),
        ("/a", "/a: found one model, expected another beside it to vote on"),
    ],
)
def test_a_command_that_cannot_be_followed(talk, line, found):
    with pytest.raises(UserError) as refused:
        talk(line + "\n")
    assert found in str(refused.value)


def test_two_side_by_side_and_votes_at_any_turn(talk, micro, tmp_path):
    """On the conversation as it went on, whatever was cut off in it."""
    store = tmp_path / "votes.db"
    words = ["--beside", str(micro.gpt), "--store", str(store), "--name", "ann", "--system", "Hm."]
    asked, said = talk("a\n/b\nb\n/a\n", *words)
    assert said.splitlines().count("kept") == 2
    assert asked == [["Hm.", "a"]] * 2 + [["Hm.", "a", "two", "b"]] * 2
    with ComparisonStore.open(store) as votes:
        first, second = votes.rankings()
    roles = ("system", "user", "assistant", "user")
    turns = [{"role": role, "content": text} for role, text in zip(roles, asked[2], strict=True)]
    assert (first.prompt, first.ranks, first.labeler) == (turns[:2], (2, 1), "ann")
    assert (second.prompt, second.ranks, [a.text for a in second.answers]) == (turns, (1, 2), ["three", "four"])


def test_a_vote_that_nothing_comes_of_is_a_line_and_a_pipe_goes_on(talk, micro, tmp_path, monkeypatch):
    """A second one on the same answers; one before a question; on answers that a run before has voted on, or twins."""
    store = tmp_path / "votes.db"
    words = ["--beside", str(micro.gpt), "--store", str(store), "--name", "ann"]
    asked, said = talk("/a\na\n/b\n/a\nb\n/a\n", *words)
    assert asked[2:] == [["a", "two", "b"]] * 2
    assert said.count("kept") == 2
    assert said.count("/a: found no two answers that have no vote yet, expected a question before it") == 2
    _, said = talk("a\n/b\nc\n", *words)
    assert "the store has a vote on these answers already" in said
    assert said.count("kept") == 0
    monkeypatch.setattr(Voice, "answer", lambda *_: ("the same", True))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"d\n/a\ne\n")))
    chat.main(["--model", str(micro.gpt), "--device", "cpu", "--max-new-tokens", "4", *words])


def test_a_vote_is_on_what_was_asked_and_how_it_was_drawn(talk, micro, tmp_path):
    """Whatever was said to the system, and set, since the answers came."""
    store = tmp_path / "votes.db"
    talk(
        "a\n/system Hm.\n/set temperature 0.5\n/a\n", "--beside", str(micro.gpt), "--store", str(store), "--name", "ann"
    )
    with ComparisonStore.open(store) as votes:
        (kept,) = votes.rankings()
        assert kept.prompt == [{"role": "user", "content": "a"}]
        assert [json.loads(answer.source.settings)["temperature"] for answer in kept.answers] == [1.0, 1.0]


def test_an_answer_that_cannot_be_drawn_anew_is_not_lost(micro, monkeypatch):
    said = [("one", True), ("two", True)]

    def answer(self, messages, sampling, place):
        if not said:
            raise UserError("refused")
        return said.pop(0)

    monkeypatch.setattr(Voice, "answer", answer)
    words = ["--model", str(micro.gpt), "--beside", str(micro.gpt), "--device", "cpu", "--max-new-tokens", "4"]
    options = chat._parse(words)
    one = chat.Chat(*chat._open(options), chat.Conversation())
    one.hear("hello")
    for line in ("/retry", "again"):
        with pytest.raises(UserError, match="refused"):
            one.hear(line)
        assert [message["content"] for message in one.conversation.messages] == ["hello", "one"]


@pytest.mark.parametrize("choice", ["a", "b", "tie"])
def test_a_vote_that_would_be_kept_nowhere_is_refused(talk, micro, choice):
    with pytest.raises(UserError, match=f"/{choice}: found no store, in which a vote is kept, expected one"):
        talk(f"a\n/{choice}\n", "--beside", str(micro.gpt))


def test_words_that_do_not_fit(micro, tmp_path):
    for words, line in (
        (["--store", "x.db"], "--store: found x.db without --beside"),
        (["--name", "ann"], "--name: found 'ann' without --store"),
    ):
        with pytest.raises(UserError, match=line):
            chat.main(["--model", str(micro.gpt), *words])


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


def test_a_person_is_told_and_goes_on(micro, monkeypatch, capsys):
    """A mistake, and Ctrl-C while it is thought about: the question is taken back, the chat goes on."""
    lines = iter([(1, "/nothing"), (2, "a"), (3, "b")])
    calls = []

    def answer(self, messages, sampling, place):
        calls.append([message["content"] for message in messages])
        if len(calls) == 1:
            raise KeyboardInterrupt
        return "x", True

    monkeypatch.setattr(Voice, "answer", answer)
    monkeypatch.setattr(chat, "typed_lines", lambda: lines)
    monkeypatch.setattr(chat.signal, "signal", lambda *of: None)
    monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO()))
    chat.main(["--model", str(micro.gpt), "--device", "cpu", "--max-new-tokens", "4"])
    assert calls == [["a"], ["b"]]
    assert "/nothing: found this command" in capsys.readouterr().out


def test_it_speaks(micro, monkeypatch, capsys):
    """Nothing replaced: what is said is what the model says."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the film\n")))
    chat.main(["--model", str(micro.gpt), "--device", "cpu", "--max-new-tokens", "4"])
    assert capsys.readouterr().out.endswith("\n")


def test_a_folder_without_a_template_is_told_of(micro, monkeypatch, capsys, tmp_path):
    """What answers may then be like is no fault of what was typed."""
    for source, lines in ((None, 1), ("{{ messages[-1].content }}{{ eos_token }}", 0)):
        folder = tmp_path / str(lines)
        shutil.copytree(micro.gpt, folder)
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        if source:
            (folder / "chat_template.jinja").write_text(source)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        chat.main(["--model", str(folder), "--device", "cpu", "--max-new-tokens", "4"])
        assert capsys.readouterr().err.count(f"{folder}: chat template: ours") == lines


def test_an_answer_of_usual_length_leaves_room_in_the_shorter_context(micro, tmp_path, monkeypatch):
    save_pretrained(tmp_path / "long", GPT(micro.config(n_positions=300)), tokenizer_json=micro.tokenizer.to_json())
    for folders, length in (([tmp_path / "long"], 64), ([micro.gpt], 16), ([tmp_path / "long", micro.gpt], 16)):
        words = [*map(str, folders)]
        beside = ["--beside", *words[1:]] if words[1:] else []
        voices, sampling = chat._open(chat._parse(["--model", words[0], "--device", "cpu", *beside]))
        assert sampling.max_new_tokens == length
        assert [voice.speaker.sampling for voice in voices] == [sampling] * len(words)
