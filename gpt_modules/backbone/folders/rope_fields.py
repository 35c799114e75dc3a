"""Rotary positions as config.json of `transformers` spells them, and has spelled them.

Until version 5 the base stands beside the other fields (`rope_theta`; `rotary_emb_base` and `rotary_pct` in GPT-NeoX)
and a stretch in `rope_scaling`, whose kind is its "type" and later its "rope_type". Since then both stand in
`rope_parameters`. All of these are read. The older form is written, which every version reads, and vLLM.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_modules.backbone.config import DecoderConfig
from gpt_modules.backbone.rotary import RopeScaling
from gpt_modules.errors import UserError
from gpt_modules.storage.documents import typed
from gpt_modules.storage.json_files import shown

# Beside the fields of the family; GPT-NeoX has words of its own for two of them.
ROPE_FIELDS = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")
NEOX_FIELDS = ("rotary_emb_base", "rotary_pct", "rope_scaling", "rope_parameters")
_OURS = {
    "factor": "factor",
    "original_max_position_embeddings": "original_positions",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}
_KINDS = ("default", "linear", "llama3", "yarn")


def read_rope(document: Mapping[str, Any], neox: bool, path: Path) -> dict[str, Any]:
    """The fields of a `DecoderConfig` that say how positions turn.

    Raises:
        UserError: a kind of stretch, or a field of one, that this decoder does not compute.
    """
    found = document.get("rope_scaling") or document.get("rope_parameters") or {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: rope_scaling: found {shown(found)}, expected a mapping of keys")
    parameters = {name: value for name, value in found.items() if value is not None}
    base, part = ("rotary_emb_base", "rotary_pct") if neox else ("rope_theta", "partial_rotary_factor")
    theta = parameters.pop("rope_theta", document.get(base, 10_000.0))
    fraction = parameters.pop("partial_rotary_factor", document.get(part, 0.25 if neox else 1.0))
    if not neox and fraction != 1.0:
        raise UserError(f"{path}: partial_rotary_factor: found {shown(fraction)}, expected 1.0")
    kind = parameters.pop("rope_type", parameters.get("type", "default"))
    parameters.pop("type", None)
    if kind not in _KINDS:
        raise UserError(f"{path}: rope_scaling.rope_type: found {shown(kind)}, expected one of {', '.join(_KINDS)}")
    if kind == "default" and parameters:
        name = next(iter(parameters))
        raise UserError(f"{path}: rope_parameters.{name}: found {shown(parameters[name])}, expected none by default")
    scaling = None if kind == "default" else _scaling(kind, parameters, document, path)
    return {"positions": "rotary", "rope_theta": theta, "rope_fraction": fraction, "rope_scaling": scaling}


def _scaling(kind: str, parameters: dict[str, Any], document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`parameters` without kind, base and part; the number of positions in training may be the model's own."""
    for name, allowed in (("truncate", True), ("finetuned", parameters.get("finetuned"))):
        if parameters.pop(name, allowed) is not allowed:
            raise UserError(f"{path}: rope_scaling.{name}: found {shown(not allowed)}, expected {shown(allowed)}")
    if kind != "linear":
        parameters.setdefault("original_max_position_embeddings", document.get("max_position_embeddings"))
    if unknown := sorted(parameters.keys() - _OURS.keys()):
        known = f"expected none of this name beside {', '.join(_OURS)}"
        raise UserError(f"{path}: rope_scaling.{unknown[0]}: found {shown(parameters[unknown[0]])}, {known}")
    values = {"kind": kind, **{_OURS[name]: value for name, value in parameters.items()}}
    try:
        typed(RopeScaling, values, "rope_scaling")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return values


def write_rope(config: DecoderConfig, neox: bool) -> dict[str, Any]:
    """The same fields in their words."""
    base = {"rotary_emb_base": config.rope_theta, "rotary_pct": config.rope_fraction}
    fields = base if neox else {"rope_theta": config.rope_theta}
    if config.rope_scaling is None:
        return {**fields, "rope_scaling": None}
    said = {name: value for name, value in dataclasses.asdict(config.rope_scaling).items() if value is not None}
    kind = said.pop("kind")
    return {**fields, "rope_scaling": {"rope_type": kind, **{_THEIRS[name]: value for name, value in said.items()}}}
