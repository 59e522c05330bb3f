"""The adapter that shards are trained as: where it begins, how it is kept, and put back on its base."""

import json
import tempfile
from pathlib import Path

from sordino.errors import ConfigError, RunError
from sordino.evidence import digest_file
from sordino.model import Model
from sordino.run import Run, write_folder
from sordino.train.shard_merge import SETTINGS, WEIGHTS
from sordino.train.shard_plan import shards_folder

__all__ = ["begun", "check_base", "put", "save_adapter"]


def check_base(model: Model) -> None:
    """Raise `ConfigError` where the base is quantised: its kernels promise no bits, and it is no whole base."""
    if getattr(model.module.config, "quantization_config", None) is not None:
        message = f"The model {model.config.path} is quantised, and shards is set."
        raise ConfigError(message, "Use its weights as they were before, or leave shards out.")


def put(model: Model, folder: Path) -> None:
    """Give the adapter of `model` the values in `folder`."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    found = set_peft_model_state_dict(model.module, load_file(str(folder / WEIGHTS)))
    if found.unexpected_keys or any("lora_" in name for name in found.missing_keys):
        raise RunError(f"The adapter in {folder} does not fit the model.", "Use the base and the settings it is of.")


def save_adapter(model: Model, folder: Path) -> str:
    """Write the adapter of `model` alone, without tokenizer; returns the digest of its weights."""
    from sordino.model.loading import quiet

    with quiet():
        model.module.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    settings = json.loads((folder / SETTINGS).read_text())
    # PEFT writes sets in an order that differs from process to process.
    settings = {name: sorted(value) if isinstance(value, list) else value for name, value in settings.items()}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    return digest_file(folder / WEIGHTS)


def begun(run: Run, model: Model, wanted: str | None = None) -> str:
    """Keep the adapter of `model` as all shards of `run` begin; returns its digest.

    Raises `RunError` where that is not `wanted`: other versions, or another base, draw another adapter.
    """
    folder = shards_folder(run) / "fresh"
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fresh.") as made:
        found = save_adapter(model, Path(made))
    if wanted is not None and found != wanted:
        message = f"The adapter that the shards of {run.path} begin as is not the one that is drawn now."
        raise RunError(message, "Use the versions, the base and the settings that they were begun with, or train anew.")
    with write_folder(folder) as kept:
        return save_adapter(model, kept)
