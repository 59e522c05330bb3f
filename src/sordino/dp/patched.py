"""Which modules of a model get a rule, and their forwards replaced and put back."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sordino.dp.rules import Site, generic, rule_for
from sordino.dp.tape import Tape
from sordino.errors import DPError

__all__ = ["Patched"]


class Patched:
    """The modules that trainable `parameters` of `model` belong to, and a forward for each.

    `group` names, for each parameter, the module it is clipped with where layers are clipped one by one.
    """

    def __init__(self, model: nn.Module, tape: Tape, parameters: dict[str, nn.Parameter]) -> None:
        self.model, self.tape, self.attached = model, tape, False
        self.places = _places(model)
        names = {id(p): name for name, p in parameters.items()}
        self.group: dict[str, str] = {}
        for place, whole in self.places.items():
            for p in model.get_submodule(place).parameters(recurse=whole):
                if p.requires_grad:
                    self.group.setdefault(names[id(p)], place)
        self._undo: list[tuple[nn.Module, str, Any]] = []
        self._hook: Any = None

    def attach(self) -> None:
        """Replace the forwards."""
        if self.attached:
            return
        for module, forward in self.forwards():
            self._replace(module, "forward", forward)
        for module in self.model.modules():
            if _makes_prompts(module):
                self._replace(module, "get_prompt", partial(_one_prompt_a_row, module))
        self._hook = self.model.register_forward_pre_hook(self._see, with_kwargs=True)
        self.attached = True

    def forwards(self) -> list[tuple[nn.Module, Callable[..., Any]]]:
        """The modules and their new forwards; raises `DPError` naming the module for which there can be none."""
        found = []
        for place, whole in self.places.items():
            module = self.model.get_submodule(place)
            if type(module).forward is nn.Module.forward:
                message = f"The parameters of {place or 'the model'} belong to no module that computes."
                raise DPError(message, "Use mode 'one-by-one'.")
            rule = generic if whole else rule_for(module)
            site = Site(name=place or "The model", module=module, original=module.forward, tape=self.tape)
            found.append((module, rule(site)))
        return found

    def detach(self) -> None:
        """Put them back as they were."""
        while self._undo:
            module, attribute, before = self._undo.pop()
            if before is None:
                delattr(module, attribute)
            else:
                setattr(module, attribute, before)
        if self._hook is not None:
            self._hook.remove()
        self._hook, self.attached = None, False

    def _replace(self, module: nn.Module, attribute: str, value: Any) -> None:
        self._undo.append((module, attribute, vars(module).get(attribute)))
        setattr(module, attribute, value)

    def _see(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()]
        if inputs:
            self.tape.see(inputs)


def _makes_prompts(module: nn.Module) -> bool:
    settings = getattr(module, "active_peft_config", None) if hasattr(module, "prompt_encoder") else None
    return settings is not None and settings.peft_type == "PROMPT_TUNING"


def _one_prompt_a_row(module: Any, batch_size: int, *args: Any, **kwargs: Any) -> Any:
    """What PEFT's `get_prompt` gives; it looks virtual tokens up once for all rows, whose gradients would be one."""
    tokens = module.prompt_tokens[module.active_adapter][None].expand(batch_size, -1)
    encoder = module.prompt_encoder[module.active_adapter]
    return encoder(tokens.to(encoder.embedding.weight.device))


def _places(model: nn.Module) -> dict[str, bool]:
    """The names of modules to be patched, and whether each is taken as a whole, its parts with it."""
    found: dict[str, bool] = {}
    for name, module in model.named_modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            place = name
            # A dictionary of parameters computes nothing; what holds it does.
            while place and type(model.get_submodule(place)).forward is nn.Module.forward:
                place = place.rpartition(".")[0]
            whole = place != name or rule_for(module) is generic
            found[place] = found.get(place, False) or whole
    wholes = [place for place, whole in found.items() if whole]
    inside = {p for p in found for w in wholes if p != w and (not w or p.startswith(f"{w}."))}
    return {place: whole for place, whole in found.items() if place not in inside}
