"""Virtual tokens: prefix tuning (Li & Liang 2021) and prompt tuning (Lester et al. 2021), by PEFT."""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

from torch import nn

from sordino.config import MethodConfig
from sordino.errors import ConfigError

__all__ = ["prefix_config", "prompt_config", "real_positions", "without_virtual"]


def prefix_config(module: nn.Module, method: MethodConfig, heads: list[str] | None = None) -> Any:
    """Keys and values of virtual tokens in every layer, tuned themselves (no network that makes them).

    `heads` are the modules of a classifier that are trained whole, and saved with the adapter. Raises
    `ConfigError` where its layers take no keys and values but their own.
    """
    from peft import PrefixTuningConfig

    if heads is not None:
        _check_past(module, heads)
    task = "CAUSAL_LM" if heads is None else "SEQ_CLS"
    return PrefixTuningConfig(task_type=task, num_virtual_tokens=method.virtual_tokens, modules_to_save=heads)


def _check_past(module: Any, heads: list[str]) -> None:
    # PEFT finds out in the first forward pass, and leaves out layers between an encoder and its last one.
    trunk = getattr(module, module.base_model_prefix)
    takes = ["past_key_values" in signature(one.forward).parameters for one in (module, trunk)]
    if takes[0] or (takes[1] and len(heads) == 1):
        return
    what = "a head of several modules, of which PEFT runs one" if takes[1] else "layers that take no other's keys"
    message = f"method.kind is prefix, but {type(module).__name__} has {what}."
    raise ConfigError(message, "Use prompt or lora.")


def prompt_config(module: Any, method: MethodConfig, heads: list[str] | None = None) -> Any:
    """Embeddings of virtual tokens, at first those of random words, as Lester et al. advise.

    `heads` as in `prefix_config`.
    """
    from peft import PromptTuningConfig

    settings = module.config.get_text_config()
    return PromptTuningConfig(
        task_type="CAUSAL_LM" if heads is None else "SEQ_CLS",
        modules_to_save=heads,
        # Not looked for by PEFT under the names of every family (DistilBERT).
        num_layers=getattr(settings, "num_hidden_layers", None),
        num_attention_heads=getattr(settings, "num_attention_heads", None),
        num_virtual_tokens=method.virtual_tokens,
        prompt_tuning_init="SAMPLE_VOCAB",
        # Not the hidden size, which is another in some models (OPT-350M).
        token_dim=module.get_input_embeddings().weight.shape[1],
    )


def real_positions(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    """As a hook of a PEFT model: logits of the tokens that were given, none of the virtual ones."""
    given = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
    extra = output.logits.shape[1] - given.shape[1]
    if extra > 0:
        output.logits = output.logits[:, extra:]
    return output


@contextmanager
def without_virtual(module: Any) -> Iterator[None]:
    """A PEFT classifier reads no virtual tokens and has its old head as long as this is open.

    PEFT's own switch leaves the tuned head in place, and needs a model that can generate.
    """
    from peft.utils import ModulesToSaveWrapper

    heads = [m for m in module.modules() if isinstance(m, ModulesToSaveWrapper) and not m.disable_adapters]
    trained = [(p, p.requires_grad) for head in heads for p in head.parameters()]
    before = vars(module).get("forward")
    module.forward = module.base_model.forward
    for head in heads:
        head.enable_adapters(False)
    try:
        yield
    finally:
        for head in heads:
            head.enable_adapters(True)
        for parameter, on in trained:
            parameter.requires_grad_(on)
        if before is None:
            del module.forward
        else:
            module.forward = before
