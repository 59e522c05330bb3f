"""A model made ready to be tuned by a method, what tuning made of it saved, and read again."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sordino.classifier import Classes, head_names, prepare_shape
from sordino.config import MethodConfig, ModelConfig, check_method
from sordino.errors import ConfigError, ModelError, first_line
from sordino.evidence import require_safetensors
from sordino.model.combined import Combined, is_combined, restore_combined
from sordino.model.handle import Model
from sordino.model.loading import load, loading, quiet, resolve
from sordino.model.methods import OWN, Own, own, virtual_tokens
from sordino.model.methods.adapters import attach_adapters
from sordino.model.methods.bitfit import attach_bitfit
from sordino.model.methods.head import attach_head
from sordino.model.methods.ia3 import ia3_config
from sordino.model.methods.lora import freeze_a, lora_config
from sordino.model.methods.virtual import prefix_config, prompt_config, real_positions

__all__ = ["attach", "count_parameters", "on_adapter", "restore", "save", "weightless"]

_TENSORS, _SETTINGS = "tuned.safetensors", "method.json"
_OURS = ("head", "bitfit", "adapters")
_PEFT = {"lora": "LORA", "ia3": "IA3", "prefix": "PREFIX_TUNING", "prompt": "PROMPT_TUNING"}
_SHORTEST = 8


def attach(model: Model, method: MethodConfig, seed: int) -> Model:
    """The model made ready to be tuned by `method`: what it tunes added, everything else frozen.

    Raises `ConfigError` where the method cannot be used on this model, or `targets` name no module.
    """
    check_method(method)
    _check_fit(model, method)
    torch.manual_seed(seed)
    module = model.module
    heads = None if model.classes is None else head_names(module)
    if method.kind == "full":
        module.requires_grad_(True)
    elif method.kind in _OURS:
        module.requires_grad_(False)
        module.add_module(OWN, _ours(module, method, heads))
    else:
        module = _wrapped(module, method, heads)
    return dataclasses.replace(model, module=module, method=method)


def _ours(module: Any, method: MethodConfig, heads: list[str] | None) -> Own:
    if method.kind == "head":
        return attach_head(module, heads)
    if method.kind == "bitfit":
        return attach_bitfit(module, heads)
    return attach_adapters(module, method.bottleneck, heads)


def _wrapped(module: nn.Module, method: MethodConfig, heads: list[str] | None) -> nn.Module:
    from peft import get_peft_model

    try:
        with quiet():
            wrapped = _trimmed(get_peft_model(module, _peft_config(module, method, heads)))
    except (ValueError, NotImplementedError) as error:
        if isinstance(error, ConfigError):
            raise
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in module.named_modules() if not list(m.children())})
        what = f"targets is {method.targets!r}" if method.kind == "lora" else f"kind is {method.kind}"
        raise ConfigError(f"method.{what}: {first_line(error)}.", f"Modules here: {', '.join(linear)}.") from error
    if method.variant == "ffa":
        freeze_a(wrapped)
    return wrapped


def _peft_config(module: nn.Module, method: MethodConfig, heads: list[str] | None) -> Any:
    if method.kind == "lora":
        return lora_config(module, method, heads)
    if method.kind == "ia3":
        return ia3_config(module, heads)
    return (prefix_config if method.kind == "prefix" else prompt_config)(module, method, heads)


def _trimmed(module: Any) -> nn.Module:
    """A PEFT model whose logits have one position a token, whatever it puts before them; a classifier as it is."""
    if module.active_peft_config.is_prompt_learning and module.active_peft_config.task_type != "SEQ_CLS":
        module.register_forward_hook(real_positions, with_kwargs=True)
    wrapped: nn.Module = module
    return wrapped


def _check_fit(model: Model, method: MethodConfig) -> None:
    left = model.context - virtual_tokens(method)
    if left < _SHORTEST:
        message = f"method.virtual_tokens is {method.virtual_tokens}, and the model's context {model.context} tokens."
        raise ConfigError(message, f"Leave at least {_SHORTEST} for records.")
    if getattr(model.module.config, "quantization_config", None) is None:
        return
    if method.kind == "full" or method.variant == "dora":
        what = "weights to tune" if method.kind == "full" else "weight norms, which DoRA divides by"
        message = f"method is {method.kind}{' (dora)' if method.kind == 'lora' else ''}, but the model is quantised:"
        raise ConfigError(f"{message} it has no exact {what}.", "Use lora with variant plain, rslora or ffa.")


def save(model: Model, folder: Path) -> None:
    """Write what was tuned, or the full model, with its tokenizer, as safetensors."""
    if isinstance(model.module, Combined):
        message = "The model is several adapters that are read as one: no one folder of PEFT's holds the same."
        raise ConfigError(message, "Share the run's folder weights/ with Sordino, or combine the shards by merge.")
    added = own(model.module)
    if added is not None and model.method is not None:
        _save_own(added.tensors(model.module), model.method, folder)
    else:
        with quiet():
            kwargs = {"save_embedding_layers": False} if hasattr(model.module, "peft_config") else {}
            model.module.save_pretrained(str(folder), safe_serialization=True, **kwargs)
    (folder / "README.md").unlink(missing_ok=True)
    if (path := folder / "adapter_config.json").exists():
        # PEFT writes sets in an order that differs from process to process.
        settings = json.loads(path.read_text())
        for key in ("target_modules", "feedforward_modules", "modules_to_save"):
            if isinstance(settings.get(key), list):
                settings[key] = sorted(set(settings[key])) or None
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    if model.classes is not None:
        model.module.config.save_pretrained(str(folder))  # what was tuned would not name its classes
    model.tokenizer.save_pretrained(str(folder))


def _save_own(tensors: Mapping[str, torch.Tensor], method: MethodConfig, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, str(folder / _TENSORS))
    settings = {"format": 1, "kind": method.kind}
    if method.kind == "adapters":
        settings["bottleneck"] = method.bottleneck
    (folder / _SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def restore(config: ModelConfig, method: MethodConfig, folder: Path, classes: Classes | None = None) -> Model:
    """The tuned model saved in `folder` by `save`, a classifier of `classes` if given.

    Raises `ModelError` where `folder` has another method's weights.
    """
    if is_combined(folder):
        if method.kind == "full" or classes is not None:
            raise _another(folder, method)
        return dataclasses.replace(restore_combined(load(config), folder), method=method)
    require_safetensors(folder)
    if method.kind == "full":
        return dataclasses.replace(load(config, str(folder), classes=classes), method=method)
    base = load(config, classes=classes)
    if method.kind in _OURS:
        return _restore_own(base, method, folder)
    model = on_adapter(base, folder)
    found = model.module.active_peft_config
    if found.peft_type != _PEFT[method.kind] or virtual_tokens(method) != getattr(found, "num_virtual_tokens", 0):
        raise _another(folder, method)
    return dataclasses.replace(model, method=method)


def on_adapter(base: Model, folder: Path) -> Model:
    """`base` with the PEFT adapter in `folder` on it, whoever trained it."""
    from peft import PeftModel

    with loading(base.config, "The adapter on"), quiet():
        module = PeftModel.from_pretrained(base.module, str(folder), is_trainable=False)
    kinds = {peft: kind for kind, peft in _PEFT.items()}
    found = module.active_peft_config
    method = MethodConfig(kind=kinds.get(found.peft_type, "lora"), **_virtual(found))  # type: ignore[arg-type]
    return dataclasses.replace(base, module=_trimmed(module).to(base.device), method=method)


def _virtual(settings: Any) -> dict[str, int]:
    count = getattr(settings, "num_virtual_tokens", None)
    return {"virtual_tokens": int(count)} if count else {}


def _restore_own(base: Model, method: MethodConfig, folder: Path) -> Model:
    from safetensors.torch import load_file

    with loading(base.config, "The tuned weights on"):
        settings = json.loads((folder / _SETTINGS).read_text())
        tensors = load_file(str(folder / _TENSORS))
    model = attach(base, method, seed=0)
    added = own(model.module)
    assert added is not None  # attach has just put it there
    places = added.tensors(model.module)
    shapes = {name: place.shape for name, place in places.items()}
    if settings.get("kind") != method.kind or shapes != {name: t.shape for name, t in tensors.items()}:
        raise _another(folder, method)
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(tensors[name])
    return model


def _another(folder: Path, method: MethodConfig) -> ModelError:
    message = f"The weights in {folder} were not tuned by method {method.kind} with these settings on this model."
    return ModelError(message, "Use the configuration they were tuned with.")


def count_parameters(config: ModelConfig, method: MethodConfig, classes: Classes | None = None) -> dict[str, int]:
    """`parameters`, `trainable` and `context` of a model tuned by `method`; no weights are loaded."""
    model = weightless(config, method, classes)
    sizes = [(p.numel(), p.requires_grad) for p in model.module.parameters()]
    return {
        "parameters": sum(n for n, _ in sizes),
        "trainable": sum(n for n, tuned in sizes if tuned),
        "context": model.context,
    }


def weightless(config: ModelConfig, method: MethodConfig, classes: Classes | None = None) -> Model:
    """The model made ready to be tuned by `method`, its tensors without storage (on torch's meta device)."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForCausalLM if classes is None else AutoModelForSequenceClassification
    with loading(config, "The model"):
        shape = AutoConfig.from_pretrained(
            resolve(config.path), revision=config.revision, trust_remote_code=config.remote_code
        )
        if classes is not None:
            shape = prepare_shape(shape, classes)
        with torch.device("meta"):
            module = kind.from_config(shape, trust_remote_code=config.remote_code)
            return attach(Model(module=module, tokenizer=None, config=config, classes=classes), method, seed=0)
