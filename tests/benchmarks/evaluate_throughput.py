"""Scoring on the CPU: `continuation_logprobs` against lm-evaluation-harness's model `hf`, same weights, same requests.

    python tests/benchmarks/evaluate_throughput.py --task choice --rounds 5 --control
    python tests/benchmarks/evaluate_throughput.py --task cloze --rounds 5

choice: multiple choice with 4 answers of 1 to 8 tokens behind 5 demonstrations, drawn anew for each item as the harness
does, 200 to 380 tokens in front of an answer.
cloze: zero-shot, a text of unequal length (log-normal, median 60 tokens) and a last word of 1 to 3 tokens.
Theirs is its loop as shipped, token ids given, with `batch_size` 1 and 16; it makes what shares all but the last token
one row. float32. A burst is `--items` items; work is counted in requests (choice: 4 an item).
"""

import argparse
import logging
import tempfile
from functools import partial
from typing import Any

import measure
import numpy as np

LAYERS, WIDTH, HEADS, CONTEXT, SHOTS, ITEMS = 4, 256, 4, 1024, 5, 4096


def decoder(options: argparse.Namespace) -> Any:
    """The same weights in every process, spread out so that no two requests score alike."""
    from gpt_modules.backbone import GPT, DecoderConfig

    layers, width = (1, 16) if options.tiny else (LAYERS, WIDTH)
    return GPT(DecoderConfig(options.vocabulary, CONTEXT, layers, HEADS, width)).eval()


def items(options: argparse.Namespace) -> list[list[tuple[list[int], list[int]]]]:
    """(context, continuation) of the requests of each item, ids uniform."""
    rng = np.random.default_rng(0)
    draw = lambda length: rng.integers(options.vocabulary, size=length).tolist()  # noqa: E731
    if options.task == "cloze":
        lengths = np.clip(rng.lognormal(np.log(60), 0.6, ITEMS), 8, 400).astype(int)
        return [[(draw(length), draw(rng.integers(1, 4)))] for length in lengths]
    shown = [draw(rng.integers(30, 70)) for _ in range(200)]
    found = []
    for _ in range(ITEMS):
        demonstrations = [token for k in rng.choice(len(shown), SHOTS, replace=False) for token in shown[k]]
        context = demonstrations + draw(rng.integers(30, 60))
        found.append([(context, draw(rng.integers(1, 9))) for _ in range(4)])
    return found


def pieces(options: argparse.Namespace) -> Any:
    """Requests of `--items` items at a time, over and over."""
    made, place = items(options), 0
    while True:
        yield [request for item in made[place : place + options.items] for request in item]
        place = (place + options.items) % (ITEMS - options.items + 1)


def ours(turn: measure.Turn, options: argparse.Namespace) -> None:
    """What `gpt evaluate` and the adapter call."""
    from gpt_modules.evaluation import continuation_logprobs

    model = decoder(options)
    for requests in pieces(options):
        continuation_logprobs(model, requests)
        if not turn.tick(len(requests)):
            return


def theirs(turn: measure.Turn, options: argparse.Namespace, batch_size: int) -> None:
    """`HFLM` on our folder, opened by transformers."""
    from lm_eval.models.huggingface import HFLM

    from gpt_modules.backbone import save_pretrained
    from gpt_modules.data.text.tokenizers import Tokenizer

    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer.train(["a b"], 257)
        save_pretrained(f"{folder}/model", decoder(options), tokenizer_json=tokenizer.to_json())
        model = HFLM(f"{folder}/model", device="cpu", dtype="float32", batch_size=batch_size)
        for requests in pieces(options):
            rows = [(("", ""), *request) for request in requests]
            model._loglikelihood_tokens(rows, disable_tqdm=True)
            if not turn.tick(len(requests)):
                return


SYSTEMS = {
    "ours": ours,
    "lm_eval hf, 1": partial(theirs, batch_size=1),
    "lm_eval hf, 16": partial(theirs, batch_size=16),
}


def main() -> None:
    """Measure and print."""
    parser = measure.parser(__doc__, rounds=5)
    parser.add_argument("--task", choices=("choice", "cloze"), default="choice")
    parser.add_argument("--items", type=int, default=None, help="items a burst; by default 12 (choice), 64 (cloze)")
    parser.add_argument("--vocabulary", type=int, default=2048)
    options = parser.parse_args()
    options.items = options.items or (2 if options.tiny else 12 if options.task == "choice" else 64)
    results = measure.measure(SYSTEMS, options, 1)
    print(f"Evaluation, {options.task}: {LAYERS} layers, width {WIDTH}, vocabulary {options.vocabulary}\n")
    print(measure.comparison(results, "requests", "lm_eval hf, 1"), measure.provenance(options), sep="\n\n")


if __name__ == "__main__":
    main()
