"""Checkpoints: trainable weights, optimizer and random state in one folder that is whole or absent."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sordino.errors import RunError
from sordino.run import write_folder
from sordino.train.progress import Progress

__all__ = ["latest", "load_checkpoint", "save_checkpoint", "trainable"]


def trainable(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that training may change, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _random_state() -> dict[str, torch.Tensor]:
    state = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"rng.cuda.{i:04d}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        state["rng.mps"] = torch.mps.get_rng_state()
    return state


def _set_random_state(state: Mapping[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["rng.cpu"])
    cuda = [state[k] for k in sorted(state) if k.startswith("rng.cuda.")]
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(cuda)
    if "rng.mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["rng.mps"])


def _scaler_state(scaler: torch.amp.GradScaler | None) -> dict[str, torch.Tensor]:
    # Counts and powers of two: exact in float64.
    state = scaler.state_dict() if scaler is not None else {}
    return {f"scaler.{key}": torch.tensor(value, dtype=torch.float64) for key, value in state.items()}


def _set_scaler_state(state: Mapping[str, torch.Tensor], scaler: torch.amp.GradScaler | None) -> None:
    if scaler is None or not scaler.is_enabled():
        return
    kinds = {key: type(value) for key, value in scaler.state_dict().items()}
    scaler.load_state_dict({key: kind(state[f"scaler.{key}"].item()) for key, kind in kinds.items()})


def save_checkpoint(
    folder: Path,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Write everything that the next step depends on to `folder`, replacing what was there at once."""
    weights = trainable(module)
    tensors = {f"weight.{n}": p.detach().cpu().contiguous() for n, p in weights.items()}
    for name, parameter in weights.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value).cpu().contiguous()
    with write_folder(folder) as temporary:
        save_file(tensors | _random_state() | _scaler_state(scaler), str(temporary / "state.safetensors"))
        (temporary / "progress.json").write_text(json.dumps(asdict(progress)))


def load_checkpoint(
    folder: Path,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
) -> Progress:
    """Put a checkpoint back into `module`, `optimizer`, `scaler` and the random state; returns how far it had come."""
    try:
        progress = Progress(**json.loads((folder / "progress.json").read_text()))
        tensors = load_file(str(folder / "state.safetensors"))
    except Exception as error:
        raise RunError(f"The checkpoint {folder} is damaged: {error}.", "Train again without --resume.") from error
    weights = trainable(module)
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(tensors[f"weight.{name}"])
    state: dict[torch.Tensor, dict[str, Any]] = {p: {} for p in weights.values()}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, field, name = key.split(".", 2)
            # AdamW keeps its step count on the CPU even where the weights are elsewhere, unless it is fused.
            fused = any(group.get("fused") for group in optimizer.param_groups)
            device = "cpu" if field == "step" and not fused else weights[name].device
            state[weights[name]][field] = value.to(device)
    optimizer.state.update(state)
    _set_scaler_state(tensors, scaler)
    _set_random_state(tensors)
    return progress


def latest(checkpoints: Path) -> Path | None:
    """The last whole checkpoint, if there is one; what a killed process left half written is removed."""
    for old in checkpoints.glob(".*.old"):
        whole = checkpoints / old.name[1 : -len(".old")]
        if not whole.exists():
            # The process died between the two renames of `write_folder`: the old one is whole.
            old.rename(whole)
    for leftover in checkpoints.glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)
    folder = checkpoints / "last"
    return folder if (folder / "progress.json").exists() else None
