"""A language model or classifier with its tokenizer, and the switch between what it became and what it was."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sordino.classifier import Classes, usable_context
from sordino.config import MethodConfig, ModelConfig
from sordino.evidence import digest
from sordino.model.methods import base_state, untuned, virtual_tokens

__all__ = ["Model"]

DEFAULT_CONTEXT = 1024


@dataclass(frozen=True)
class Model:
    """A model and its tokenizer; `tuned=False` is the same weights with the tuning switched off.

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
        """The longest sequence the model was built for, in tokens, less the virtual ones of its method.

        The base of a tuned model has the same context, so that both read the same windows.
        """
        length = getattr(self.module.config, "max_position_embeddings", None)
        if length and self.classes is not None:
            length = usable_context(self.module, int(length))
        return (int(length) if length else DEFAULT_CONTEXT) - virtual_tokens(self.method)

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The module in evaluation mode without gradients, with its tuning on or off as `tuned` says."""
        switch = nullcontext() if self.tuned else untuned(self.module)
        was_training = self.module.training
        self.module.eval()
        try:
            with torch.inference_mode(), switch:
                yield self.module
        finally:
            self.module.train(was_training)

    def base(self) -> "Model":
        """The untuned model: the tuning switched off, or for full fine-tuning loaded from its source."""
        if not self.tuned or self.method is None:
            return self
        if self.method.kind != "full":
            return dataclasses.replace(self, tuned=False)
        from sordino.model.loading import load  # here, because loading makes handles

        return load(self.config, classes=self.classes)

    def digest(self) -> str:
        """blake2b over the names, types, shapes and bytes of the weights in use.

        Untuned, that is the digest of the model as it was loaded, whatever the method.
        """
        return digest(*_tensor_parts(self.module.state_dict() if self.tuned else base_state(self.module)))


def _tensor_parts(state: Mapping[str, torch.Tensor]) -> Iterator[str | bytes]:
    for name, tensor in sorted(state.items()):
        yield name
        yield f"{tensor.dtype}{tuple(tensor.shape)}"
        yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
