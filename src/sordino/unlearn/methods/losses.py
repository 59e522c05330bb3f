"""Every forget loss as a method: the same steps, with what the loss asks for beside the records."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from sordino.errors import UnlearningError
from sordino.results import Cost
from sordino.serialize import Tokens
from sordino.unlearn import losses
from sordino.unlearn.base import Child, Deletion, Method, Needs
from sordino.unlearn.tuning.alternatives import make_alternatives
from sordino.unlearn.tuning.opening import Streams, pieces, seeded
from sordino.unlearn.tuning.refusals import REFUSALS, answered, check_answers, given_answers, refusals, whole
from sordino.unlearn.tuning.retaining import Retained
from sordino.unlearn.tuning.settings import STEPPING, all_given, loss_parameters
from sordino.unlearn.tuning.steps import Epochs, Item, LossSteps, Total
from sordino.unlearn.tuning.working import Worked, begin, tune

__all__ = ["METHODS"]

# Losses of the frozen reference: its ln p of tokens, which is read once, or its logits, in each step.
_ONCE = ("npo", "tnpo", "dpo", "idk_dpo", "alt_po")
_FROZEN = ("undial",)
_REFUSING = ("idk_dpo", "idk_nll", "idk_ap")
_OWN: Mapping[str, Mapping[str, Any]] = {
    "grad_ascent": {"alpha": 0.0},
    "simnpo": {"gamma": 0.125},
    "undial": {"learning_rate": 1e-4},
    "alt_po": {"alternatives": 5},
    "idk_dpo": {"retain_beta": 0.1},
    "idk_nll": {"retain_beta": 0.1},
    "idk_ap": {"retain": "answer_preservation", "retain_beta": 0.1},
}
_ABOUT: Mapping[str, tuple[str, str]] = {
    "grad_ascent": ("gradient ascent: −CE on what is to be forgotten, and nothing else", "arXiv:2210.01504"),
    "grad_diff": ("gradient ascent, and descent on records that stay", "arXiv:2203.12817"),
    "npo": ("negative preference optimisation: ascent that fades as the reference is left behind", "arXiv:2404.05868"),
    "tnpo": ("NPO of each token by itself", "arXiv:2502.19301"),
    "simnpo": ("NPO of the mean token, without a reference", "arXiv:2410.07163"),
    "dpo": ("answers given in `rejected` are preferred to the true ones", "arXiv:2305.18290"),
    "idk_dpo": ("refusals are preferred to the true answers", "arXiv:2401.06121"),
    "alt_po": ("answers that the model makes up are preferred to the true ones", "arXiv:2409.13474"),
    "idk_nll": ("refusals are learned", "arXiv:2401.06121"),
    "idk_ap": ("refusals are learned, and preferred to no answer that stays", "arXiv:2410.08109"),
    "undial": ("the reference with the true token's logit lowered is learned", "arXiv:2402.10052"),
    "ce_u": ("the model's own distribution without the true token is learned", "arXiv:2503.01224"),
    "wga": ("gradient ascent, likelier tokens weighing more", "arXiv:2502.19301"),
    "satimp": ("gradient ascent, tokens weighing by saturation and importance", "arXiv:2505.11953"),
    "max_entropy": ("the uniform distribution is learned", "arXiv:2410.08109"),
}


def _unlearn(name: str, deletion: Deletion, child: Child) -> Cost:
    settings = all_given(name, METHODS[name].defaults, child.settings)
    if not settings["gamma"] and not settings["alpha"]:
        raise UnlearningError("gamma and alpha are both 0: nothing would be done.", "Raise one.")
    if settings["retain"] == "answer_preservation" and name not in _REFUSING:
        message = f"retain of {name} is answer_preservation, which keeps answers against refusals it does not learn."
        raise UnlearningError(message, f"Use nll or kl, or one of {', '.join(_REFUSING)}.")
    _check_sets(name, deletion, settings)
    work = begin(deletion, child, settings)
    items = _items(name, work, settings)
    lengths = [max(map(len, (item.tokens, *item.better))) for item in items]
    steps = LossSteps(
        model=work.opened.model,
        forget=items,
        retained=Retained(deletion.retain, work.opened.serializer, child.seed, held=work.watch.held),
        total=_total(name, work, settings),
        epochs=Epochs(
            lengths=lengths, epochs=settings["epochs"], batch_size=settings["batch_size"], seed=child.seed
        ),
        limit=work.watch.limit,
        precision=deletion.config.train.precision,
    )  # fmt: skip
    return tune(work, steps, settings)


def _check_sets(name: str, deletion: Deletion, settings: Mapping[str, Any]) -> None:
    """Refuse, before a model is loaded, what lacks a set that the method needs."""
    if settings["alpha"] and not any(e.role != "canary" for e in deletion.retain):
        message = f"{name} keeps the model useful on records that stay, and none stays."
        raise UnlearningError(message, "Set alpha to 0 to go without, or train anew.")
    if _better_of(name):
        check_answers(deletion.forget, name)
    if settings["retain"] == "answer_preservation":
        check_answers([e for e in deletion.retain if e.role != "canary"], name)


def _better_of(name: str) -> str | None:
    if name in _REFUSING:
        return "refusals"
    return {"dpo": "given", "alt_po": "made up"}.get(name)


def _items(name: str, work: Worked, settings: Mapping[str, Any]) -> list[Item]:
    """What is to be forgotten, with better answers where the loss asks for them."""
    examples, serializer, child = work.deletion.forget, work.opened.serializer, work.child
    kind = _better_of(name)
    if kind is None:
        return [Item(tokens=t) for t in pieces(examples, serializer)]
    truth = [whole(e.record, serializer) for e in examples]
    better: list[tuple[Tokens, ...]]
    if kind == "refusals":
        better = [(t,) for t in refusals(examples, serializer, seeded(child.seed, Streams.REFUSALS))]
    elif kind == "given":
        better = [(t,) for t in given_answers(examples, serializer, name)]
    else:
        seed = int(seeded(child.seed, Streams.ALTERNATIVES).integers(2**31))
        child.say("making up other answers")
        made = make_alternatives(work.opened, examples, count=settings["alternatives"], seed=seed, folder=work.folder)
        better = [
            tuple(whole(answered(e.record, t), serializer) for t in own)
            for e, own in zip(examples, made, strict=True)
        ]  # fmt: skip
    return [Item(tokens=t, better=b) for t, b in zip(truth, better, strict=True)]


def _total(name: str, work: Worked, settings: Mapping[str, Any]) -> Total:
    forget, retain = losses.FORGET[name], losses.RETAIN[settings["retain"]]
    kept = settings["retain"] == "answer_preservation"
    return Total(
        forget=partial(forget, **{k: settings[k] for k in loss_parameters(forget)}),
        retain=partial(retain, beta=settings["retain_beta"]) if kept else retain,
        gamma=float(settings["gamma"]),
        alpha=float(settings["alpha"]),
        once=name in _ONCE,
        forget_frozen=name in _FROZEN,
        retain_frozen=settings["retain"] == "kl",
        retain_better=_refused(work) if kept else None,
    )


def _refused(work: Worked) -> Callable[[Sequence[int]], Sequence[Tokens]]:
    """Refusals for records that stay, by their places; each always has the same one."""
    retain, serializer, seed = work.deletion.retain, work.opened.serializer, work.child.seed

    @cache
    def refusal(place: int) -> Tokens:
        drawn = int(seeded(seed, Streams.REFUSALS, place).integers(len(REFUSALS)))
        return whole(answered(retain[place].record, REFUSALS[drawn]), serializer)

    return lambda places: [refusal(place) for place in places]


def _passes(name: str, settings: Mapping[str, Any]) -> float:
    """How often a record to forget is read, with one that stays and the answers that are wanted in their place."""
    answers = 1 if _better_of(name) is None else 2
    forget = answers + (name in _FROZEN) / 3
    kept = {"nll": 1.0, "kl": 4 / 3, "answer_preservation": 2.0}[settings["retain"]]
    each = bool(settings["gamma"]) * forget + bool(settings["alpha"]) * kept
    return float(settings["epochs"] * each + bool(settings["gamma"]) * (name in _ONCE) * answers / 3)


def _method(name: str) -> Method:
    needs: dict[str | None, tuple[Needs, ...]] = {"refusals": ("refusals",), "given": ("alternatives",)}
    summary, paper = _ABOUT[name]
    defaults = {"gamma": 1.0, "alpha": 1.0, "retain": "nll", **STEPPING, **loss_parameters(losses.FORGET[name])}
    return Method(
        name=name,
        tier="approximate",
        run=partial(_unlearn, name),
        summary=summary,
        needs=frozenset(needs.get(_better_of(name), ())),
        defaults={**defaults, **_OWN.get(name, {})},
        paper=paper,
        passes=partial(_passes, name),
    )


METHODS: Mapping[str, Method] = {name: _method(name) for name in losses.FORGET}
"""A method for each forget loss, with published defaults."""
