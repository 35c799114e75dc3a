"""What the conventions of the batches promise, held by every function that makes one."""

import numpy as np
import torch

from gpt_modules.data import batches, collate
from gpt_modules.data.batches import IGNORE

PAIR = collate.make_example([([1, 2], False), ([3], True)], 9)
MADE = [
    collate.collate_tokens([PAIR, PAIR]),
    collate.collate_packed([[PAIR, PAIR]], 8),
    collate.collate_windows([np.array([4, 5, 6])], 4),
    collate.collate_rankings([collate.RankedAnswers([np.array([1]), np.array([1, 2])], [1, 2])]),
    collate.collate_prompts([np.array([1, 2]), np.array([3])]),
    collate.collate_tasks([collate.TaskExample([np.array([1, 2])], 0)], numeric=False),
]


def test_ids_are_int64_and_masks_are_bool():
    assert all(field.dtype in (torch.int64, torch.bool) for batch in MADE for field in batch)
    assert MADE[3].mask.dtype == torch.bool


def test_every_kind_of_batch_has_a_test_here():
    kinds = {kind for kind in vars(batches).values() if isinstance(kind, type) and hasattr(kind, "_fields")}
    of_others = {batches.EpisodeSet, batches.EpisodeBatch, batches.MixedBatch}
    assert {type(batch) for batch in MADE} == kinds - of_others


def test_what_is_to_be_ignored_is_what_cross_entropy_ignores():
    logits = torch.randn(3, 5)
    counted = torch.nn.functional.cross_entropy(logits[:1], torch.tensor([2]))
    assert torch.nn.functional.cross_entropy(logits, torch.tensor([2, IGNORE, IGNORE])) == counted


def test_labels_stand_where_the_model_predicts_them():
    for batch in MADE[:3]:
        inputs, labels = batch.inputs[0].tolist(), batch.labels[0].tolist()
        following = [(a, b) for a, b in zip(labels, inputs[1:], strict=False) if a not in (IGNORE, 9)]
        assert following
        assert all(label == token for label, token in following if token)
