"""Several adapters on one base that are read as one model: its logits are a rule's, of those of its parts.

A folder of such weights has `combined.json` and a PEFT adapter folder for each part. The parts are read one after the
other on the shared base, so a token costs as many forward passes as there are parts.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sordino.errors import ModelError
from sordino.evidence import require_safetensors
from sordino.model.handle import Model
from sordino.model.loading import loading, quiet
from sordino.model.methods import switched_off
from sordino.model.methods.rules import Rule, rule_of

__all__ = ["COMBINED", "Combined", "is_combined", "restore_combined", "save_combined"]

COMBINED = "combined.json"
_FORMAT = 1


class Combined(nn.Module):
    """A causal language model whose logits are `rule`'s of those of the adapters of one PEFT model, `shared`.

    The cache that it returns holds the layers of all parts, one part's after the other's, so that whatever edits the
    rows of a cache edits those of every part.
    """

    def __init__(self, shared: Any, rule: Rule) -> None:
        """The adapters of `shared` are called part0, part1 and so on, in the order of the parts of `rule`."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        super().__init__()
        self.shared, self.combine, self.on = shared, rule, True
        self.more: tuple[str, ...] = ()
        self.layers = tuple(layer for layer in shared.modules() if isinstance(layer, BaseTunerLayer))
        self.head = _Head(self)
        # In the weights, so that digests tell apart rules on the same adapters.
        said = json.dumps({"rule": rule.name, "parts": rule.parts, "settings": rule.settings}, sort_keys=True)
        self.register_buffer("said", torch.tensor(list(said.encode()), dtype=torch.uint8, device=self.device))
        self.splits = self._splits()

    @property
    def inner(self) -> Any:
        """The transformers model that all parts share."""
        return self.shared.get_base_model()

    @property
    def config(self) -> Any:
        """The configuration of the base."""
        return self.inner.config

    @property
    def dtype(self) -> torch.dtype:
        """The type of the numbers of the base."""
        return self.inner.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.shared.parameters()).device  # type: ignore[no-any-return]

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the base."""
        return self.inner.get_input_embeddings()  # type: ignore[no-any-return]

    def get_output_embeddings(self) -> nn.Module:
        """What makes logits (..., V) of the hidden states of all parts, side by side (..., parts · d)."""
        return self.head

    @contextmanager
    def untuned(self) -> Iterator[None]:
        """The base alone, as it was loaded, as long as this is open."""
        before, self.on = self.on, False
        try:
            with switched_off(self.shared):
                yield
        finally:
            self.on = before

    def use(self, part: int) -> None:
        """Let the adapter of `part`, and those of `more`, be the ones that take part in what is computed next."""
        if not self.on:
            return
        names = [f"part{part}", *self.more]
        for layer in self.layers:
            # PEFT's own switch goes through all weights of all adapters, for every part of every token.
            layer._active_adapter = names

    @property
    def count(self) -> int:
        """How many forward passes a token takes."""
        return len(self.combine.parts) if self.on else 1

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        past_key_values: Any = None,
        logits_to_keep: int = 0,
        **given: Any,
    ) -> Any:
        """As the base's own, with logits (B, T, V) by the rule; `given` goes to the base as it is."""
        from transformers.modeling_outputs import CausalLMOutputWithPast

        found, caches = list[Tensor](), []
        for part, past in enumerate(self._pasts(past_key_values)):
            self.use(part)
            with self._cut(found) if self.splits else _kept(found) as keep:
                read = self.inner(input_ids=input_ids, past_key_values=past, **given)
                keep(read)
            caches.append(getattr(read, "past_key_values", None))
        found = [values[:, -logits_to_keep:] for values in found]
        logits = self.head(torch.cat(found, dim=-1)) if self.splits else self._combined(found)
        return CausalLMOutputWithPast(logits=logits, past_key_values=_joined(caches))

    def _combined(self, logits: Sequence[Tensor]) -> Tensor:
        return self.combine(logits) if self.on else logits[0]

    def _pasts(self, cache: Any) -> list[Any]:
        from transformers.cache_utils import Cache

        if cache is None:
            return [None] * self.count
        size = len(cache.layers) // self.count
        return [Cache(layers=cache.layers[part * size : (part + 1) * size]) for part in range(self.count)]

    @contextmanager
    def _cut(self, found: list[Tensor]) -> Iterator[Any]:
        """The head reads nothing as long as this is open, and what it would have read is added to `found`."""

        def cut(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            found.append(args[0])
            return (args[0][:, :0], *args[1:])

        handle = self.inner.get_output_embeddings().register_forward_pre_hook(cut)
        try:
            yield lambda read: None
        finally:
            handle.remove()

    def _splits(self) -> bool:
        """Whether the logits of the base are, to the bit, what its head makes of the hidden states before it."""
        ids = torch.arange(8, device=self.device)[None] % int(self.config.get_text_config().vocab_size)
        was_training, hidden = self.training, list[Tensor]()
        self.eval()
        try:
            with torch.no_grad(), self.untuned():
                whole = self.inner(input_ids=ids, use_cache=False).logits
                with self._cut(hidden):
                    self.inner(input_ids=ids, use_cache=False)
                return torch.equal(self.inner.get_output_embeddings()(hidden[0]), whole)
        except (IndexError, RuntimeError, TypeError, ValueError):
            return False
        finally:
            self.train(was_training)


@contextmanager
def _kept(found: list[Tensor]) -> Iterator[Any]:
    yield lambda read: found.append(read.logits)


def _joined(caches: Sequence[Any]) -> Any:
    """One cache with the layers of all; None where one of them has none."""
    from transformers.cache_utils import Cache

    if any(getattr(cache, "layers", None) is None for cache in caches):
        return None
    return Cache(layers=[layer for cache in caches for layer in cache.layers])


class _Head(nn.Module):
    """The base's head on the hidden states of every part, and the rule on what it makes of them.

    Where the base's head cannot be split off it is never called: those who hook into it then find that out.
    """

    def __init__(self, owner: Combined) -> None:
        super().__init__()
        self.owner = (owner,)  # in a tuple, or it would be a module within itself

    def forward(self, states: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., parts · d)."""
        owner, logits = self.owner[0], []
        head = owner.inner.get_output_embeddings()
        for part, piece in enumerate(states.chunk(owner.count, dim=-1)):
            owner.use(part)
            logits.append(head(piece))
        return owner._combined(logits)


def is_combined(folder: Path) -> bool:
    """Whether the weights in `folder` are several adapters that are read as one model."""
    return (folder / COMBINED).is_file()


def save_combined(
    folder: Path, rule: str, parts: Mapping[str, Path], settings: Mapping[str, Any], tokenizer: Any = None
) -> None:
    """Write the PEFT adapters in the folders `parts` to `folder`, to be read as one model by `rule`.

    Rules: "ensemble" (`settings`: weights, a number a part, by default all alike), "whp" (alpha; parts model and
    reinforced) and "uld" (weight, filter; parts model and assistant), see `sordino.model.methods.rules`. No model is
    loaded. Raises `ModelError` for an unknown rule, wrong parts or settings, or a part that is no adapter.
    """
    made = rule_of(rule, tuple(parts), settings)
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(made.parts):
        source, target = parts[part], folder / f"part{number}"
        _check_part(source)
        target.mkdir(exist_ok=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(source / name, target / name)
    said = {"format": _FORMAT, "rule": made.name, "parts": list(made.parts), "settings": made.settings}
    (folder / COMBINED).write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))


def _check_part(folder: Path) -> None:
    require_safetensors(folder)
    if not all((folder / name).is_file() for name in ("adapter_config.json", "adapter_model.safetensors")):
        raise ModelError(f"{folder} is no PEFT adapter.", "Give the folder weights/ of a run tuned by lora.")


def restore_combined(base: Model, folder: Path) -> Model:
    """`base` with the adapters in `folder` on it, as one model; raises `ModelError` where they are damaged."""
    from peft import PeftModel

    rule = _read(folder)
    places = [folder / f"part{number}" for number in range(len(rule.parts))]
    for place in places:
        _check_part(place)
    with loading(base.config, "The adapters on"), quiet():
        shared = PeftModel.from_pretrained(base.module, str(places[0]), adapter_name="part0", is_trainable=False)
        for number, place in enumerate(places[1:], 1):
            shared.load_adapter(str(place), adapter_name=f"part{number}", is_trainable=False)
    if any(config.is_prompt_learning for config in shared.peft_config.values()):
        message = f"A part of {folder} puts virtual tokens before a text, which cannot be combined with others."
        raise ModelError(message, "Combine adapters that were tuned by lora.")
    return Model(module=Combined(shared.to(base.device), rule).eval(), tokenizer=base.tokenizer, config=base.config)


def _read(folder: Path) -> Rule:
    try:
        said = json.loads((folder / COMBINED).read_text())
        kind, rule, parts, settings = (said[key] for key in ("format", "rule", "parts", "settings"))
    except (ValueError, KeyError, TypeError, OSError) as error:
        message = f"{folder / COMBINED} is damaged: {type(error).__name__}."
        raise ModelError(message, "Restore it from where it was made.") from error
    if kind != _FORMAT:
        message = f"{folder / COMBINED} has format {kind!r}; this Sordino reads format {_FORMAT}."
        raise ModelError(message, "Use the version of Sordino that wrote it.")
    return rule_of(rule, tuple(parts), settings)
