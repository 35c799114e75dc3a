"""What a `DecoderConfig` may say: the value of each field, and fields beside one another."""

import math
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_type_hints

from gpt_modules.backbone.rotary import RopeScaling
from gpt_modules.errors import UserError
from gpt_modules.storage.json_files import shown

if TYPE_CHECKING:
    from gpt_modules.backbone.config import DecoderConfig

LARGEST_SIZE = 2**31 - 1
MOST_LAYERS = 100_000
"""Beyond what any machine holds; files may say anything."""

_SIZES = ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd", "window", "n_kv_head", "head_size", "n_inner")
_PROBABILITIES = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
_CHOICES = ("norm", "init", "norm_kind", "positions", "mlp")
_SWITCHES = ("qkv_bias", "proj_bias", "mlp_bias", "qk_norm", "parallel_residual", "tied")
# Of one kind of positions, and what says nothing to the other.
_OF_LEARNED = {"position_offset": 0}
_OF_ROTARY = {"rope_theta": 10_000.0, "rope_fraction": 1.0, "rope_scaling": None}


def check(config: "DecoderConfig") -> None:
    """Raises `UserError`, one line naming the field, for what no decoder can be."""
    _check_values(config)
    _check_heads(config)
    _check_positions(config)
    if config.parallel_residual and config.norm != "pre":
        _refuse(config, "parallel_residual", "false with norm: post")


def _check_values(config: "DecoderConfig") -> None:
    for name in _SIZES:
        _check_size(config, name)
    for name in _PROBABILITIES:
        if not _is_number(getattr(config, name)) or not 0.0 <= getattr(config, name) < 1.0:
            _refuse(config, name, "a probability in [0, 1)")
    annotations = get_type_hints(type(config))
    for name in _CHOICES:
        if getattr(config, name) not in (choices := get_args(annotations[name])):
            _refuse(config, name, f"one of {', '.join(choices)}")
    for name in _SWITCHES:
        if not isinstance(getattr(config, name), bool):
            _refuse(config, name, "true or false")
    if not _is_number(config.layer_norm_epsilon) or not 0.0 < config.layer_norm_epsilon < math.inf:
        _refuse(config, "layer_norm_epsilon", "a number above 0")


def _check_size(config: "DecoderConfig", name: str) -> None:
    value, most = getattr(config, name), MOST_LAYERS if name == "n_layer" else LARGEST_SIZE
    if value is None and name in ("n_kv_head", "head_size", "n_inner"):
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        beyond = f", and at most {most:,}" if isinstance(value, int) and value > most else ""
        _refuse(config, name, f"a whole number of at least 1{beyond}")


def _check_heads(config: "DecoderConfig") -> None:
    if config.head_size is None and config.n_embd % config.n_head:
        _refuse(config, "n_embd", f"a multiple of n_head ({config.n_head})")
    if config.n_kv_head is not None and config.n_head % config.n_kv_head:
        _refuse(config, "n_kv_head", f"a divisor of n_head ({config.n_head})")


def _check_positions(config: "DecoderConfig") -> None:
    offset, theta, fraction = config.position_offset, config.rope_theta, config.rope_fraction
    if isinstance(offset, bool) or not isinstance(offset, int) or not 0 <= offset <= LARGEST_SIZE:
        _refuse(config, "position_offset", "a whole number from 0")
    if not _is_number(theta) or not 1.0 < theta < math.inf:
        _refuse(config, "rope_theta", "a finite number above 1")
    if not _is_number(fraction) or not 0.0 < fraction <= 1.0:
        _refuse(config, "rope_fraction", "a number above 0, up to 1")
    if not isinstance(config.rope_scaling, RopeScaling | None):
        _refuse(config, "rope_scaling", "kind, factor and what the kind needs")
    idle = _OF_ROTARY if config.positions == "learned" else _OF_LEARNED
    for name, nothing in idle.items():
        if getattr(config, name) != nothing:
            _refuse(config, name, f"{nothing} with positions: {config.positions}")
    if config.positions == "rotary" and (config.rotary_width < 2 or config.rotary_width % 2):
        wide = f"an even number of channels of a head of {config.head_width} to turn"
        raise UserError(f"config: rope_fraction: found {fraction}, {config.rotary_width} channels, expected {wide}")


def _refuse(config: "DecoderConfig", name: str, expected: str) -> NoReturn:
    raise UserError(f"config: {name}: found {_plain(getattr(config, name))}, expected {expected}")


def _plain(value: Any) -> str:
    return "one" if isinstance(value, RopeScaling) else shown(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
