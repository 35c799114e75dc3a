"""Rows that take one step together, each with keys and values of its own.

What multiplies weights is done for all rows at once; a row attends alone, to exactly the tokens that it has read. So
rows of unequal length cost nothing for one another, a row leaves without a copy, and what attention gives a row is the
same number by number, whoever stands beside it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gpt_modules.backbone.config import Attention
from gpt_modules.backbone.decoding.kvcache import KVCache


class RowCaches(KVCache):
    """The caches of rows that read their next token, in place of one cache of a batch.

    Args:
        rows: sliced caches of one row each, none of them padded.
        blank: rows behind them that fill up the batch: they read position 0 and attend to nothing.
    """

    def __init__(self, rows: Sequence[KVCache], blank: int = 0) -> None:
        self.rows, self.blank = rows, blank

    def reserve(
        self, width: int, attention_mask: Tensor | None
    ) -> tuple[Int[Tensor, "B 1"], dict[Attention, Tensor | None]]:
        """As of `KVCache`, for one token a row. Raises ValueError for more, or for a mask."""
        if width != 1 or attention_mask is not None:
            raise ValueError(f"rows apart: found {width} tokens at once, expected one of each row, without padding")
        found = [row.reserve(1, None) for row in self.rows]
        positions = torch.cat([of for of, _ in found])
        return F.pad(positions, (0, 0, 0, self.blank)), found[0][1]

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "B H 1 D"],
        key: Float[Tensor, "B K 1 D"],
        value: Float[Tensor, "B K 1 D"],
    ) -> Float[Tensor, "B H 1 D"]:
        """What each row's token reads; zeros for blank rows. Heads that share keys stand as queries of one head."""
        mixed = torch.zeros_like(query)
        shared = query.reshape(len(query), key.shape[1], -1, query.shape[3])
        for i, row in enumerate(self.rows):
            keys, values = row.write(layer, key[i : i + 1], value[i : i + 1])
            own = shared[i : i + 1].clone()  # how a library sums depends on where in memory its operands begin
            mixed[i] = F.scaled_dot_product_attention(own, keys, values).view_as(mixed[i])
        return mixed
