"""Text to tokens on disk: `gpt prepare` against datasets.map and nanoGPT's way, same text, same tokenizer (GPT-2's).

    python tests/benchmarks/prepare_throughput.py --rounds 3 --control

ours: the command: reads the JSON lines, encodes on all cores, writes shards with their SHA-256.
map: `load_dataset` and `map(batched=True, num_proc=cores)` with the `tokenizers` library, then the ids into a memmap.
nanogpt: the same with a document a call (`map` without batches), as its openwebtext script does.

Each round starts each system anew and takes the time of its whole run, from the start of the process to the end of it;
the order rotates. Nothing is in a cache but the file system's. The text is made of the embedded reviews: documents of
20 sentences drawn at random, one word in fifty replaced by a random one.
"""

import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure

SENTENCES, EVERY, CORES = 20, 50, os.cpu_count() or 1


def write_text(path: Path, megabytes: float) -> float:
    """JSON lines of about that much text; the exact number of megabytes."""
    from gpt_modules.data.builtin.reviews import load_reviews

    rng, size = random.Random(0), 0
    texts = [review.text for review in load_reviews()]
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            words = re.split(r"( )", " ".join(rng.sample(texts, SENTENCES)))
            made = [f"{rng.getrandbits(40):x}" if rng.randrange(EVERY) == 0 and word != " " else word for word in words]
            text = "".join(made)
            file.write(json.dumps({"text": text}) + "\n")
            size += len(text.encode())
    return size / 1e6


def ours(source: Path, folder: Path) -> None:
    """What a user calls."""
    from gpt_modules.commands.prepare import main

    main(["--source", str(source), "--output", str(folder / "out")])


def mapped(source: Path, folder: Path) -> None:
    """datasets.map over batches."""
    _map(source, folder, batched=True)


def nanogpt(source: Path, folder: Path) -> None:
    """datasets.map a document at a time."""
    _map(source, folder, batched=False)


def _map(source: Path, folder: Path, batched: bool) -> None:
    import datasets
    import numpy as np

    encode = encode_batch if batched else encode_one
    rows = datasets.load_dataset("json", data_files=str(source), split="train", cache_dir=str(folder / "cache"))
    rows = rows.map(encode, batched=batched, remove_columns=["text"], num_proc=CORES)
    count = int(np.sum(rows["length"], dtype=np.int64))
    tokens = np.memmap(folder / "train.bin", dtype=np.uint16, mode="w+", shape=(count,))
    place, parts = 0, 64
    for part in range(parts):
        ids = rows.shard(num_shards=parts, index=part, contiguous=True).with_format("numpy")["ids"]
        block = np.concatenate(list(ids)) if len(ids) else np.empty(0, dtype=np.uint16)
        tokens[place : place + len(block)] = block
        place += len(block)
    tokens.flush()


def encode_batch(rows: dict[str, list[str]]) -> dict[str, list[object]]:
    """A batch, through the library's own batch call."""
    tokenizer = _tokenizer()
    ids = [[*found, tokenizer.eos_id] for found in tokenizer.encode_batch(rows["text"])]
    return {"ids": list(ids), "length": [len(found) for found in ids]}


def encode_one(row: dict[str, str]) -> dict[str, object]:
    """A document."""
    tokenizer = _tokenizer()
    ids = [*tokenizer.encode(row["text"]), tokenizer.eos_id]
    return {"ids": ids, "length": len(ids)}


def _tokenizer() -> Any:
    from gpt_modules.data.text.tokenizers import Tokenizer

    return Tokenizer.gpt2()  # built once a process


SYSTEMS = {"ours": ours, "map": mapped, "nanogpt": nanogpt}


def run_once(name: str, source: Path) -> float:
    """Seconds of a system's whole run in a fresh process."""
    folder = Path(tempfile.mkdtemp(dir=source.parent))
    command = [sys.executable, __file__, "--system", name, "--folder", str(folder), "--source", str(source)]
    environment = os.environ | {"GPT_MODULES_CACHE": str(folder / "cache")}
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    shutil.rmtree(folder)
    return seconds


def main() -> None:
    """Rounds in which each system runs once, and their table."""
    parser = measure.parser(__doc__, rounds=3)
    parser.add_argument("--megabytes", type=float, default=30.0, help="of text")
    for hidden in ("--system", "--folder", "--source"):
        parser.add_argument(hidden)
    options = parser.parse_args()
    if options.system:
        SYSTEMS[options.system](Path(options.source), Path(options.folder))
        return
    names = [*SYSTEMS, *(["ours"] if options.control else [])]
    with tempfile.TemporaryDirectory() as root:
        source = Path(root) / "text.jsonl"
        size = write_text(source, 0.3 if options.tiny else options.megabytes)
        seconds: list[list[float]] = [[] for _ in names]
        for round_ in range(options.rounds):
            for place in range(len(names)):
                entry = (place + round_) % len(names)
                seconds[entry].append(run_once(names[entry], source))
    options.threads = CORES
    base = seconds[1]
    rows = []
    for entry, name in enumerate(names):
        speed = statistics.median(size / taken for taken in seconds[entry])
        ratios = [theirs / taken for taken, theirs in zip(seconds[entry], base, strict=True)]
        label = "ours, entered twice" if entry >= len(SYSTEMS) else name
        rows.append([label, f"{speed:.2f}", f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"])
    print(measure.markdown(["system", "MB/s", "against map: median (range)"], rows))
    print(f"\n{size:.1f} MB of text; {measure.provenance(options)}")


if __name__ == "__main__":
    main()
