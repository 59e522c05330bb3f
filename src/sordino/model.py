"""The model handle: a language model or classifier with its tokenizer, tuned or as it was before tuning."""

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sordino.classifier import Classes, head_names, load_classifier, prepare_shape, usable_context
from sordino.config import MethodConfig, ModelConfig
from sordino.errors import ConfigError, ModelError, SordinoError, did_you_mean
from sordino.evidence import digest, digest_files, require_safetensors

__all__ = [
    "BUNDLED",
    "Model",
    "attach",
    "count_parameters",
    "load",
    "load_tokenizer",
    "pick_device",
    "resolve",
    "restore",
    "save",
    "tokenizer_digest",
    "weights_digest",
]

BUNDLED = "sordino-tiny"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
DEFAULT_CONTEXT = 1024


@dataclass(frozen=True)
class Model:
    """A model and its tokenizer; `tuned=False` is the same weights with the adapter switched off.

    With `classes` it is a classifier of those, else a causal language model.
    """

    module: Any
    tokenizer: Any
    config: ModelConfig
    method: MethodConfig | None = None
    tuned: bool = True
    classes: Classes | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device  # type: ignore[no-any-return]

    @property
    def context(self) -> int:
        """The longest sequence the model was built for, in tokens."""
        length = getattr(self.module.config, "max_position_embeddings", None)
        if length and self.classes is not None:
            return usable_context(self.module, int(length))
        return int(length) if length else DEFAULT_CONTEXT

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The module in evaluation mode without gradients, with its adapter on or off as `tuned` says."""
        switch = nullcontext() if self.tuned or not _is_adapted(self.module) else self.module.disable_adapter()
        was_training = self.module.training
        self.module.eval()
        try:
            with torch.inference_mode(), switch:
                yield self.module
        finally:
            self.module.train(was_training)

    def base(self) -> "Model":
        """The untuned model: the adapter switched off, or for full fine-tuning loaded from its source."""
        if not self.tuned or self.method is None:
            return self
        if _is_adapted(self.module):
            return dataclasses.replace(self, tuned=False)
        return load(self.config, classes=self.classes)

    def digest(self) -> str:
        """blake2b over the names, types, shapes and bytes of the weights in use."""
        state = self.module.state_dict()
        if not self.tuned:
            # Named as before PEFT wrapped them, so that the digest is that of the model as it was loaded.
            state = {_plain_name(k): v for k, v in state.items() if "lora_" not in k and ".modules_to_save." not in k}
        return digest(*_tensor_parts(state))


def _plain_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")


def _tensor_parts(state: Mapping[str, torch.Tensor]) -> Iterator[str | bytes]:
    for name, tensor in sorted(state.items()):
        yield name
        yield f"{tensor.dtype}{tuple(tensor.shape)}"
        yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _is_adapted(module: nn.Module) -> bool:
    return hasattr(module, "peft_config")


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
        return str(Path(__file__).parent / "bundled" / "tiny")
    if Path(path).is_dir():
        require_safetensors(Path(path))
        return path
    if Path(path).exists():
        raise ModelError(f"{path} is a file, not a model folder.", "Give the folder with config.json.")
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ModelError(f"There is no model folder {path}.", "Check the path, or give a hub id (owner/name).")
    return path


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _without_bars() -> Iterator[None]:
    # Progress is shown by whoever called, once; the loaders' own bars would stand in between.
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


@contextmanager
def _loading(config: ModelConfig, what: str) -> Iterator[None]:
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
        raise ModelError(f"{what} {config.path!r} cannot be loaded: {_first_line(error)}", hint) from error


def load_tokenizer(config: ModelConfig, folder: str | None = None) -> Any:
    """The tokenizer of a model (or of `folder`), with a padding token."""
    from transformers import AutoTokenizer

    with _loading(config, "The tokenizer of"):
        tokenizer = AutoTokenizer.from_pretrained(
            folder or resolve(config.path), revision=config.revision, trust_remote_code=config.remote_code
        )
    if tokenizer.pad_token_id is None:
        # Padding is masked everywhere, so any token serves.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
    return tokenizer


def load(config: ModelConfig, folder: str | None = None, *, classes: Classes | None = None) -> Model:
    """The untuned model (or the fully tuned weights in `folder`), a classifier of `classes` if given.

    Safetensors only. Raises `ModelError` where it is missing, brings code, has pickled weights, or is
    neither a causal LM nor, with `classes`, a trunk that a classifier's head fits on.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(config)
    if classes is not None:
        source, pad = folder or resolve(config.path), tokenizer.pad_token_id
        with _loading(config, "The classifier"), _unreported():
            module = load_classifier(config, source, classes, pad=pad, tuned=folder is not None)
        return Model(module.to(pick_device(config.device)), tokenizer, config, classes=classes)
    with _loading(config, "The model"):
        module = AutoModelForCausalLM.from_pretrained(
            folder or resolve(config.path),
            revision=config.revision,
            trust_remote_code=config.remote_code,
            use_safetensors=True,
            dtype=torch.float32,
        )
    if module.get_output_embeddings() is None:
        raise ModelError(f"{config.path!r} has no language-model head.", "Use a causal language model.")
    return Model(module=module.to(pick_device(config.device)), tokenizer=tokenizer, config=config)


@contextmanager
def _unreported() -> Iterator[None]:
    # A head is meant to be new: the loader's table of what is missing would only alarm.
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def _quiet() -> Iterator[None]:
    # PEFT uses names that transformers renames, and asks the hub about vocabularies it cannot reach.
    with warnings.catch_warnings(), _without_bars():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        warnings.filterwarnings("ignore", message=".*[Cc]ould not find a config file.*")
        yield


def attach(model: Model, method: MethodConfig, seed: int) -> Model:
    """The model made ready to be tuned by `method`: adapters added, everything else frozen.

    Raises `ConfigError` where `targets` name no module.
    """
    if method.kind == "full":
        model.module.requires_grad_(True)
        return dataclasses.replace(model, method=method)
    from peft import LoraConfig, TaskType, get_peft_model

    targets: Any = method.targets if isinstance(method.targets, str) else list(method.targets)
    if isinstance(targets, str) and targets != "all-linear":
        targets = [targets]
    _check_targets(model.module, method)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM if model.classes is None else TaskType.SEQ_CLS,
        modules_to_save=None if model.classes is None else head_names(model.module),
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=targets,
        # GPT-2 keeps its linear layers transposed; PEFT only warns when this is left to it.
        fan_in_fan_out=model.module.config.model_type == "gpt2",
    )
    torch.manual_seed(seed)
    try:
        with _quiet():
            module = get_peft_model(model.module, config)
    except ValueError as error:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.module.named_modules() if not list(m.children())})
        message = f"method.targets is {method.targets!r}: {_first_line(error)}"
        raise ConfigError(message, f"Modules here: {', '.join(linear)}.") from error
    return dataclasses.replace(model, module=module, method=method)


def _check_targets(module: nn.Module, method: MethodConfig) -> None:
    # PEFT is content when one of several names is found, and would leave the others out silently.
    names = [name for name, _ in module.named_modules()]
    for target in (method.targets,) if isinstance(method.targets, str) else method.targets:
        if target != "all-linear" and not any(f".{name}".endswith(f".{target}") for name in names):
            known = {n.rsplit(".", 1)[-1] for n, m in module.named_modules() if isinstance(m, nn.Linear)}
            message = f"method.targets names {target!r}, and no module of this model is called so."
            raise ConfigError(message, did_you_mean(target, known))


def save(model: Model, folder: Path) -> None:
    """Write the adapter, or the full model, with its tokenizer, as safetensors."""
    with _quiet():
        kwargs = {"save_embedding_layers": False} if _is_adapted(model.module) else {}
        model.module.save_pretrained(str(folder), safe_serialization=True, **kwargs)
    (folder / "README.md").unlink(missing_ok=True)
    if (path := folder / "adapter_config.json").exists():
        # PEFT writes sets in an order that differs from process to process.
        settings = json.loads(path.read_text())
        settings["target_modules"] = sorted(settings["target_modules"])
        settings["modules_to_save"] = sorted(set(settings["modules_to_save"] or ())) or None
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        if model.classes is not None:
            model.module.config.save_pretrained(str(folder))  # an adapter alone would not name its classes
    model.tokenizer.save_pretrained(str(folder))


def restore(config: ModelConfig, method: MethodConfig, folder: Path, classes: Classes | None = None) -> Model:
    """The tuned model saved in `folder` by `save`, a classifier of `classes` if given."""
    require_safetensors(folder)
    if method.kind == "full":
        return dataclasses.replace(load(config, str(folder), classes=classes), method=method)
    from peft import PeftModel

    base = load(config, classes=classes)
    with _loading(config, "The adapter on"), _quiet():
        module = PeftModel.from_pretrained(base.module, str(folder), is_trainable=False)
    return dataclasses.replace(base, module=module.to(base.device), method=method)


def count_parameters(config: ModelConfig, method: MethodConfig, classes: Classes | None = None) -> dict[str, int]:
    """`parameters`, `trainable` and `context` of a model tuned by `method`; no weights are loaded."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForCausalLM if classes is None else AutoModelForSequenceClassification
    with _loading(config, "The model"):
        shape = AutoConfig.from_pretrained(
            resolve(config.path), revision=config.revision, trust_remote_code=config.remote_code
        )
        if classes is not None:
            shape = prepare_shape(shape, classes)
        with torch.device("meta"):
            module = kind.from_config(shape, trust_remote_code=config.remote_code)
            model = attach(Model(module=module, tokenizer=None, config=config, classes=classes), method, seed=0)
    sizes = [(p.numel(), p.requires_grad) for p in model.module.parameters()]
    return {
        "parameters": sum(n for n, _ in sizes),
        "trainable": sum(n for n, tuned in sizes if tuned),
        "context": model.context,
    }


def tokenizer_digest(model: Model) -> str:
    """A digest of the tokenizer's rules."""
    return digest(model.tokenizer.backend_tokenizer.to_str(), str(model.tokenizer.chat_template or ""))


def weights_digest(folder: Path) -> str:
    """A digest of the weight files in a folder, and of the files that say how they are used."""
    settings = [p for name in ("config.json", "adapter_config.json") if (p := folder / name).is_file()]
    return digest_files([*folder.glob("*.safetensors*"), *settings])
