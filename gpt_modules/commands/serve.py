"""`gpt serve`: a model folder answers OpenAI's clients."""

import os
import socket
import sys
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from gpt_modules import listening
from gpt_modules.commands.arguments import Arguments, add_device, device_of, path_name, utf8_text, whole_number
from gpt_modules.commands.speaker import MODEL
from gpt_modules.errors import UserError
from gpt_modules.storage.text_files import read_text

if TYPE_CHECKING:
    from gpt_modules.serving.server import Served

DESCRIPTION = """Answer requests in OpenAI's form with a model folder: /v1/models, /v1/chat/completions,
/v1/completions, a page to chat at /, /health and /metrics; with a reward model /v1/score. To this machine alone, unless
--host says where; then clients need an API key. Ctrl-C or SIGTERM ends it once what is at work is answered."""
PORT = 8000
KEY = "GPT_API_KEY"
SHORTEST_KEY = 16  # characters


def main(words: list[str]) -> None:
    """`gpt serve --model FOLDER`.

    Raises:
        UserError: For a mistake in an argument, the key or the folder, and a port that is taken.
    """
    options = parse(words)
    key = _key(options)
    try:
        from gpt_modules.serving import server
    except ImportError as error:
        if not (error.name or "").startswith(("starlette", "uvicorn")):
            raise
        line = f"gpt serve: the package {error.name} is not installed; pip install 'gpt-modules[serve]'"
        raise UserError(line) from error
    with listening.listen(options.host, options.port) as listener, ExitStack() as opened:
        private = listening.is_private(listener)
        if not private and key is None:
            raise UserError(f"--host: found {options.host}, which others can reach, expected an API key: in a file "
                            f"(--api-key-file) or in {KEY}")  # fmt: skip
        sys.stderr.write(f"opening {options.model}\n")
        served = _open(options, opened)
        server.serve(server.make_app(served, key, private), listener, options.drain, lambda: _tell(served, listener))


def parse(words: list[str]) -> Namespace:
    """The words of the command."""
    parser = Arguments(prog="gpt serve", description=DESCRIPTION)
    parser.add_argument("--model", required=True, help=MODEL)
    parser.add_argument("--name", type=utf8_text, help="that clients ask for (default: what --model says)")
    parser.add_argument("--port", type=whole_number(0), default=PORT, help=f"(default {PORT}; 0: any that is free)")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1: to this machine "
                        "alone); elsewhere with an API key only")  # fmt: skip
    parser.add_argument("--api-key-file", type=path_name, metavar="FILE",
                        help=f"holds the key that clients send (default: {KEY}, where it is set)")  # fmt: skip
    parser.add_argument("--rows", type=whole_number(1), default=16, metavar="N", help="answers at once (default 16)")
    parser.add_argument("--queue", type=whole_number(1), default=128, metavar="N",
                        help="answers that may wait (default 128); more are refused with 429")  # fmt: skip
    parser.add_argument("--cache-mb", type=whole_number(1), default=1024, metavar="N",
                        help="keys and values of all answers at once (default 1024)")  # fmt: skip
    parser.add_argument("--deadline", type=whole_number(1), default=600, metavar="SECONDS",
                        help="of a request, waiting and answer together (default 600)")  # fmt: skip
    parser.add_argument("--drain", type=whole_number(0), default=30, metavar="SECONDS",
                        help="for what is at work when it is told to end (default 30)")  # fmt: skip
    add_device(parser)
    return parser.parse_args(words)


def _key(options: Namespace) -> str | None:
    """The API key of the file, else of the environment."""
    path: Path | None = options.api_key_file
    where = f"--api-key-file: {path}" if path is not None else KEY
    found = os.environ.get(KEY) if path is None else read_text(path, "an API key").strip()
    if found is None:
        return None
    if not (found.isascii() and found.isprintable() and " " not in found and len(found) >= SHORTEST_KEY):
        raise UserError(f"{where}: found {len(found)} characters, expected a key of at least {SHORTEST_KEY} that print "
                        "in ASCII, without spaces")  # fmt: skip
    return found


def _open(options: Namespace, opened: ExitStack) -> "Served":
    """The model and what computes with it; it ends with `opened`."""
    from gpt_modules.backbone import GPT, RewardModel, load_pretrained, model_digest
    from gpt_modules.backbone.decoding.batching import Batch, fitting_rows
    from gpt_modules.data.text.tokenizers import load_fitting
    from gpt_modules.feedback.labelers import model_scorer
    from gpt_modules.serving.engine import Engine
    from gpt_modules.serving.planning import Speaker
    from gpt_modules.serving.scoring import Scoring
    from gpt_modules.serving.server import Served

    model = load_pretrained(options.model)
    if not isinstance(model, GPT | RewardModel):
        raise UserError(f"--model: {options.model}: found a model of labels, expected a language or a reward model")
    model = model.to(device_of(options)).eval()
    name, tokenizer = options.name or options.model, load_fitting(options.model, model.config.vocab_size)
    if isinstance(model, RewardModel):
        scorer = model_scorer(options.model, model, tokenizer, field="responses")
        scoring = Scoring(scorer.scores, options.queue, options.deadline)
        opened.callback(scoring.close)
        return Served(name, scorer.digest or "", scoring=scoring, deadline=options.deadline)
    batch = Batch(model, options.rows, options.cache_mb * 2**20, fitting_rows(model, options.rows))
    engine = Engine(batch, options.queue)
    opened.callback(engine.close)
    return Served(name, model_digest(model), Speaker(model, tokenizer), engine, deadline=options.deadline)


def _tell(served: "Served", listener: socket.socket) -> None:
    what = "scores" if served.scoring is not None else "speaks"
    if served.speaker is not None and (told := served.speaker.tokenizer.template.told):
        sys.stderr.write(f"{told}\n")
    sys.stdout.write(f"{served.name} {what} at {listening.address_of(listener)}v1 (Ctrl-C ends it)\n")
    sys.stdout.flush()
