"""Keys and values of the tokens already read, preallocated and written in place.

Two ways to address the same storage give the same numbers:

- sliced (CPU): the number of tokens held is a Python integer, and attention reads exactly the slots that are filled;
- static (CUDA): the next slot is a tensor on the device and attention reads every slot, unfilled ones masked, so that
  no shape, address or Python number changes from one step to the next and a step can be captured or compiled.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpt_modules.backbone.config import DecoderConfig


class KVCache:
    """Room for `capacity` tokens of each of `batch` rows: `keys` and `values` (n_layer, B, H, capacity, D).

    `counts` (B,) is the number of real tokens of each row, so the position of its next one. `bias` (B, 1, 1, capacity)
    is what attention adds to the scores: 0 for a token that may be read, -inf for padding and, in a static cache, for
    slots not yet filled. `length`, the slots filled, is kept by a sliced cache only; a static one counts in `slot`.
    """

    def __init__(
        self,
        config: DecoderConfig,
        batch: int,
        capacity: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        static: bool = False,
    ) -> None:
        shape = (config.n_layer, batch, config.n_head, capacity, config.head_size)
        # A static cache multiplies unfilled slots by weights of zero, and zero times an uninitialised NaN is NaN.
        allocate = torch.zeros if static else torch.empty
        self.keys = allocate(shape, device=device, dtype=dtype)
        self.values = allocate(shape, device=device, dtype=dtype)
        self.bias = torch.full((batch, 1, 1, capacity), -torch.inf if static else 0.0, device=device, dtype=dtype)
        self.counts = torch.zeros(batch, device=device, dtype=torch.long)
        self.slot = torch.zeros(1, device=device, dtype=torch.long)
        self.length = 0
        self.capacity = capacity
        self.static = static
        self.padded = False

    def reserve(
        self, width: int, attention_mask: Bool[Tensor, "B T"] | None
    ) -> tuple[Int[Tensor, "B T"], Float[Tensor, "B 1 R S"] | None]:
        """Open slots for the next `width` tokens; True in `attention_mask` (B, T) marks real ones, None means all are.

        Returns their positions (B, T) and the bias of the attention that reads them: None where plain causal attention
        is right, that is for an empty cache, or a single token, without padding. Raises ValueError where they do not
        fit.
        """
        if width == 1 and attention_mask is None:
            return self._reserve_one()
        start = self.length
        if start + width > self.capacity or (self.static and start > 0):
            raise ValueError(f"cache of {self.capacity} slots, {start} filled: no room for {width} tokens at once")
        real = self.counts.new_ones(len(self.counts), width).bool() if attention_mask is None else attention_mask
        positions = (real.cumsum(1) - 1 + self.counts[:, None]).clamp_min(0)
        self.bias[:, 0, 0, start : start + width] = torch.where(real, 0.0, -torch.inf)
        self.counts += real.sum(1)
        self.slot += width
        self.length += width
        self.padded |= attention_mask is not None
        return positions, self._causal_bias(start) if start or self.padded else None

    def _reserve_one(self) -> tuple[Int[Tensor, "B 1"], Float[Tensor, "B 1 1 S"] | None]:
        # The step that decoding repeats: no mask is built.
        positions = self.counts[:, None].clone()
        self.counts += 1
        if self.static:
            self.bias.index_fill_(3, self.slot, 0.0)
            self.slot += 1
            return positions, self.bias
        if self.length == self.capacity:
            raise ValueError(f"cache of {self.capacity} slots: no room for one more token")
        self.length += 1
        return positions, self.bias[..., : self.length] if self.padded else None

    def _causal_bias(self, start: int) -> Float[Tensor, "B 1 T S"]:
        slots = torch.arange(self.length, device=self.bias.device)
        new = slots[start:, None]
        bias = self.bias[..., : self.length].masked_fill(slots > new, -torch.inf)
        # A padding query may read nothing, and the softmax of nothing is NaN: let every token read itself.
        return bias.masked_fill(slots == new, 0.0)

    def write(
        self, layer: int, key: Float[Tensor, "B H T D"], value: Float[Tensor, "B H T D"]
    ) -> tuple[Float[Tensor, "B H S D"], Float[Tensor, "B H S D"]]:
        """Store the keys and values of the tokens last reserved; returns all that attention has to read."""
        keys, values, width = self.keys[layer], self.values[layer], key.shape[2]
        if self.static and width == 1:
            # `slot` has moved on already: the token goes into the one before it.
            keys.index_copy_(2, self.slot - 1, key.to(keys.dtype))
            values.index_copy_(2, self.slot - 1, value.to(values.dtype))
            return keys, values
        keys[:, :, self.length - width : self.length] = key
        values[:, :, self.length - width : self.length] = value
        return keys[:, :, : self.length], values[:, :, : self.length]

    def rewind(self) -> None:
        """Forget the last token of a static cache: a warm-up step must leave no trace."""
        self.counts -= 1
        self.slot -= 1
        self.bias.index_fill_(3, self.slot, -torch.inf)

    def keep(self, rows: Int[Tensor, "K"]) -> None:
        """Drop every row but `rows`, one layer at a time so that memory stays flat."""
        kept, filled = len(rows), self.capacity if self.static else self.length
        for storage in (self.keys, self.values):
            for layer in range(len(storage)):
                storage[layer, :kept, :, :filled] = storage[layer, rows, :, :filled]
        self.keys, self.values = self.keys[:, :kept], self.values[:, :kept]
        self.bias, self.counts = self.bias[rows], self.counts[rows]
