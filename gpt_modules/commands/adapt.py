"""`gpt adapt`: a few gradient steps from a model folder on a handful of examples."""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gpt_modules.commands.arguments import Arguments, add_device, device_of, number, path_name, whole_number
from gpt_modules.errors import UserError, expect

if TYPE_CHECKING:
    from torch import Tensor

    from gpt_modules.backbone import GPT, LabellingModel
    from gpt_modules.data.batches import EpisodeSet
    from gpt_modules.data.episodes.families import Example
    from gpt_modules.data.splits import Row
    from gpt_modules.data.text.tokenizers import Tokenizer

DESCRIPTION = """Adapt a model folder to the examples of a file by plain gradient descent, all of them in every step,
without dropout. A folder that was meta-learned (`gpt fit` with MAMLModule) brings its steps and learning rates; any
other needs --steps and --lr. A language model learns prompt and response as in SFT, with the end of text behind the
response; one that was meta-learned learns no end, as in its training. The adapted model is a folder of the same kind,
to be used as any other."""

BATCH_TOKENS = 2048  # of a forward pass, padding among them: logits of a large vocabulary are what fills memory


def main(words: list[str]) -> None:
    """`gpt adapt --model FOLDER --support FILE --output DIR [--steps S] [--lr α] [--query FILE]`.

    Raises:
        UserError: For a mistake in an argument, the folder or a file, an output folder that is not new, and for steps
            that diverge; nothing is written.
    """
    options = _parser().parse_args(words)
    _check(options)
    from gpt_modules.backbone import LabellingModel, save_pretrained
    from gpt_modules.backbone.folders.inner_rates import load_inner_rates
    from gpt_modules.data.text.tokenizers import load_fitting
    from gpt_modules.storage.durable import room_for

    model = _open(options)
    tokenizer = load_fitting(options.model, model.config.vocab_size)
    rates, steps = _inner_loop(options, model)
    _name_classes(model, options.support)
    closed = load_inner_rates(options.model) is None
    names = (options.support, options.query)
    support, query = (_read(name, model, tokenizer, closed) if name else [] for name in names)
    adapted = _descend(model, rates, steps, support, query)
    model.load_state_dict({**model.state_dict(), **adapted})
    form = tokenizer.task_json() if isinstance(model, LabellingModel) else tokenizer.to_json()
    with room_for(options.output):
        save_pretrained(options.output, model, tokenizer_json=form, chat=tokenizer.chat_files())
    _say(f"done: step {steps}  {options.output}")


def _parser() -> Arguments:
    parser = Arguments(prog="gpt adapt", description=DESCRIPTION)
    parser.add_argument("--model", required=True, help="an exported folder, a transformers folder, or a hub name")
    parser.add_argument("--support", required=True, metavar="FILE",
                        help='rows {"prompt", "response"}; for a classifier {"text", "label"}')  # fmt: skip
    parser.add_argument("--output", required=True, type=path_name, metavar="DIR", help="the adapted folder, a new one")
    parser.add_argument(
        "--steps", type=whole_number(0), metavar="S", help="gradient steps (default: what it was trained for)"
    )
    parser.add_argument("--lr", type=number(lambda value: value > 0, "a number above 0"), metavar="A",
                        help="learning rate in place of the folder's own, for the parameters that these adapt, "
                        "or for all where it has none")  # fmt: skip
    parser.add_argument("--query", metavar="FILE", help="rows to measure on after every step, never to adapt on")
    add_device(parser)
    return parser


def _check(options: argparse.Namespace) -> None:
    """What needs no model."""
    from gpt_modules.backbone.folders.replacing import check_new
    from gpt_modules.storage.durable import check_writable, room_for

    for name in ("support", "query"):
        expect(getattr(options, name) != "", f"--{name}", "", "the name of a file")
    with room_for(options.output):  # before the work, not after it
        check_new(options.output)
        check_writable(options.output.parent)


def _open(options: argparse.Namespace) -> "GPT | LabellingModel":
    from gpt_modules.backbone import RewardModel, load_pretrained

    device = device_of(options)
    model = load_pretrained(options.model)
    if isinstance(model, RewardModel):
        raise UserError(f"{options.model}: found a reward model, expected a language model or a classifier")
    task = getattr(model, "task", None)
    if task is not None and (task.kind != "classification" or task.numeric):
        found = f"{task.kind} with levels" if task.kind == "classification" else task.kind
        raise UserError(f"{options.model}: found a model for {found}, expected a language model or a classifier")
    return model.to(device).eval()


def _inner_loop(options: argparse.Namespace, model: "GPT | LabellingModel") -> "tuple[dict[str, Tensor], int]":
    """Rates by name and the number of steps: those of the folder, where the command line does not say other ones."""
    import torch

    from gpt_modules.backbone.folders.inner_rates import load_inner_rates

    inner = load_inner_rates(options.model)
    if options.lr is None and inner is None:
        raise UserError(f"--lr: not given, and {options.model} has no learned rates, expected a number such as 0.01")
    steps = options.steps if options.steps is not None else (inner.steps if inner is not None else 0)
    if options.steps is None and steps == 0:
        raise UserError(f"--steps: not given, and {options.model} was trained for none, expected a number such as 5")
    device = model.head_weight.device
    if options.lr is None and inner is not None:
        return {name: rate.to(device) for name, rate in inner.rates.items()}, steps
    names = dict(model.named_parameters()) if inner is None else inner.rates
    return {name: torch.tensor([options.lr], device=device) for name in names}, steps


def _name_classes(model: "GPT | LabellingModel", source: str) -> None:
    """Classes that a meta-learned classifier only numbers are called, in order, as the rows call them."""
    from gpt_modules.backbone import LabellingModel
    from gpt_modules.data.rows.labelled import Columns, LabelledRow, class_names
    from gpt_modules.data.rows.sources import load_rows
    from gpt_modules.labelling import Labelling

    if not isinstance(model, LabellingModel) or not model.task.unnamed:
        return
    labels = [row["label"] for row in load_rows(source, "train", LabelledRow("classification", Columns()))]
    if any(isinstance(label, str) for label in labels):
        named = Labelling("classification", class_names(labels, source))
        if model.task.is_named_by(named):
            model.task = named


def _read(source: str, model: "GPT | LabellingModel", tokenizer: "Tokenizer", closed: bool) -> "list[EpisodeSet]":
    """The examples of a file in batches of up to `BATCH_TOKENS`, like lengths together; `closed`: responses end."""
    from torch.utils._pytree import tree_map

    from gpt_modules.backbone import LabellingModel
    from gpt_modules.data.episodes.encoder import EpisodeEncoder
    from gpt_modules.data.episodes.families import Episode

    encoder = EpisodeEncoder(tokenizer, model.config.n_positions, isinstance(model, LabellingModel), closed)
    examples, device = _examples(source, model), model.head_weight.device
    sizes = []
    for place, example in enumerate(examples, start=1):
        try:
            sizes.append(encoder.encode([Episode([example], [example])]).support.inputs[0].shape[-1])
        except UserError as error:
            raise UserError(f"{source}: example {place}: {error}") from error
    chunks = [[examples[i] for i in chunk] for chunk in _alike(sizes)]
    sets = [encoder.encode([Episode(chunk, chunk)]).support for chunk in chunks]
    return [tree_map(lambda tensor: tensor[0].to(device), one) for one in sets]


def _examples(source: str, model: "GPT | LabellingModel") -> "list[Example]":
    from gpt_modules.backbone import LabellingModel
    from gpt_modules.data.episodes.families import Example
    from gpt_modules.data.rows.labelled import Columns, LabelledRow
    from gpt_modules.data.rows.sources import load_rows

    if isinstance(model, LabellingModel):
        check = LabelledRow("classification", Columns(), model.task.labels)
        return [Example(row["text"], "", row["label"]) for row in load_rows(source, "train", check)]
    return [Example(row["prompt"], row["response"]) for row in load_rows(source, "train", _demonstration)]


def _demonstration(record: object) -> "Row":
    from gpt_modules.data.rows.fields import mapping_of, text_of

    fields = mapping_of(record)
    return {name: text_of(fields, name) for name in ("prompt", "response")}


def _alike(sizes: Sequence[int]) -> list[list[int]]:
    """Indices in groups of up to `BATCH_TOKENS`, padded to the longest of each; a longer one stands alone."""
    groups: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=sizes.__getitem__):
        if groups and (len(groups[-1]) + 1) * sizes[index] <= BATCH_TOKENS:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _descend(
    model: "GPT | LabellingModel",
    rates: "dict[str, Tensor]",
    steps: int,
    support: "list[EpisodeSet]",
    query: "list[EpisodeSet]",
) -> "dict[str, Tensor]":
    """The parameters after the last step; a line of the table for the start and after each step."""
    sets = {name: batches for name, batches in (("support", support), ("query", query)) if batches}
    _say("step" + "".join(f"{name + ' loss':>16}{name + ' right':>16}" for name in sets))
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    for step in range(steps + 1):
        if step > 0:
            parameters = _step(model, parameters, rates, support, step - 1)
        found = [_mean_scores(model, parameters, batches) for batches in sets.values()]
        _say(f"{step:>4}" + "".join(f"{loss:>16.4f}{right:>16.1%}" for loss, right in found))
        if not math.isfinite(found[0][0]):
            hint = f"diverged at step {step}, expected a smaller --lr; nothing is written"
            raise UserError(f"--support: found a loss of {found[0][0]}: {hint}")
    return parameters


def _step(
    model: "GPT | LabellingModel",
    parameters: "dict[str, Tensor]",
    rates: "dict[str, Tensor]",
    support: "list[EpisodeSet]",
    step: int,
) -> "dict[str, Tensor]":
    """One step on the whole set, batch by batch, so that its size does not matter."""
    import torch

    from gpt_modules.functional import inner_gradient, sgd_step

    total = {name: torch.zeros_like(parameters[name]) for name in rates}
    for batch, share in zip(support, _shares(support), strict=True):
        gradients = inner_gradient(lambda moving, part: _scores(model, moving, part)[0], parameters, rates, batch)
        for name, value in total.items():
            value.add_(gradients[name], alpha=share)
    return sgd_step(parameters, total, rates, step)


def _scores(
    model: "GPT | LabellingModel", parameters: "Mapping[str, Tensor]", batch: "EpisodeSet"
) -> "tuple[Tensor, Tensor]":
    import torch

    from gpt_modules.functional import supervised_scores

    return supervised_scores(torch.func.functional_call(model, dict(parameters), batch.inputs), batch.targets)


def _mean_scores(
    model: "GPT | LabellingModel", parameters: "Mapping[str, Tensor]", sets: "list[EpisodeSet]"
) -> tuple[float, float]:
    """Loss, and the share of examples that are right in every token, of a whole set."""
    import torch

    with torch.no_grad():
        found = [_scores(model, parameters, batch) for batch in sets]
    loss = sum(share * value.item() for share, (value, _) in zip(_shares(sets), found, strict=True))
    return loss, torch.cat([right for _, right in found]).mean().item()


def _shares(sets: "list[EpisodeSet]") -> list[float]:
    """Of the targets that count: the mean loss of all is that of the batches, so weighted."""
    from gpt_modules.data.batches import IGNORE

    counts = [int((batch.targets != IGNORE).sum()) for batch in sets]
    return [count / sum(counts) for count in counts]


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
