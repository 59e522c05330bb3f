"""K LoRA adapters (Hu et al. 2021) on one frozen base: a row of values each, used together or one alone."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sordino.config import MethodConfig
from sordino.errors import ConfigError, ModelError
from sordino.model import Model, attach, head_of
from sordino.model.methods.layout import conv1d
from sordino.train.stacked import Part, StackedLinear

__all__ = ["Adapters"]

_ONE_BY_ONE = "Train adapters of this kind one by one."


class Adapters:
    """K adapters for `model`, a causal language model without tuning of its own; K is the number of `seeds`.

    Adapter k begins with the values that `attach(model, method, seeds[k])` draws. `flat` (K, P) holds all values, a
    row an adapter, in the type of the base's weights; the columns from `start` on are trained (ffa leaves out A),
    and `grads` (K, P) are their gradients. The base is changed only while a context of this class is open; then it
    computes under the adapters that were selected, and its own weights require no gradient.

    Raises `ConfigError` naming the key of what only an adapter alone can have: dora, dropout, modules that are saved
    whole (a classifier's head), targets other than linear layers below the head.
    """

    def __init__(self, model: Model, method: MethodConfig, seeds: Sequence[int]) -> None:
        _check(model, method, seeds)
        self.model, self.method, self.seeds = model, method, tuple(seeds)
        head = head_of(model.module)
        with torch.random.fork_rng(), _attached(model, method, self.seeds[0]) as tuned:
            found = _lora_layers(tuned)
            self.layers = [
                StackedLinear(
                    name, layer.get_base_layer(), layer.r["default"], layer.scaling["default"],
                    frozen_a=method.variant == "ffa",
                )
                for name, layer in found.items()
            ]  # fmt: skip
            self._check_layers(head)
            self.start, width = self._lay_out()
            weight: Any = self.layers[0].module.weight
            self.flat = torch.empty(len(self.seeds), width, dtype=weight.dtype, device=weight.device)
            settings = tuned.module.active_peft_config
            for k, seed in enumerate(self.seeds):
                # What PEFT does to each layer when it wraps a model, in its order: it draws what it would draw.
                torch.manual_seed(seed)
                for layer in found.values():
                    layer.update_layer("default", settings.r, lora_alpha=settings.lora_alpha, config=settings)
                self._read(k, found)
        self.grads = torch.zeros_like(self.flat)
        self._open = False

    def __len__(self) -> int:
        """K."""
        return len(self.seeds)

    def _lay_out(self) -> tuple[int, int]:
        """Give each factor its columns, all A before all B; the first that is trained, and how many there are."""
        column = 0
        for layer in self.layers:
            layer.a, column = column, column + layer.sizes[0]
        first_b = column
        for layer in self.layers:
            layer.b, column = column, column + layer.sizes[1]
        return (first_b if self.method.variant == "ffa" else 0), column

    def _check_layers(self, head: nn.Module) -> None:
        for layer in self.layers:
            kind = type(layer.module)
            if layer.module is head:
                message = f"method.targets includes {layer.name}, the head, which sees the rows of a batch mixed."
                raise ConfigError(message, _ONE_BY_ONE)
            if kind not in (nn.Linear, conv1d()):
                message = f"method.targets includes {layer.name}, which is {kind.__name__} and no plain linear layer."
                raise ConfigError(message, _ONE_BY_ONE)

    def _read(self, k: int, found: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for layer in self.layers:
                a, b = layer.factors(self.flat[k : k + 1])
                a.copy_(found[layer.name].lora_A["default"].weight[None])
                b.copy_(found[layer.name].lora_B["default"].weight[None])

    @contextmanager
    def attached(self) -> Iterator["Adapters"]:
        """The base under adapters, those last named to `select`; as it was, bit for bit, when the context ends."""
        if self._open:
            raise RuntimeError("These adapters are attached already.")
        replaced = [(layer.module, layer.module.__dict__.get("forward")) for layer in self.layers]
        with _frozen(self.model.module):
            self._open = True
            try:
                for layer in self.layers:
                    layer.module.forward = layer.forward
                yield self
            finally:
                for module, before in replaced:
                    del module.forward
                    if before is not None:
                        module.forward = before
                for layer in self.layers:
                    layer.part = None
                self._open = False

    @contextmanager
    def alone(self, k: int) -> Iterator["Adapters"]:
        """The base under adapter `k`, whatever the batch."""
        with self.attached():
            self._use(Part(values=self.flat[k : k + 1], grads=None, units=1, rows=0, width=0))
            yield self

    def select(self, chosen: Sequence[int], rows: int, width: int, *, grads: Tensor | None = None) -> Part:
        """Put the batch that follows, (rows, width) tokens, under `chosen`: as many equal groups of rows, in order.

        An adapter may come more than once. Gradients are added to `grads`, if given: (n · G, P), the n equal pieces
        of each group apart, as private training wants its units.
        """
        if rows % len(chosen):
            raise ModelError(f"{rows} rows make no {len(chosen)} equal groups.", "Pad the batch with empty rows.")
        first, last = chosen[0], chosen[-1]
        neighbours = list(chosen) == list(range(first, last + 1))
        # A view where it can be one: values of many adapters are megabytes.
        values = self.flat[first : last + 1] if neighbours else self.flat[list(chosen)]
        units = 1 if grads is None else len(grads) // len(chosen)
        part = Part(values=values, grads=grads, units=units, rows=rows, width=width)
        self._use(part)
        return part

    def _use(self, part: Part) -> None:
        for layer in self.layers:
            layer.part = part

    @contextmanager
    def wrapped(self, k: int) -> Iterator[Model]:
        """An ordinary PEFT model with adapter `k`, to be saved or scored; it is taken off the base again afterwards."""
        with torch.random.fork_rng(), _attached(self.model, self.method, self.seeds[k]) as tuned:
            found = _lora_layers(tuned)
            with torch.no_grad():
                for layer in self.layers:
                    a, b = layer.factors(self.flat[k : k + 1])
                    found[layer.name].lora_A["default"].weight.copy_(a[0])
                    found[layer.name].lora_B["default"].weight.copy_(b[0])
            yield tuned

    def state(self, k: int) -> dict[str, Tensor]:
        """Adapter `k` as PEFT's state dictionary: `….lora_A.weight` (r, d) and `….lora_B.weight` (o, r), copied."""
        state: dict[str, Tensor] = {}
        for layer in self.layers:
            a, b = layer.factors(self.flat[k : k + 1])
            state |= {f"{layer.name}.lora_A.weight": a[0].clone(), f"{layer.name}.lora_B.weight": b[0].clone()}
        return state

    def load_state(self, k: int, state: Mapping[str, Tensor]) -> None:
        """Give adapter `k` the values of `state`; raises `ModelError` where names or shapes are others."""
        places: dict[str, Tensor] = {}
        for layer in self.layers:
            a, b = layer.factors(self.flat[k : k + 1])
            places |= {f"{layer.name}.lora_A.weight": a[0], f"{layer.name}.lora_B.weight": b[0]}
        if {n: t.shape for n, t in places.items()} != {n: t.shape for n, t in state.items()}:
            message = f"A state of {len(state)} tensors does not fit an adapter of {len(places)} on this model."
            raise ModelError(message, "Use the method and the model that it was made with.")
        with torch.no_grad():
            for name, place in places.items():
                place.copy_(state[name])

    @torch.no_grad()
    def check(self) -> None:
        """Compare two groups of a batch with their adapters alone, on a few tokens and with random factors.

        Raises `ModelError` where they differ: the architecture then computes across the rows of a batch.
        """
        generator = torch.Generator().manual_seed(20_221)
        vocabulary = int(self.model.module.config.get_text_config().vocab_size)
        ids = torch.randint(0, vocabulary, (4, 6), generator=generator).to(self.flat.device)
        chosen, kept = [0, len(self) - 1], self.flat.clone()
        try:
            for row in self.flat:
                row.copy_(0.1 * torch.randn(row.shape, generator=generator, dtype=torch.float32))
            with self.model.active(), self.attached():
                self.select(chosen, 4, 6)
                together = self._logits(ids)
            with self.model.active():
                for group, k in enumerate(chosen):
                    with self.alone(k):
                        apart = self._logits(ids[2 * group : 2 * group + 2])
                    error = (together[2 * group : 2 * group + 2] - apart).abs().max()
                    # Written so that NaN does not pass.
                    if not error <= 1e-4 * apart.abs().max():
                        message = f"Adapters computed together differ by {float(error):.2g} from one alone."
                        raise ModelError(message, "Train adapters of this model one by one.")
        finally:
            self.flat.copy_(kept)

    def _logits(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model.module(input_ids=ids, use_cache=False).logits
        return logits


def _check(model: Model, method: MethodConfig, seeds: Sequence[int]) -> None:
    refused = (
        (method.kind != "lora", f"method.kind is {method.kind}", "only lora adapters can be stacked"),
        (method.variant == "dora", "method.variant is dora", "it divides by the norm of a weight of its own"),
        (method.dropout > 0, f"method.dropout is {method.dropout:g}", "stacked adapters have none"),
        (model.classes is not None, "The task is classification", "its head is trained whole (modules_to_save)"),
        (model.method is not None, "The model is tuned already", "adapters are stacked on its base"),
        (len(seeds) < 1, "There are 0 seeds", "each makes an adapter"),
    )
    for bad, what, why in refused:
        if bad:
            raise ConfigError(f"{what}, but {why}.", _ONE_BY_ONE)
    kinds = {p.dtype for p in model.module.parameters()}
    if not kinds <= {torch.float32} and not kinds <= {torch.float64}:
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise ConfigError(f"The model's weights are {names}; adapters are stacked in float32 alone.", _ONE_BY_ONE)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, on in flags:
            parameter.requires_grad_(on)


@contextmanager
def _attached(model: Model, method: MethodConfig, seed: int) -> Iterator[Model]:
    """`model` wrapped by PEFT while the context is open."""
    with _frozen(model.module):
        tuned = attach(model, method, seed)
        try:
            yield tuned
        finally:
            tuned.module.unload()


def _lora_layers(tuned: Model) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: found for name, found in tuned.module.named_modules() if isinstance(found, LoraLayer)}
