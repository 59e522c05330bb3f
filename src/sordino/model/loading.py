"""From a name to a model and its tokenizer, and their digests."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sordino.classifier import Classes, load_classifier, unreported
from sordino.config import ModelConfig
from sordino.errors import ConfigError, ModelError, SordinoError, first_line
from sordino.evidence import digest, digest_files, require_safetensors
from sordino.model.handle import Model

__all__ = [
    "BUNDLED",
    "load",
    "load_tokenizer",
    "loading",
    "pick_device",
    "quiet",
    "resolve",
    "tokenizer_digest",
    "tokenizer_digest_of",
    "weights_digest",
]

BUNDLED = "sordino-tiny"

# Where torchao is installed, transformers imports it for every model, and it warns of kernels for other machines.
for _logger in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_logger).setLevel(logging.ERROR)


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` is CUDA, else Apple's MPS, else the CPU."""
    if name == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"model.device is {name!r}, which this machine lacks.", "Use auto or cpu.") from error
    return device


def resolve(path: str) -> str:
    """The folder of a bundled or local model, or the hub id itself."""
    if path == BUNDLED:
        return str(Path(__file__).parents[1] / "bundled" / "tiny")
    if Path(path).is_dir():
        require_safetensors(Path(path))
        return path
    if Path(path).exists():
        raise ModelError(f"{path} is a file, not a model folder.", "Give the folder with config.json.")
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ModelError(f"There is no model folder {path}.", "Check the path, or give a hub id (owner/name).")
    return path


@contextmanager
def _without_bars() -> Iterator[None]:
    # Progress is shown by whoever called, once; the loaders' own bars would stand in between.
    from transformers.utils import logging as told

    was_on = told.is_progress_bar_enabled()
    told.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            told.enable_progress_bar()


@contextmanager
def loading(config: ModelConfig, what: str) -> Iterator[None]:
    """Whatever fails inside is a `ModelError` about `what` of the model."""
    # Hugging Face loaders fail in many ways; all of them mean: this name gives no usable model.
    from safetensors import SafetensorError

    try:
        with _without_bars():
            yield
    except SordinoError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            hint = "It brings code of its own; set model.remote_code: true only if you have read that code."
        else:
            hint = "Check the name; a hub id needs a network, a folder needs config.json and *.safetensors."
        raise ModelError(f"{what} {config.path!r} cannot be loaded: {first_line(error)}.", hint) from error


def load_tokenizer(config: ModelConfig, folder: str | None = None) -> Any:
    """The tokenizer of a model (or of `folder`), with a padding token."""
    from transformers import AutoTokenizer

    with loading(config, "The tokenizer of"):
        tokenizer = AutoTokenizer.from_pretrained(
            folder or resolve(config.path), revision=config.revision, trust_remote_code=config.remote_code
        )
    if tokenizer.pad_token_id is None:
        # Padding is masked everywhere, so any token serves.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
    return tokenizer


def load(
    config: ModelConfig,
    folder: str | None = None,
    dtype: torch.dtype | str = torch.float32,
    *,
    classes: Classes | None = None,
) -> Model:
    """The untuned model (or the fully tuned weights in `folder`) in `dtype`, or "auto"; safetensors only.

    With `classes` it is a classifier of those, in float32. Raises `ModelError` where it is missing,
    brings code, has pickled weights, or is neither a causal LM nor, with `classes`, a trunk that a
    classifier's head fits on.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(config)
    if classes is not None:
        source, pad = folder or resolve(config.path), tokenizer.pad_token_id
        with loading(config, "The classifier"), unreported():
            module = load_classifier(config, source, classes, pad=pad, tuned=folder is not None)
        return Model(module.to(pick_device(config.device)), tokenizer, config, classes=classes)
    with loading(config, "The model"):
        module = AutoModelForCausalLM.from_pretrained(
            folder or resolve(config.path),
            revision=config.revision,
            trust_remote_code=config.remote_code,
            use_safetensors=True,
            dtype=dtype,
        )
    if module.get_output_embeddings() is None:
        raise ModelError(f"{config.path!r} has no language-model head.", "Use a causal language model.")
    return Model(module=module.to(pick_device(config.device)), tokenizer=tokenizer, config=config)


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT without bars, and without warnings of what is meant to be so."""
    # PEFT uses names that transformers renames, and asks the hub about vocabularies it cannot reach.
    with warnings.catch_warnings(), _without_bars():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        warnings.filterwarnings("ignore", message=".*[Cc]ould not find a config file.*")
        # Where a model has both kinds of linear layer, PEFT corrects it for each.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        yield


def tokenizer_digest(model: Model) -> str:
    """A digest of the tokenizer's rules."""
    return tokenizer_digest_of(model.tokenizer)


def tokenizer_digest_of(tokenizer: Any) -> str:
    """A digest of a tokenizer's rules, whatever padding and truncation it came with: a `Serializer` takes them off."""
    backend = tokenizer.backend_tokenizer
    padding, truncation = backend.padding, backend.truncation
    backend.no_padding()
    backend.no_truncation()
    try:
        return digest(backend.to_str(), str(tokenizer.chat_template or ""))
    finally:
        if padding is not None:
            backend.enable_padding(**padding)
        if truncation is not None:
            backend.enable_truncation(**truncation)


def weights_digest(folder: Path) -> str:
    """A digest of the weight files in a folder, and of the files that say how they are used."""
    names = ("config.json", "adapter_config.json", "method.json", "combined.json")
    settings = [p for name in names if (p := folder / name).is_file()]
    found = digest_files([*folder.glob("*.safetensors*"), *settings])
    if not (folder / "combined.json").is_file():
        return found
    parts = sorted(path.parent for path in folder.glob("*/adapter_config.json"))
    return digest(found, *(said for part in parts for said in (part.name, weights_digest(part))))
