"""LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023), DoRA (Liu et al. 2024), FFA-LoRA (Sun et al. 2024); by PEFT."""

from typing import Any

from torch import nn

from sordino.config import MethodConfig
from sordino.errors import ConfigError, did_you_mean
from sordino.model.methods.layout import conv1d

__all__ = ["freeze_a", "lora_config"]


def lora_config(module: nn.Module, method: MethodConfig, heads: list[str] | None = None) -> Any:
    """PEFT's configuration; raises `ConfigError` where `targets` name no module.

    `heads` are the modules of a classifier that are trained whole, and saved with the adapter.
    """
    from peft import LoraConfig

    _check_targets(module, method)
    targets: Any = method.targets if isinstance(method.targets, str) else list(method.targets)
    if isinstance(targets, str) and targets != "all-linear":
        targets = [targets]
    return LoraConfig(
        task_type="CAUSAL_LM" if heads is None else "SEQ_CLS",
        modules_to_save=heads,
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=targets,
        use_rslora=method.variant == "rslora",
        use_dora=method.variant == "dora",
        # GPT-2 keeps its linear layers transposed; PEFT only warns when this is left to it.
        fan_in_fan_out=any(isinstance(found, conv1d()) for found in module.modules()),
    )


def freeze_a(module: nn.Module) -> None:
    """Leave the factors A as they were drawn and tune B alone (Sun et al. 2024, arXiv:2403.12313).

    The change of a weight is then linear in what is tuned: noise is not multiplied by noise under differential
    privacy, and averages of adapters are adapters of the average.
    """
    for name, parameter in module.named_parameters():
        if ".lora_A." in name or ".lora_embedding_A." in name:
            parameter.requires_grad_(False)


def _check_targets(module: nn.Module, method: MethodConfig) -> None:
    # PEFT is content when one of several names is found, and would leave the others out silently.
    names = [name for name, _ in module.named_modules()]
    for target in (method.targets,) if isinstance(method.targets, str) else method.targets:
        if target != "all-linear" and not any(f".{name}".endswith(f".{target}") for name in names):
            linear = (nn.Linear, conv1d())
            known = {n.rsplit(".", 1)[-1] for n, m in module.named_modules() if isinstance(m, linear)}
            message = f"method.targets names {target!r}, and no module of this model is called so."
            raise ConfigError(message, did_you_mean(target, known))
