"""`gpt generate`: a model folder continues prompts."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gpt_modules.commands.arguments import Arguments
from gpt_modules.errors import UserError


def speaking_parser(command: str, description: str) -> Arguments:
    parser = Arguments(prog=f"gpt {command}", description=description)
    parser.add_argument("--model", required=True, help="an exported folder, a transformers folder, or a hub name")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token (default 1)")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="sample from the smallest set of tokens with probability P"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    return parser


class Speaker:
    """A model and its tokenizer, with the sampling settings of a command line."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        from gpt_modules.backbone import GPT, load_pretrained
        from gpt_modules.data.text.tokenizers import Tokenizer

        device = options.device if options.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
        model = load_pretrained(options.model, kind="gpt")
        assert isinstance(model, GPT)
        self.model: GPT = model.to(device).eval()
        self.tokenizer: Tokenizer = Tokenizer.load(options.model)
        self.options = options
        self.generator = torch.Generator(device).manual_seed(options.seed)

    @property
    def context(self) -> int:
        """Tokens the model can see."""
        return self.model.config.n_positions

    def answer(self, prompts: Sequence[str]) -> list[str]:
        """One continuation a prompt."""
        return self.continue_ids([self.tokenizer.encode(prompt) for prompt in prompts])

    def continue_ids(self, prompts: Sequence[list[int]]) -> list[str]:
        """The same from token ids; over-long prompts keep their end, empty ones begin with the end-of-text token."""
        from gpt_modules.backbone import generate

        options = self.options
        room = self.context - options.max_new_tokens
        if room < 1:
            raise UserError(
                f"--max-new-tokens: found {options.max_new_tokens}, expected fewer than the context of {self.context}"
            )
        ids = [(prompt or [self.tokenizer.eos_id])[-room:] for prompt in prompts]
        drawn = generate(
            self.model,
            ids,
            max_new_tokens=options.max_new_tokens,
            eos_id=self.tokenizer.eos_id,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            generator=self.generator,
        )
        return [self.tokenizer.decode(row[keep].tolist()) for row, keep in zip(drawn.tokens, drawn.mask, strict=True)]


def main(words: list[str]) -> None:
    """`gpt generate --model FOLDER --prompt TEXT`: print each prompt with its continuation."""
    parser = speaking_parser("generate", "Continue prompts with a model folder.")
    parser.add_argument(
        "--prompt",
        action="append",
        help=r"may be given several times; \n is a new line; default: the lines of standard input",
    )
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="continuations of each prompt")
    options = parser.parse_args(words)
    prompts = options.prompt or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not prompts:
        raise UserError("--prompt: none given and standard input is empty, expected a text to continue")
    repeated = [prompt.replace("\\n", "\n") for prompt in prompts for _ in range(options.samples)]
    for prompt, text in zip(repeated, Speaker(options).answer(repeated), strict=True):
        sys.stdout.write(prompt + text + "\n")


def folder_texts(folder: Path, prompts: Sequence[str], max_new_tokens: int, seed: int) -> list[str]:
    """What a stage's model says to these prompts; the same noise for every stage."""
    options = argparse.Namespace(
        model=str(folder),
        device="cpu",
        seed=seed,
        max_new_tokens=max_new_tokens,
        temperature=0.7,
        top_k=None,
        top_p=None,
    )
    return Speaker(options).answer(prompts)
