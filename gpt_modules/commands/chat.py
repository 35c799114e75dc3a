"""`gpt chat`: a conversation with a model folder, or with two side by side."""

import getpass
import signal
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path

from gpt_modules.commands.arguments import Arguments, device_of, path_name, utf8_text
from gpt_modules.commands.conversation import Conversation, Message
from gpt_modules.commands.generate import say
from gpt_modules.commands.opening import open_language_model
from gpt_modules.commands.reading_lines import typed_lines
from gpt_modules.commands.speaker import Sampling, Speaker, sampling_of, speaking_parser
from gpt_modules.commands.telling import Voice
from gpt_modules.commands.votes import RANKS, Ballot, Idle, Said
from gpt_modules.errors import UserError

DESCRIPTION = """Talk to a model folder. The conversation is kept, and sent as the folder's chat template has it; /help
lists what else can be typed. Ctrl-C stops an answer, Ctrl-D ends it."""
HELP = """/reset         forget the conversation
/retry         another answer to the last question
/undo          take back the last question
/system TEXT   what the system says, first of all; without TEXT, nothing
/save FILE     the conversation as a row of messages, as SFT reads it; of an answer that was cut off it learns nothing
/load FILE     go on from there
/set NAME VALUE   temperature, top_k, top_p, max_new_tokens or seed; none takes top_k or top_p away
/a /b /tie     with --beside and --store: a vote on which answer was better; the conversation goes on with it
//...          a line that begins with /"""


def main(words: list[str]) -> None:
    """`gpt chat --model FOLDER`: read a line, answer it, until the end of input.

    Raises:
        UserError: For a mistake in an argument or a folder, and for a line that is not UTF-8; in a pipe, for a command
            that cannot be followed, but for a vote that what was said has no use for.
    """
    options = _parse(words)
    voices, sampling = _open(options)
    for voice in voices if len(voices) > 1 else []:
        sys.stderr.write(f"{voice.letter} is {voice.name}\n")
    ballot = None if options.store is None else Ballot(options.store, options.name, voices)
    for voice in voices:
        if told := voice.speaker.tokenizer.template.told:
            sys.stderr.write(f"{voice.name}: {told}\n")
    chat = Chat(voices, sampling, Conversation(options.system), ballot)
    person = sys.stdin is not None and sys.stdin.isatty()
    if person:  # Ctrl-C is a person's word to the answer, not to the command
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for _, line in typed_lines():
        try:
            chat.hear(line)
        except UserError as error:
            if not person and not isinstance(error, Idle):
                raise
            say(str(error))
        except KeyboardInterrupt:
            say("")
    if ballot is not None:
        ballot.close()


def _parse(words: list[str]) -> Namespace:
    parser: Arguments = speaking_parser("chat", DESCRIPTION)
    parser.add_argument("--system", type=utf8_text, metavar="TEXT", help="what the system says, first of all")
    parser.add_argument("--beside", metavar="FOLDER", help="another model that answers too, beside the first")
    parser.add_argument("--store", type=path_name, metavar="FILE",
                        help="a store of comparisons, where votes on the two go (see gpt label)")  # fmt: skip
    parser.add_argument("--name", type=utf8_text, help="who votes (default: the user of this machine)")
    options = parser.parse_args(words)
    if options.store is not None and options.beside is None:
        raise UserError(f"--store: found {options.store} without --beside, expected two models to vote on")
    if options.name is not None and options.store is None:
        raise UserError(f"--name: found {options.name[:60]!r} without --store, expected a store for votes")
    options.name = options.name or (getpass.getuser() if options.store is not None else None)
    return options


def _open(options: Namespace) -> tuple[list[Voice], Sampling]:
    """One or two models, and how both of them speak."""
    sampling_of(options)  # which refuses what needs no model
    names, letters = ([options.model, options.beside], "AB") if options.beside else ([options.model], [""])
    opened = [open_language_model(name, device_of(options)) for name in names]
    sampling = sampling_of(options, *(model for model, _ in opened))
    speakers = [Speaker(model, tokenizer, sampling) for model, tokenizer in opened]
    return [Voice(*one) for one in zip(names, speakers, letters, strict=True)], sampling


class Chat:
    """A conversation with one or two voices, and what a person may type."""

    def __init__(
        self, voices: Sequence[Voice], sampling: Sampling, conversation: Conversation, ballot: Ballot | None = None
    ) -> None:
        self.voices, self.sampling, self.conversation, self._ballot = voices, sampling, conversation, ballot
        self._attempt = 0
        self._said: list[Said] = []  # the answers to the last question, to vote on
        self._asked: tuple[list[Message], Sampling] = ([], sampling)  # what they answer, and how they were drawn

    def hear(self, line: str) -> None:
        """A line that was typed: something said, or a command.

        Raises:
            UserError: there is no such command, or it cannot be followed.
        """
        if not line.startswith("/") or line.startswith("//"):
            self._attempt = 0
            self._speak(line.removeprefix("/") if line.startswith("//") else line)
            return
        word, _, rest = line[1:].partition(" ")
        if word not in COMMANDS:
            raise UserError(f"/{word[:40]}: found this command, expected one of /{', /'.join(COMMANDS)}, or // for a "
                            "line that begins with /")  # fmt: skip
        takes = word in ("system", "save", "load", "set")
        if rest.strip() and not takes:
            raise UserError(f"/{word}: found {rest[:40]!r}, expected nothing behind it")
        COMMANDS[word](self, rest.strip())

    def _speak(self, question: str) -> None:
        """Ask; every voice answers, and the conversation goes on with the first one's answer."""
        self.conversation.ask(question)
        place = f"{self.conversation.turns}" + (f" {self._attempt}" if self._attempt else "")
        messages = list(self.conversation.messages)
        self._said = []
        try:
            said = [Said(*voice.answer(messages, self.sampling, place)) for voice in self.voices]
        except BaseException:
            self.conversation.undo()
            raise
        self._said, self._asked = said, (messages, self.sampling)
        self.conversation.answer(*said[0])

    # --- commands ---

    def help(self, rest: str) -> None:
        """What can be typed."""
        say(HELP)

    def reset(self, rest: str) -> None:
        """Forget all but the system's message."""
        self.conversation.reset()
        self._said = []

    def retry(self, rest: str) -> None:
        """Another answer."""
        before, said = list(self.conversation.messages), self._said
        question = self.conversation.undo()
        if question is None:
            raise UserError("/retry: found no question yet, expected one")
        self._attempt += 1
        try:
            self._speak(question)
        except BaseException:  # what was there is not lost
            self.conversation.messages, self._said = before, said
            raise

    def undo(self, rest: str) -> None:
        """Take back a question."""
        if self.conversation.undo() is None:
            raise UserError("/undo: found no question yet, expected one")
        self._said = []

    def system(self, rest: str) -> None:
        """What the system says."""
        self.conversation.set_system(rest)

    def save(self, rest: str) -> None:
        """Into a file."""
        path = self._path("save", rest)
        self.conversation.save(path)
        say(f"{path}: {self.conversation.turns} turns")

    def load(self, rest: str) -> None:
        """From a file."""
        path = self._path("load", rest)
        self.conversation.load(path)
        self._said = []
        say(f"{path}: {self.conversation.turns} turns")

    def _path(self, word: str, rest: str) -> Path:
        if not rest:
            raise UserError(f"/{word}: found nothing behind it, expected a file")
        try:
            return path_name(rest)
        except ArgumentTypeError as error:
            raise UserError(f"/{word}: {error}") from error

    def set(self, rest: str) -> None:
        """How answers are sampled from now on."""
        name, _, value = rest.partition(" ")
        if name not in Sampling._fields:
            raise UserError(f"/set: found {name[:40]!r}, expected one of {', '.join(Sampling._fields)}")
        changed = Sampling(**{**self.sampling._asdict(), name: _read_setting(name, value.strip())})
        sampling_of(Namespace(**changed._asdict()))  # which refuses what does not fit the others
        for voice in self.voices:
            Speaker(voice.speaker.model, voice.speaker.tokenizer, changed)  # which refuses what has no room
        self.sampling = changed

    def vote(self, choice: str) -> None:
        """Which of two answers was better: the conversation goes on with it."""
        if len(self.voices) < 2:
            raise UserError(f"/{choice}: found one model, expected another beside it to vote on (--beside)")
        if self._ballot is None:
            raise UserError(f"/{choice}: found no store, in which a vote is kept, expected one (--store FILE)")
        if not self._said:
            raise Idle(f"/{choice}: found no two answers that have no vote yet, expected a question before it")
        messages, sampling = self._asked
        self._ballot.vote(messages, self._said, sampling, choice)
        say("kept")
        self.conversation.replace_answer(*self._said[choice == "b"])
        self._said = []


COMMANDS = {name: getattr(Chat, name) for name in ("help", "reset", "retry", "undo", "system", "save", "load", "set")}
COMMANDS |= {choice: lambda chat, rest, choice=choice: chat.vote(choice) for choice in RANKS}


def _read_setting(name: str, value: str) -> float | int | None:
    """The value that the option of this name would take.

    Raises:
        UserError: it would not.
    """
    parser = speaking_parser("chat", "")
    if value == "none" and name in ("top_k", "top_p"):
        return None
    try:
        options = parser.parse_args(["--model", "m", f"--{name.replace('_', '-')}", value])
    except UserError as error:
        raise UserError(f"/set {name}: {str(error).partition(': ')[2]}") from error
    found: float | int = getattr(options, name)
    return found
