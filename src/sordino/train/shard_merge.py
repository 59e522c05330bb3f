"""The mean of LoRA adapters as one adapter: arithmetic on files, without a model and without torch."""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sordino.errors import ModelError

__all__ = ["linked", "merged", "tensors_of"]

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
# Factors by PEFT's names, and the axis along which each has the rank.
_FACTORS = {".lora_A.": 0, ".lora_embedding_A": 0, ".lora_B.": 1, ".lora_embedding_B": 1}
# Settings under which the update of a weight is not scale · B · A alone.
_REFUSED = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication", "lora_bias")


def merged(parts: Sequence[tuple[Path, float]], folder: Path) -> None:
    """Write to `folder` one PEFT LoRA adapter of rank n·r whose update is Σ w·ΔW of n adapters of rank r, exactly.

    `parts` are adapter folders and their weights w. An update is s·B·A with s = α/r (rsLoRA, Kalajdzievski 2023:
    α/√r); the A's are put below one another, the w·B's beside one another, and α is such that s stays. Raises
    `ModelError` where the adapters differ in more than their numbers, or hold more than factors.
    """
    from safetensors.numpy import save_file

    if not parts:
        raise ModelError("There is no adapter to take the mean of.", "Give at least one.")
    settings = [_settings(path) for path, _ in parts]
    if any(_essence(other) != _essence(settings[0]) for other in settings[1:]):
        message = f"{len(parts)} adapters differ in rank, targets or scaling: they have no mean."
        raise ModelError(message, "Take adapters of one training in shards.")
    tensors = [tensors_of(path) for path, _ in parts]
    if any({n: t.shape for n, t in other.items()} != {n: t.shape for n, t in tensors[0].items()} for other in tensors):
        message = f"{len(parts)} adapters differ in the shapes of their tensors: they have no mean."
        raise ModelError(message, "Take adapters of one training in shards.")
    joined = {name: _joined(name, [t[name] for t in tensors], [w for _, w in parts]) for name in tensors[0]}
    count, first = len(parts), settings[0]
    scaled = count if not first.get("use_rslora") else math.sqrt(count)
    first = {**first, "r": count * int(first["r"]), "lora_alpha": first["lora_alpha"] * scaled}
    save_file(joined, str(folder / WEIGHTS), metadata={"format": "pt"})
    (folder / SETTINGS).write_text(json.dumps(first, indent=2, sort_keys=True) + "\n")


def _joined(name: str, values: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    axis = next((axis for part, axis in _FACTORS.items() if part in name), None)
    if axis is None or any(v.ndim != 2 for v in values):
        raise ModelError(
            f"The adapter has a tensor {name}, which is no factor of LoRA.", "Use variant plain or rslora."
        )
    if axis == 1:
        # In float64, and rounded once.
        values = [(v.astype(np.float64) * w).astype(v.dtype) for v, w in zip(values, weights, strict=True)]
    return np.ascontiguousarray(np.concatenate(values, axis=axis))


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of an adapter; raises `ModelError` where they are missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(str(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        message = f"The adapter in {folder} cannot be read: {error}."
        raise ModelError(message, "Restore it, or train that shard again.") from error


def _settings(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / SETTINGS).read_text())
    except (OSError, ValueError) as error:
        message = f"The adapter in {folder} has no readable {SETTINGS}: {error}."
        raise ModelError(message, "Restore it, or train that shard again.") from error
    more = [name for name in _REFUSED if found.get(name)]
    if found.get("peft_type") != "LORA" or more:
        what = more[0] if more else f"peft_type {found.get('peft_type')}"
        message = f"The adapter in {folder} has {what}: its update is not a product of two factors."
        raise ModelError(message, "Use method.kind lora with variant plain or rslora.")
    return found


def _essence(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: sorted(v) if isinstance(v, list) else v for k, v in settings.items()}


def linked(source: Path, target: Path) -> None:
    """`target` as another name of the file `source`, or a copy of it where the two are on different disks.

    Files of snapshots are replaced and never written to, so that neither name can change what the other one has.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
