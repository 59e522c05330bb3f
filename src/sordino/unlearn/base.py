"""The contracts of unlearning: a deletion that was resolved, the run that comes of it, and how methods are found.

A method is a file of `sordino.unlearn.methods` (or an entry point of the group `sordino.unlearners`) with a function of
the same name, an `Unlearner`, decorated with `@unlearner`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from sordino.config import RunConfig, recorded
from sordino.errors import UnlearningError
from sordino.evidence import digest
from sordino.records import Example, Split
from sordino.records.placed import tallied
from sordino.records.store import save as save_split
from sordino.results import Cost, DeletionRequest, Notice, Tier
from sordino.run import Run

__all__ = ["Child", "Deletion", "Method", "Say", "Ticker", "Unlearner", "create_child", "finish_child", "unlearner"]

Say = Callable[[str], None]
Ticker = Callable[[str, int], Callable[[int], None]]

Needs = Literal["lora", "shards", "dp", "base", "refusals", "alternatives"]


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """A request, resolved against the run whose model is to forget.

    Of the records of those who ask, `forget` were trained on and `others` were not; `retain` are trained on and stay;
    `never` are held out by coin, `validation` measures utility: neither was trained on. `left` is the split without
    anything of those who ask, which is what the run that comes of it holds.
    """

    run: Run
    request: DeletionRequest
    forget: Sequence[Example]
    others: Sequence[Example]
    retain: Sequence[Example]
    never: Sequence[Example]
    validation: Sequence[Example]
    left: Split

    @cached_property
    def config(self) -> RunConfig:
        """The configuration that the run was trained under."""
        return recorded(self.run.card.config, str(self.run.path / "run.json"))


@dataclass(frozen=True, kw_only=True)
class Child:
    """The run that is to hold what a method makes: a method writes its `weights` folder, by `run.write_folder`.

    `seed` seeds all of the method's own randomness; `settings` are the method's parameters, all given. What takes long
    goes on after an interruption from what lies in the run's private folder.
    """

    run: Run
    seed: int
    settings: Mapping[str, Any]
    say: Say = lambda text: None
    ticker: Ticker = lambda name, total: lambda done: None


@runtime_checkable
class Unlearner(Protocol):
    """`(deletion, child)` to what it cost; afterwards `child.run.weights` is there."""

    def __call__(self, deletion: Deletion, child: Child) -> Cost:
        """Write the weights of the run that has forgotten."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method: its `name`, the `tier` it belongs to, what it `needs`, and the defaults of its settings.

    `control` says that it is one of the two controls and promises nothing.
    """

    name: str
    tier: Tier
    run: Unlearner
    summary: str
    needs: frozenset[Needs] = frozenset()
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    paper: str = ""
    control: bool = False


def unlearner(
    *,
    tier: Tier,
    needs: Sequence[Needs] = (),
    defaults: Mapping[str, Any] | None = None,
    paper: str = "",
    control: bool = False,
) -> Callable[[Unlearner], Method]:
    """Make a `Method` of a function; its name is the function's, its summary the first line of its docstring."""

    def made(function: Unlearner) -> Method:
        return Method(
            name=function.__name__,  # type: ignore[attr-defined]
            tier=tier,
            run=function,
            summary=(function.__doc__ or "").strip().split("\n")[0],
            needs=frozenset(needs),
            defaults=dict(defaults or {}),
            paper=paper,
            control=control,
        )

    return made


def create_child(deletion: Deletion, method: str, root: Path | None = None) -> Run:
    """The run folder for what comes of `deletion`: the records that stay, the card of the parent, status "unlearning".

    It lies beside its parent, or in `root`; `parent` in its card names that. `finish_child` ends it.
    """
    parent = deletion.run.card
    config = deletion.config
    run = Run.create(root or deletion.run.path.parent, config.name, digest(deletion.request.id, method))
    save_split(deletion.left, run.records)
    # Canaries are found again by their manifests, new tokens by their rows.
    for name in ("canaries.json", "audit_canaries.json", "new_tokens.safetensors", "manifest.json"):
        if (deletion.run.private / name).exists():
            run.write_private(name, (deletion.run.private / name).read_bytes())
    run.write_card(
        dataclasses.replace(
            parent,
            name=run.path.name,
            status="unlearning",
            config=msgspec.to_builtins(config),
            parent=parent.name,
            unlearning={"request": deletion.request.id, "method": method, "from": parent.model["weights"]},
        )
    )
    return run


def finish_child(deletion: Deletion, child: Child, method: Method, cost: Cost) -> Run:
    """End the child of `deletion`: what changed is checked, its manifest and its card are written.

    Raises `UnlearningError` where a method that was to change the weights did not: a no-op is never taken for success.
    """
    from sordino.manifest import write_manifest
    from sordino.model import weights_digest

    run, parent = child.run, deletion.run.card
    found = weights_digest(run.weights)
    leaves_them = method.control or method.tier == "dp"
    if found == parent.model["weights"] and not leaves_them:
        message = f"{method.name} left the weights as they were ({found}): nothing was forgotten."
        raise UnlearningError(message, "Raise its learning rate or its epochs, or use another method.")
    card = run.card
    # Steps on records that stay are not private, whatever the training was.
    privacy = {} if method.tier == "approximate" and not method.control else card.privacy
    run.write_card(
        dataclasses.replace(
            card,
            status="trained",
            data={**card.data, "counts": tallied(deletion.left.examples)},
            model={**card.model, "weights": found},
            privacy=privacy,
            notices=(*_kept_notices(card.notices, method), *_notices(deletion, privacy)),
            unlearning={
                **card.unlearning,
                "tier": method.tier,
                "method": method.name,
                "settings": dict(child.settings),
                "seed": child.seed,
                "cost": msgspec.to_builtins(cost),
                "forgotten": len(deletion.forget),
                "promise": _PROMISES[method.tier],
            },
        )
    )
    write_manifest(run)
    run.event("unlearned", method=method.name, tokens=cost.tokens, seconds=round(cost.seconds, 3))
    return run


_PROMISES: Mapping[Tier, str] = {
    "exact": "trained on what stays, and on nothing else",
    "dp": "the weights as they were, which differential privacy keeps close to those without the deleted",
    "approximate": "empirical, no guarantee",
}


# What is true of weights that were unlearned so, and of none that were trained anew on what stays.
_OF_WEIGHTS = ("no-longer-private", "remembers")


def _kept_notices(notices: Sequence[Notice], method: Method) -> Sequence[Notice]:
    anew = method.tier == "exact" and not method.control
    return [one for one in notices if not (anew and one.kind in _OF_WEIGHTS)]


def _notices(deletion: Deletion, privacy: Mapping[str, Any]) -> tuple[Notice, ...]:
    gone = len(deletion.forget) + len(deletion.others)
    made = [Notice(kind="deleted", count=gone, message=f"{gone:,} records were deleted on request.")]
    if deletion.run.card.privacy and not privacy:
        message = "The steps of unlearning were not private: the guarantee of the training no longer holds."
        made.append(Notice(kind="no-longer-private", count=1, message=message))
    return tuple(made)
