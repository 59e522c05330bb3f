"""What a joint training is checked against before it begins: its arguments, and the folder it would go on from."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

import torch

from sordino.config import TrainConfig
from sordino.errors import ConfigError, RunError, TrainingError
from sordino.run import write_atomic
from sordino.serialize import Tokens
from sordino.train.adapters import Adapters
from sordino.train.joint_private import PrivatePart

__all__ = ["check_joint", "claim", "explained", "fingerprint"]

_SETTINGS = "joint.json"
# What a joint training has no use for, or what changes its results in no way.
_UNUSED = {"accumulation", "gradient_checkpointing", "checkpoint_every", "validate_every", "per_sample", "memory"}


def check_joint(
    adapters: Adapters, tokens: Sequence[Tokens], subsets: Sequence[Sequence[int]], config: TrainConfig,
    private: Sequence[PrivatePart] | None,
) -> None:  # fmt: skip
    """Raise `ConfigError` for what a joint training cannot do, `TrainingError` where an adapter has no target."""
    refused = (
        ("precision", config.precision, config.precision != "fp32"),
        ("select", config.select, config.select != "last"),
        ("stop_loss", config.stop_loss, config.stop_loss is not None),
    )
    for key, value, bad in refused:
        if bad:
            message = f"train.{key} is {value!r}, which adapters trained together cannot have."
            raise ConfigError(message, "They are computed in fp32, without validation: leave it at its default.")
    counts = {"subsets": len(subsets)} | ({} if private is None else {"private parts": len(private)})
    for what, count in counts.items():
        if count != len(adapters):
            raise ConfigError(f"There are {count} {what} for {len(adapters)} adapters.", "Give one an adapter.")
    for k, subset in enumerate(subsets):
        if any(not 0 <= i < len(tokens) for i in subset):
            raise ConfigError(f"The subset of adapter {k} names a record that is not there.", "Places count from 0.")
        if not any(tokens[i].target[1:].any() for i in subset):
            raise TrainingError(f"No record of adapter {k} has a token to train on.", "Give it more records.")


def fingerprint(
    adapters: Adapters, tokens: Sequence[Tokens], subsets: Sequence[Sequence[int]], config: TrainConfig,
    private: Sequence[PrivatePart] | None,
) -> str:  # fmt: skip
    """blake2b over all that decides about the result: base, method, seeds, records, subsets, configuration, plans."""
    found = hashlib.blake2b(digest_size=16)
    used = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in _UNUSED}
    kind = str(adapters.flat.dtype)
    parts = [adapters.model.digest(), asdict(adapters.method), adapters.seeds, used, kind]
    found.update(json.dumps(parts, sort_keys=True, default=str).encode())
    for item in tokens:
        found.update(len(item).to_bytes(8, "big") + item.ids.tobytes() + item.target.tobytes())
    for subset in subsets:
        found.update(json.dumps([int(i) for i in subset]).encode())
    for part in private or ():
        members = [[int(i) for i in unit] for unit in part.members]
        found.update(json.dumps([repr(part.plan), members]).encode() + hashlib.blake2b(part.secret).digest())
    return found.hexdigest()


def claim(folder: Path, key: str) -> None:
    """Make `folder` that of the training `key`; raises `RunError` where it is another's."""
    path = folder / _SETTINGS
    if path.exists():
        try:
            found = json.loads(path.read_text())["training"]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is damaged: {error}.", "Remove the folder and train again.") from error
        if found != key:
            message = f"{folder} holds another joint training: other records, seeds, weights or configuration."
            raise RunError(message, "Restore them, or give another folder.")
        return
    write_atomic(path, json.dumps({"training": key}).encode(), mode=0o600)


@contextmanager
def explained(tokens_at_once: int) -> Iterator[None]:
    """Turn want of memory into a `TrainingError` that says what to do."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not memory and "allocate memory" not in str(error).lower():
            raise
        message = f"Out of memory with {tokens_at_once} tokens a pass."
        hint = "Give fewer tokens_at_once, or use train.gradient_checkpointing; the last checkpoint is untouched."
        raise TrainingError(message, hint) from error
