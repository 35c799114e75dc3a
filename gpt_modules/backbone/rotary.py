"""Rotary positions: a query and a key are turned by angles that grow with their positions, so that their product knows
only how far apart they stand (Su et al. 2021, section 3.2.2).

Channel i of a head turns with channel i + R / 2 by the angle p theta^(-2 i / R), for i below R / 2 and a token at
position p; R is the part of a head that turns, the rest stands as it is (GPT-NeoX-20B: Black et al. 2022, section
2.1.1). Three ways to stretch the angles of a model to more positions than it was trained with:

- linear: all of them divided by a factor (Chen et al. 2023, equation 1);
- llama3: the slow ones divided, the fast ones left, blended between (Grattafiori et al. 2024, released code);
- yarn: the same with a ramp over channels, and attention made sharper (Peng et al. 2023, section 3).

Frequencies are computed in float32, in the order of operations of `transformers`, so that angles at far positions are
the same numbers.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gpt_modules.errors import UserError
from gpt_modules.storage.json_files import shown

Scaling = Literal["linear", "llama3", "yarn"]

_NEEDED: dict[Scaling, tuple[str, ...]] = {
    "linear": (),
    "llama3": ("original_positions", "low_freq_factor", "high_freq_factor"),
    "yarn": ("original_positions",),
}
_POSSIBLE: dict[Scaling, tuple[str, ...]] = {
    "linear": (),
    "llama3": (),
    "yarn": ("beta_fast", "beta_slow", "attention_factor"),
}


@dataclass(frozen=True)
class RopeScaling:
    """Rotary positions stretched beyond those of training.

    Args:
        kind: see the head of this file.
        factor: how many times as far.
        original_positions: of training; llama3 and yarn.
        low_freq_factor, high_freq_factor: llama3 divides the angles of channels that turn fewer than the first times
            within `original_positions`, and leaves those that turn more than the second.
        beta_fast, beta_slow: the same of yarn, in the other order; left out: 32 and 1.
        attention_factor: what yarn multiplies turned queries and keys by; left out: 0.1 ln(factor) + 1 (equation 22).

    Raises `UserError`, one line naming the field, for one that is missing, idle or no such number.
    """

    kind: Scaling
    factor: float
    original_positions: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Scaling):
            raise UserError(f"kind: found {shown(self.kind)}, expected one of {', '.join(get_args(Scaling))}")
        for name in self.__dataclass_fields__:
            if name != "kind":
                self._check(name, name == "factor" or name in _NEEDED[self.kind])
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and not least < most:
                raise UserError(f"{high}: found {most}, expected more than {low} ({least})")

    def _check(self, name: str, needed: bool) -> None:
        value = getattr(self, name)
        if value is None and needed:
            raise UserError(f"{name}: found none, expected one, which {self.kind} needs")
        if value is not None and not needed and name not in _POSSIBLE[self.kind]:
            raise UserError(f"{name}: found {shown(value)}, expected none, as {self.kind} has no use for it")
        kinds = int if name == "original_positions" else int | float
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf):
            number = "a whole number of at least 1" if kinds is int else "a finite number above 0"
            raise UserError(f"{name}: found {shown(value)}, expected {number}")


class Rotation(NamedTuple):
    """Cosines of tokens' angles, and sines, the first half of them negative, (..., T, 1, R): for all heads alike."""

    cos: Float[Tensor, "..."]
    sin: Float[Tensor, "..."]


class Rotary:
    """Positions -> rotations. No module and no buffer: a cast of the model to bfloat16 must not reach the frequencies,
    whose third digit is a turn at position 1,000, and they are in no file.
    """

    def __init__(self, size: int, theta: float, scaling: RopeScaling | None) -> None:
        """Args: size: R, channels of a head that turn."""
        self.frequencies, self.amplitude = frequencies(size, theta, scaling)

    def __call__(self, positions: Int[Tensor, "*B T"]) -> Rotation:
        if self.frequencies.device != positions.device:
            self.frequencies = self.frequencies.to(positions.device)
        with torch.autocast(positions.device.type, enabled=False):
            angles = (positions[..., None].float() * self.frequencies)[..., None, :]
            cos, sin = angles.cos() * self.amplitude, angles.sin() * self.amplitude
            return Rotation(torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1))


def rotate(heads: Float[Tensor, "B T H D"], rotation: Rotation) -> Float[Tensor, "B T H D"]:
    """Turn the first R channels of each head; in float32 where the rotation is, back in the type of the heads."""
    cos, sin = rotation
    turning, rest = heads[..., : cos.shape[-1]], heads[..., cos.shape[-1] :]
    first, second = turning.chunk(2, dim=-1)
    turned = torch.addcmul(turning * cos, torch.cat([second, first], dim=-1), sin).to(heads.dtype)
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def frequencies(size: int, theta: float, scaling: RopeScaling | None) -> tuple[Float[Tensor, "N"], float]:
    """Radians a position (R / 2,) of each pair of channels, float32 on the CPU, and what the rotation is scaled by."""
    powers = theta ** (torch.arange(0, size, 2, dtype=torch.float32, device="cpu") / size)
    if scaling is None:
        return 1.0 / powers, 1.0
    if scaling.kind == "linear":
        return 1.0 / powers / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(1.0 / powers, scaling), 1.0
    sharper = scaling.attention_factor
    sharper = max(1.0, 0.1 * math.log(scaling.factor) + 1.0) if sharper is None else sharper
    return _yarn(powers, size, theta, scaling), sharper


def _llama3(plain: Float[Tensor, "N"], scaling: RopeScaling) -> Float[Tensor, "N"]:
    positions, low, high = scaling.original_positions, scaling.low_freq_factor, scaling.high_freq_factor
    assert positions is not None
    assert low is not None
    assert high is not None
    wavelengths = 2 * math.pi / plain
    blend = (positions / wavelengths - low) / (high - low)
    blended = (1 - blend) * plain / scaling.factor + blend * plain
    slow, fast = wavelengths > positions / low, wavelengths < positions / high
    return torch.where(slow, plain / scaling.factor, torch.where(fast, plain, blended))


def _yarn(powers: Float[Tensor, "N"], size: int, theta: float, scaling: RopeScaling) -> Float[Tensor, "N"]:
    assert scaling.original_positions is not None
    turns = scaling.original_positions / (2 * math.pi)
    fast = 32.0 if scaling.beta_fast is None else scaling.beta_fast
    slow = 1.0 if scaling.beta_slow is None else scaling.beta_slow
    # Equation 17: the channel that turns so many times within the original positions.
    first, last = (size * math.log(turns / times) / (2 * math.log(theta)) for times in (fast, slow))
    low, high = max(math.floor(first), 0), min(math.ceil(last), size - 1)
    width = high - low if high != low else 0.001
    kept = 1 - ((torch.arange(len(powers), dtype=torch.float32, device="cpu") - low) / width).clamp(0, 1)
    return 1.0 / (scaling.factor * powers) * (1 - kept) + 1.0 / powers * kept
