"""Keys and values of the tokens already read, preallocated and written in place.

A dense layer keeps every token, a banded one the last `window`: slots are used in turn, token n in slot n modulo their
number. Positions are in what is held, added to the embeddings or as the angles of the keys, so attention does not mind
in which order it reads.

Two ways to address the same storage give the same numbers:

- sliced (CPU): the number of tokens read is a Python integer, and attention reads exactly the slots that are filled;
- static (CUDA): the next slot is a tensor on the device and attention reads every slot, unfilled ones masked, so that
  no shape, address or Python number changes from one step to the next and a step can be captured or compiled.

What several texts begin with is read once: `fork` goes on from it in many rows.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpt_modules.backbone.config import Attention, DecoderConfig


class KVCache:
    """Room for `capacity` tokens of each of `batch` rows: `keys` and `values` of each layer, (B, K, slots, D).

    `counts` (B,) is the number of real tokens of each row, so the position of its next one. `length` is the number of
    tokens read, padding included; a static cache does not count those read one by one.
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
        self.config, self.kinds, self.capacity, self.static = config, config.layers, capacity, static
        self.length, self.padded, self.single = 0, False, False
        self.counts = torch.zeros(batch, device=device, dtype=torch.long)
        slots: dict[Attention, int] = {"dense": capacity, "banded": min(config.window, capacity)}
        unread = torch.full((batch, 1, 1, capacity), -torch.inf if static else 0.0, device=device, dtype=dtype)
        bands: dict[Attention, int] = {"dense": config.n_positions, "banded": config.window}
        self.rings = {
            kind: _Ring(unread[..., : slots[kind]].clone(), capacity, bands[kind]) for kind in dict.fromkeys(self.kinds)
        }
        # A static cache multiplies unfilled slots by weights of zero, and zero times an uninitialised NaN is NaN.
        allocate = torch.zeros if static else torch.empty
        shapes = [(batch, config.kv_heads, slots[kind], config.head_width) for kind in self.kinds]
        self.keys = [allocate(shape, device=device, dtype=dtype) for shape in shapes]
        self.values = [allocate(shape, device=device, dtype=dtype) for shape in shapes]

    @property
    def nbytes(self) -> int:
        """Of all keys and values that there is room for."""
        return sum(storage.nbytes for storage in (*self.keys, *self.values))

    def reserve(
        self, width: int, attention_mask: Bool[Tensor, "B T"] | None
    ) -> tuple[Int[Tensor, "B T"], dict[Attention, Float[Tensor, "#B 1 R _"] | None]]:
        """Open slots for the next `width` tokens; True in `attention_mask` (B, T) marks real ones, None means all are.

        Returns their positions (B, T) and, for each kind of layer, what is added to the scores: None where plain causal
        attention is right. Raises ValueError where they do not fit.
        """
        self.single = width == 1 and attention_mask is None
        if self.single:
            return self._reserve_one()
        start = self.length
        if start + width > self.capacity or (self.static and start > 0):
            raise ValueError(f"cache of {self.capacity} slots, {start} filled: no room for {width} tokens at once")
        real, positions = _positions(self.counts, width, attention_mask)
        self.counts += real.sum(1)
        self.length += width
        self.padded |= attention_mask is not None
        return positions, {kind: ring.reserve(start, real, self.padded) for kind, ring in self.rings.items()}

    def _reserve_one(self) -> tuple[Int[Tensor, "B 1"], dict[Attention, Float[Tensor, "B 1 1 _"] | None]]:
        # The step that decoding repeats: no mask is built.
        positions = self.counts[:, None].clone()
        self.counts += 1
        if self.static:
            return positions, {kind: ring.reserve_on_device() for kind, ring in self.rings.items()}
        if self.length == self.capacity:
            raise ValueError(f"cache of {self.capacity} slots: no room for one more token")
        self.length += 1
        return positions, {kind: ring.reserve_one(self.length, self.padded) for kind, ring in self.rings.items()}

    def write(
        self, layer: int, key: Float[Tensor, "B K T D"], value: Float[Tensor, "B K T D"]
    ) -> tuple[Float[Tensor, "B K S D"], Float[Tensor, "B K S D"]]:
        """Store the keys and values of the tokens last reserved; returns all that attention has to read."""
        ring = self.rings[self.kinds[layer]]
        keys, values = self.keys[layer], self.values[layer]
        if self.static and self.single:
            keys.index_copy_(2, ring.last, key.to(keys.dtype))
            values.index_copy_(2, ring.last, value.to(values.dtype))
            return keys, values
        if self.length > ring.slots and not self.single:
            return ring.turn(keys, key, self.length), ring.turn(values, value, self.length)
        keys[:, :, ring.newest] = key  # slices: in the type of the cache
        values[:, :, ring.newest] = value
        return keys[:, :, ring.filled], values[:, :, ring.filled]

    def rewind(self) -> None:
        """Forget the last token of a static cache, read alone: a warm-up step must leave no trace."""
        self.counts -= 1
        for ring in self.rings.values():
            ring.rewind()

    def fork(self, rows: int, room: int = 0) -> "KVCache":
        """A sliced cache in which each row of this one stands `rows` times, with room for `room` more tokens.

        What several texts begin with is then read once. The texts that follow may be padded on the right: only padding
        reads it. This cache stays as it is and may be forked again. Raises ValueError for a static cache.

        Without room, tokens can be read but are not kept, and what this cache holds is not copied for longer than a
        layer takes: the fastest for texts that are read in one go. Such a fork ends when this cache goes on.
        """
        if self.static:
            raise ValueError("found a static cache, expected a sliced one to fork")
        if room == 0:
            return _Loan(self, rows)
        batch, like = len(self.counts), self.keys[0]
        forked = KVCache(self.config, batch * rows, self.length + room, device=like.device, dtype=like.dtype)
        forked.counts += self.counts.repeat_interleave(rows)
        forked.length, forked.padded = self.length, self.padded
        for kind, ring in self.rings.items():
            ring.copy(ring.bias.mT, forked.rings[kind].bias.mT, forked.rings[kind], self.length)
        for layer, kind in enumerate(self.kinds):
            for old, new in ((self.keys, forked.keys), (self.values, forked.values)):
                self.rings[kind].copy(old[layer], new[layer], forked.rings[kind], self.length)
        return forked

    def keep(self, rows: Int[Tensor, "K"]) -> None:
        """Go on with `rows`, in this order; a row may stand there again. No more rows than there are.

        In place, one layer at a time: memory stays flat and addresses as they are.
        """
        kept = len(rows)
        for storage in (self.keys, self.values):
            for layer, kind in enumerate(self.kinds):
                filled = slice(None) if self.static else slice(min(self.length, self.rings[kind].slots))
                storage[layer][:kept, :, filled] = storage[layer][rows, :, filled]
                storage[layer] = storage[layer][:kept]
        for ring in self.rings.values():
            ring.bias[:kept] = ring.bias[rows]
            ring.bias = ring.bias[:kept]
        self.counts[:kept] = self.counts[rows]
        self.counts = self.counts[:kept]


def _positions(
    counts: Int[Tensor, "B"], width: int, attention_mask: Bool[Tensor, "B T"] | None
) -> tuple[Bool[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Which of the next `width` tokens are real, and their positions behind `counts` real ones."""
    real = counts.new_ones(len(counts), width).bool() if attention_mask is None else attention_mask
    return real, (real.cumsum(1) - 1 + counts[:, None]).clamp_min(0)


class _Loan(KVCache):
    """A fork without room: what another cache holds, each row `rows` times, before tokens that nobody keeps.

    Where the tokens of all rows are no more than the only row of the lender, nothing is repeated: queries of all rows
    stand in one, `folded`, and a mask keeps the rows apart. More of them, and the scores between rows, computed in
    vain, would cost more than the copies.
    """

    def __init__(self, lender: KVCache, rows: int) -> None:
        self.lender, self.rows, self.length, self.folded = lender, rows, lender.length, False

    def reserve(
        self, width: int, attention_mask: Bool[Tensor, "B T"] | None
    ) -> tuple[Int[Tensor, "B T"], dict[Attention, Float[Tensor, "_ 1 R _"] | None]]:
        lender = self.lender
        if lender.length != self.length:
            raise ValueError(f"fork of a cache of {self.length} tokens: the cache has gone on to {lender.length}")
        real, positions = _positions(lender.counts.repeat_interleave(self.rows), width, attention_mask)
        padded = lender.padded or attention_mask is not None
        masks = {
            kind: ring.mask(ring.readable(self.length, real), width, padded) for kind, ring in lender.rings.items()
        }
        self.folded = len(lender.counts) == 1 and self.rows * width <= self.length
        return positions, {kind: self._fold(mask) if self.folded else mask for kind, mask in masks.items()}

    def _fold(self, mask: Float[Tensor, "#B 1 T S"] | None) -> Float[Tensor, "1 1 R _"]:
        assert mask is not None  # there are tokens before those read
        width, rows = mask.shape[2], torch.arange(self.rows, device=mask.device)
        mask = mask[:, 0].expand(self.rows, -1, -1)
        apart = mask.new_full((self.rows, width, self.rows, width), -torch.inf)
        apart[rows, :, rows] = mask[:, :, -width:]
        return torch.cat([mask[:, :, :-width].flatten(0, 1), apart.flatten(2).flatten(0, 1)], dim=1)[None, None]

    def write(
        self, layer: int, key: Float[Tensor, "B K T D"], value: Float[Tensor, "B K T D"]
    ) -> tuple[Float[Tensor, "_ K S D"], Float[Tensor, "_ K S D"]]:
        """As of `KVCache`; where rows are `folded`, all in one."""
        ring = self.lender.rings[self.lender.kinds[layer]]
        places = ring.places(ring.held(self.length))
        keys, values = self.lender.keys[layer][:, :, places], self.lender.values[layer][:, :, places]
        return self._behind(keys, key), self._behind(values, value)

    def _behind(self, held: Float[Tensor, "_ K S D"], new: Float[Tensor, "B K T D"]) -> Float[Tensor, "_ K _ D"]:
        new = new.to(held.dtype)
        if self.folded:
            return torch.cat([held, new.transpose(0, 1).flatten(1, 2)[None]], dim=2)
        return torch.cat([held.repeat_interleave(self.rows, dim=0), new], dim=2)


class _Ring:
    """The slots of all layers of one kind of attention, and which of them may be read.

    `bias` (B, 1, 1, slots) is what attention adds to the scores: 0 for a token that may be read, -inf for padding and,
    in a static cache, for slots not yet filled. `last` (1,) is the slot last filled, for a static cache; of a sliced
    one, `newest` are the slots last opened and `filled` all that hold a token.
    """

    newest: slice | Tensor
    filled: slice

    def __init__(self, bias: Float[Tensor, "B 1 1 S"], capacity: int, band: int) -> None:
        self.bias, self.slots, self.band = bias, bias.shape[3], band
        self.turns = self.slots < capacity
        self.last = torch.full((1,), -1, device=bias.device, dtype=torch.long)

    def places(self, tokens: range) -> slice | Tensor:
        """The slots of these tokens."""
        if tokens.stop <= self.slots:
            return slice(tokens.start, tokens.stop)
        if len(tokens) == 1:
            return slice(tokens.start % self.slots, tokens.start % self.slots + 1)
        return torch.arange(tokens.start, tokens.stop, device=self.last.device) % self.slots

    def held(self, length: int) -> range:
        """Those of the first `length` tokens that are still there."""
        return range(max(0, length - self.slots), length)

    def reserve(self, start: int, real: Bool[Tensor, "B T"], padded: bool) -> Float[Tensor, "#B 1 T _"] | None:
        """The mask of tokens read at once, over those still held and themselves."""
        readable, width = self.readable(start, real), real.shape[1]
        stop = start + width
        self.bias[..., self.places(self.held(stop))] = readable[..., -self.slots :]
        self.last.fill_((stop - 1) % self.slots)
        self._open(range(start, stop))
        return self.mask(readable, width, padded)

    def readable(self, start: int, real: Bool[Tensor, "B T"]) -> Float[Tensor, "B 1 1 _"]:
        """0 for what is held and for real tokens behind it, -inf for padding, in order."""
        held = self.bias[..., self.places(self.held(start))].repeat_interleave(len(real) // len(self.bias), dim=0)
        return torch.cat([held, torch.where(real, 0.0, -torch.inf).to(held.dtype)[:, None, None]], dim=3)

    def mask(self, readable: Float[Tensor, "B 1 1 S"], width: int, padded: bool) -> Float[Tensor, "#B 1 T S"] | None:
        """What the last `width` of these tokens may read; None where that is plain causal attention."""
        if readable.shape[3] == width and not padded and width <= self.band:
            return None
        tokens = torch.arange(readable.shape[3], device=readable.device)
        before = tokens[-width:, None] - tokens
        # Without padding all rows have the same mask, and one of them is enough.
        mask = readable[: None if padded else 1].masked_fill((before < 0) | (before >= self.band), -torch.inf)
        # A padding query may read nothing, and the softmax of nothing is NaN: let every token read itself.
        return mask.masked_fill(before == 0, 0.0)

    def reserve_one(self, length: int, padded: bool) -> Float[Tensor, "B 1 1 _"] | None:
        """The mask of the token that makes `length`: all that is held, less padding."""
        self._open(range(length - 1, length))
        if not padded:
            return None
        self.bias[..., self.newest] = 0.0
        return self.bias[..., self.filled]

    def _open(self, tokens: range) -> None:
        self.newest, self.filled = self.places(tokens), slice(min(tokens.stop, self.slots))

    def reserve_on_device(self) -> Float[Tensor, "B 1 1 S"]:
        """The same without asking the device where it stands."""
        self._step(1)
        return self.bias.index_fill_(3, self.last, 0.0)

    def rewind(self) -> None:
        # What stood in the slot before has left the band, so nothing is lost.
        self.bias.index_fill_(3, self.last, -torch.inf)
        self._step(-1)

    def _step(self, by: int) -> None:
        self.last += by
        if self.turns:
            self.last.remainder_(self.slots)

    def turn(
        self, storage: Float[Tensor, "B K _ D"], new: Float[Tensor, "B K T D"], length: int
    ) -> Float[Tensor, "B K _ D"]:
        """Store the last of several tokens that do not fit beside those held; returns what they read, in order."""
        held = self.held(length - new.shape[2])
        whole = torch.cat([storage[:, :, self.places(held)], new.to(storage.dtype)], dim=2) if held else new
        storage[:, :, self.places(self.held(length))] = whole[:, :, -self.slots :].to(storage.dtype)
        return whole

    def copy(self, old: Tensor, new: Tensor, ring: "_Ring", length: int) -> None:
        """Copy what is held, (B, _, slots, _), into the slots of another `ring`, each row as often as `new` has it."""
        tokens = range(max(0, length - min(self.slots, ring.slots)), length)
        target = new.view(len(old), -1, *new.shape[1:])
        target[:, :, :, ring.places(tokens)] = old[:, :, self.places(tokens)][:, None]
