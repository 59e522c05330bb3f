"""A model as it is deployed: with its adapter, in the numbers of its weights, or in eight bits."""

import json
import warnings
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sordino.config import ModelConfig
from sordino.errors import ModelError, first_line
from sordino.evidence import digest, require_safetensors
from sordino.model import Model, load, on_adapter, resolve, weights_digest

__all__ = [
    "context_of",
    "fetch",
    "identity",
    "load_deployed",
    "quantize_int8",
    "takes_embeddings",
    "virtual_tokens_of",
]

_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
# What transformers needs, beyond itself, to load weights that are stored quantised.
_LIBRARIES = {
    "bitsandbytes": "bitsandbytes", "gptq": "gptqmodel", "awq": "gptqmodel", "torchao": "torchao", "hqq": "hqq",
    "quanto": "optimum-quanto", "compressed-tensors": "compressed-tensors",
}  # fmt: skip


def fetch(config: ModelConfig) -> Path:
    """The folder of a model, downloaded where it is a hub id; raises `ModelError` with what to do.

    Refused are formats that transformers does not run as they are deployed (GGUF), pickled weights, and
    an adapter where a model is wanted.
    """
    path = Path(config.path)
    if path.suffix == ".gguf" or (path.is_dir() and any(path.glob("*.gguf")) and not any(path.glob("*.safetensors"))):
        message = f"{config.path} is GGUF, which would have to be converted back to be loaded here."
        hint = "Audit what you deploy: serve it, and use --endpoint URL."
        raise ModelError(message, hint)
    found = resolve(config.path)
    folder = Path(found) if Path(found).is_dir() else _download(config, found)
    require_safetensors(folder)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        message = f"{config.path} is an adapter, not a model."
        raise ModelError(
            message, f"Give it as --adapter, and the model that it was tuned from as --model{_base(folder)}."
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"{config.path} has no config.json.", "Give a folder saved by save_pretrained.")
    _check_library(folder, config.path)
    return folder


def _base(folder: Path) -> str:
    named = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
    return f" ({named})" if named else ""


def _download(config: ModelConfig, name: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [*_FILES, "*.py"] if config.remote_code else _FILES
    try:
        return Path(snapshot_download(name, revision=config.revision, allow_patterns=wanted))
    except (OSError, ValueError, RuntimeError) as error:
        message = f"The model {name!r} cannot be fetched: {first_line(error)}."
        raise ModelError(message, "Check the name; a hub id needs a network, a folder needs config.json.") from error


def _settings(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise ModelError(f"{folder / 'config.json'} is damaged: {error}.", "Restore it.") from error
    return found if isinstance(found, dict) else {}


def _check_library(folder: Path, name: str) -> None:
    from importlib.util import find_spec

    method = str((_settings(folder).get("quantization_config") or {}).get("quant_method", ""))
    library = _LIBRARIES.get(method)
    if library is not None and find_spec(library.replace("-", ".", 1).replace("-", "_")) is None:
        message = f"The weights of {name} are quantised ({method}), and {library} is not installed."
        raise ModelError(message, f"`pip install {library}`, or serve the model and use --endpoint URL.")


def context_of(folder: Path) -> int | None:
    """The longest sequence the model in `folder` was built for, as its configuration says."""
    settings = _settings(folder)
    inner = settings.get("text_config") or {}
    for name in ("max_position_embeddings", "n_positions"):
        value = settings.get(name) or inner.get(name)
        if isinstance(value, int):
            return value
    return None


def takes_embeddings(folder: Path) -> bool:
    """Whether the model in `folder` reads embeddings in place of token ids; True where only its own code tells."""
    import transformers

    for name in _settings(folder).get("architectures") or ():
        kind = getattr(transformers, str(name), None)
        if kind is not None:
            return "inputs_embeds" in signature(kind.forward).parameters
    return True


def virtual_tokens_of(adapter: Path) -> int:
    """How many positions of the context the PEFT adapter in a folder takes for itself."""
    return int(json.loads((adapter / "adapter_config.json").read_text()).get("num_virtual_tokens") or 0)


def identity(folder: Path, adapter: Path | None, dtype: str, quantize: str | None) -> str:
    """A digest of all files and settings that decide about a deployed model's numbers."""
    parts = [weights_digest(folder)] + ([weights_digest(adapter)] if adapter else [])
    return digest(*parts, dtype, quantize or "")


def load_deployed(
    config: ModelConfig, folder: Path, *, adapter: Path | None = None, dtype: str = "auto", quantize: str | None = None
) -> Model:
    """The model in `folder`, with its `adapter`, in `dtype`, quantised as `quantize` says.

    Statistics accumulate in float32 whatever `dtype` is. Raises `ModelError`.
    """
    if quantize and config.device not in ("auto", "cpu"):
        raise ModelError(f"int8-dynamic runs on CPUs, and model.device is {config.device!r}.", "Set it to cpu.")
    placed = ModelConfig(
        path=str(folder), remote_code=config.remote_code, device="cpu" if quantize else config.device
    )  # fmt: skip
    kind = "auto" if dtype == "auto" else getattr(torch, dtype)
    model = load(placed, dtype=torch.float32 if quantize else kind)
    if adapter is not None:
        model = on_adapter(model, adapter)
    if quantize:
        return Model(module=quantize_int8(model.module), tokenizer=model.tokenizer, config=model.config)
    return model


def quantize_int8(module: nn.Module) -> nn.Module:
    """`module` with every linear layer in int8, activations quantised as they come (torch's dynamic scheme).

    Raises `ModelError` where fewer than half of the weights are in such layers: nothing would be tested.
    """
    fixed = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    layers = {id(m.weight): m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear)}
    linear = sum(size for key, size in layers.items() if key not in fixed)
    total = sum(p.numel() for p in module.parameters() if id(p) not in fixed)
    if linear < total / 2:
        message = f"{linear:,} of {total:,} weights are in linear layers, which is what int8-dynamic quantises."
        raise ModelError(message, "Audit this model as it is deployed, behind --endpoint URL.")
    with warnings.catch_warnings():
        # Deprecated in favour of a package that torch does not bring; there as long as torch is pinned.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=UserWarning, message=".*quantize.*deprecated.*")
        from torch.ao.quantization import quantize_dynamic

        made: nn.Module = quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    return made
