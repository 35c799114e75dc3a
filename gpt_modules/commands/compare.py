"""`gpt compare`: K answers to each prompt, for people or models to rank."""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from gpt_modules.commands.arguments import Arguments, device_of, path_name, utf8_text, whole_number
from gpt_modules.commands.opening import open_language_model
from gpt_modules.commands.scorers import plain_name
from gpt_modules.commands.speaker import MODEL, Prompt, Sampling, Speaker, add_sampling, sampling_of
from gpt_modules.errors import UserError
from gpt_modules.feedback.sampling import Draw, Said, Voice, sample_answers
from gpt_modules.progress import Meter
from gpt_modules.storage.comparisons import ComparisonStore, Source, spelled
from gpt_modules.storage.comparisons import Prompt as Asked
from gpt_modules.storage.durable import check_writable

if TYPE_CHECKING:
    from gpt_modules.data.splits import Row

DESCRIPTION = """Sample K different answers to each prompt into a store of comparisons, for gpt label to have them
ranked. With several models they answer in turn. Answers of the same models in the same order, sampled in the same way,
are one round: started again, a round that was cut off goes on, and further prompts join it; anything else begins the
next round."""


def main(words: list[str]) -> None:
    """`gpt compare --model FOLDER... --prompts FILE --k 4 --output FILE.db`.

    Raises:
        UserError: For a mistake in an argument, a model, the prompts or the store.
    """
    options = parse(words)
    if options.output.exists():
        ComparisonStore.open(options.output).close()
    check_writable(options.output.parent)
    rows = read_rows(options.prompts)
    if "torch" not in sys.modules:  # which takes seconds, in which nothing else is said
        _tell(f"opening {', '.join(options.model)}")
    opened = {name: open_language_model(name, device_of(options)) for name in options.model}
    sampling = sampling_of(options, *(model for model, _ in opened.values()))
    speakers = {name: Speaker(model, tokenizer, sampling) for name, (model, tokenizer) in opened.items()}
    prompts = _fitting(rows, speakers)
    voices = [_voice(name, speaker, sampling) for name, speaker in speakers.items()]
    with ComparisonStore.create(options.output) as store:
        _sample(store, prompts, voices, options)


def parse(words: list[str]) -> Namespace:
    """The words of the command, its options checked; models, prompts and store are not looked for.

    Raises:
        UserError: For an option that does not fit, or two that do not fit each other.
    """
    parser = Arguments(prog="gpt compare", description=DESCRIPTION)
    parser.add_argument("--model", required=True, nargs="+", help=MODEL)
    parser.add_argument("--prompts", required=True, nargs="+", help="rows with a prompt, or with messages that end "
                        "with a question, as PPO reads them")  # fmt: skip
    parser.add_argument("--output", required=True, type=path_name, metavar="FILE", help="the store, new or to go on")
    parser.add_argument("--k", type=whole_number(2), default=4, help="answers to a prompt (default 4)")
    parser.add_argument(
        "--count", type=whole_number(1), metavar="N", help="the first N prompts that no other round has"
    )
    parser.add_argument("--name", type=utf8_text, metavar="NAME", help="of the round: what is sampled alike under "
                        "another name, or under none, is another one")  # fmt: skip
    add_sampling(parser)
    options = parser.parse_args(words)
    if sampling_of(options).temperature == 0 and options.k > len(options.model):
        raise UserError("--temperature: found 0, expected more: a model would say the same each time")
    if options.k < len(options.model):
        raise UserError(f"--k: found {options.k} for {len(options.model)} models, expected an answer of each at least")
    if len({os.path.realpath(name) for name in options.model}) < len(options.model):
        raise UserError(f"--model: found {' '.join(options.model)[:80]!r}, expected each model once")
    return options


def read_rows(sources: list[str]) -> "list[Row]":
    """The rows of these sources, each prompt once.

    Raises:
        UserError: they cannot be read, or are texts beside conversations.
    """
    from gpt_modules.data.rows.messages import prompt_of
    from gpt_modules.data.rows.sources import load_rows

    rows = load_rows(sources[0] if len(sources) == 1 else sources, "train", "ppo")
    if 0 < (told := sum("messages" in row for row in rows)) < len(rows):
        raise UserError(f"--prompts: found {told} conversations of {len(rows)} rows, expected one kind: their answers "
                        "end with different tokens")  # fmt: skip
    return list({spelled(prompt_of(row)): row for row in rows}.values())


def _fitting(rows: "Sequence[Row]", speakers: dict[str, Speaker]) -> list[Asked]:
    """Prompts that every model sees whole: conversations without as many of their oldest turns as it takes."""
    from gpt_modules.data.rows.chat import encode_asked, naming_rows
    from gpt_modules.data.rows.messages import prompt_of

    room = min(speaker.room for speaker in speakers.values())
    with naming_rows(rows):
        cut = [_shortened(prompt_of(row), speakers) for row in rows]
        kept = prompts = list({spelled(prompt): prompt for prompt in cut}.values())
        for speaker in speakers.values():
            lengths = [len(ids) for ids in encode_asked(kept, speaker.tokenizer)]
            kept = [prompt for prompt, length in zip(kept, lengths, strict=True) if length <= speaker.room]
    why = f"longer than {room} tokens, the context less --max-new-tokens"
    if shortened := sum(len(one) < len(prompt_of(row)) for one, row in zip(cut, rows, strict=True)):
        _tell(f"of {len(rows)} conversations, {shortened} lose their oldest turns: {why}")
    if not kept:
        raise UserError(f"--prompts: found none of up to {room} tokens, which is the context less --max-new-tokens, "
                        "expected some")  # fmt: skip
    if len(kept) < len(prompts):
        _tell(f"of {len(prompts)} prompts, {len(prompts) - len(kept)} are left out: {why}")
    return kept


def _shortened(prompt: Asked, speakers: dict[str, Speaker]) -> Asked:
    from gpt_modules.data.rows.chat import shorten

    for speaker in speakers.values():
        prompt = prompt if isinstance(prompt, str) else shorten(prompt, speaker.tokenizer, speaker.room)[0]
    return prompt


def _voice(name: str, speaker: Speaker, sampling: Sampling) -> Voice:
    from gpt_modules.backbone import model_digest
    from gpt_modules.data.rows.chat import encode_asked

    def answers(draws: Sequence[Draw]) -> list[Said]:
        ids = encode_asked([draw.prompt for draw in draws], speaker.tokenizer)
        prompts = (Prompt(of, draw.place, "") for of, draw in zip(ids, draws, strict=True))
        said = zip(draws, speaker.answers(prompts), strict=True)
        # What a turn says begins with no white space, as in `gpt chat`: the template puts it there.
        return [Said(text if isinstance(draw.prompt, str) else text.lstrip(), ended) for draw, (text, ended) in said]

    settings = json.dumps(sampling._asdict(), sort_keys=True)
    return Voice(Source(plain_name(name), model_digest(speaker.model), settings), answers)


def _sample(store: ComparisonStore, prompts: Sequence[Asked], voices: Sequence[Voice], options: Namespace) -> None:
    k, count = options.k, options.count
    sources = [[voice.source.digest, voice.source.settings] for voice in voices]
    number = store.round_of(json.dumps([k, sources]), options.name)
    if count is not None:
        elsewhere = {prompt for other in store.rounds() if other != number for prompt in store.prompts(other)}
        prompts = list(islice((prompt for prompt in prompts if spelled(prompt) not in elsewhere), count))
        if not prompts:
            raise UserError(f"--prompts: found none that no other round of {store.path} has, expected {count}")
        if len(prompts) < count:
            _tell(f"--count: {len(prompts)} in place of {count} prompts: no more are left that no other round has")
    there = store.prompts(number)
    wanted = [prompt for prompt in prompts if spelled(prompt) not in there]
    few, none = 0, 0
    with Meter("answers", len(wanted) * k) as meter:
        for done, (prompt, answers) in enumerate(sample_answers(wanted, voices, k), start=1):
            if len(answers) < 2:
                none += 1
            else:
                store.add_task(number, prompt, answers)
                few += len(answers) < k
            meter.update(done / len(wanted))
    added = len(wanted) - none
    _say(f"{store.path}: round {number}: {added} prompts with {k} answers each, {len(there)} were there before")
    if few:
        _tell(f"{few} of them have fewer: their models say the same again and again")
    if none:
        _tell(f"{none} further prompts are left out: fewer than 2 different answers to them")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
