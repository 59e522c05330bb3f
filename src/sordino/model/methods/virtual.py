"""Virtual tokens: prefix tuning (Li & Liang 2021) and prompt tuning (Lester et al. 2021), by PEFT."""

from typing import Any

from torch import nn

from sordino.config import MethodConfig

__all__ = ["prefix_config", "prompt_config", "real_positions"]


def prefix_config(method: MethodConfig) -> Any:
    """Keys and values of virtual tokens in every layer, tuned themselves (no network that makes them)."""
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=method.virtual_tokens)


def prompt_config(module: Any, method: MethodConfig) -> Any:
    """Embeddings of virtual tokens, at first those of random words, as Lester et al. advise."""
    from peft import PromptTuningConfig

    return PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=method.virtual_tokens,
        prompt_tuning_init="SAMPLE_VOCAB",
        # Not the hidden size, which is another in some models (OPT-350M).
        token_dim=module.get_input_embeddings().weight.shape[1],
    )


def real_positions(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    """As a hook of a PEFT model: logits of the tokens that were given, none of the virtual ones."""
    extra = output.logits.shape[1] - kwargs["input_ids"].shape[1]
    if extra > 0:
        output.logits = output.logits[:, extra:]
    return output
