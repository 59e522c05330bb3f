"""What a reader of an audit might assume and nobody measured: the attacks that were made shorten the list."""

from collections.abc import Mapping
from typing import Literal

from sordino.attacks.base import Attack

__all__ = ["Kind", "untested"]

Kind = Literal["trained", "classifier", "elsewhere", "text"]

_SHADOWS = "Attacks with shadow models (LiRA, RMIA), which can be stronger than every score used here."
_LABELS = {
    "classifier": "Adversaries who see only labels and ask about many variants of a record.",
    "text": "Adversaries who see generated text and ask otherwise: here, for what follows the first half of a record.",
}
_ONLY_TEXT = "Adversaries who see only generated text (labels)."
_GRADIENTS = "Adversaries who see gradients or weights."
_MORE = "Adversaries who see log-probabilities or gradients, which can tell more than the generated text used here."
_ALWAYS: Mapping[Kind, tuple[str, ...]] = {
    "trained": (
        "Records that always train (outside the audit candidates): their risk is inferred, not measured.",
        "Backdoors, poisoned base weights, and data that reached the base model before this fine-tuning.",
        "Quantised, merged or further tuned copies of this model: test the artefact you deploy.",
    ),
    "classifier": (
        "Texts reconstructed from what the model says of classes (model inversion), or from its weights.",
        "Records that always train (outside the audit candidates): their risk is inferred, not measured.",
        "Backdoors, poisoned base weights, and data that reached the base model before this fine-tuning.",
        "Quantised, merged or further tuned copies of this model: test the artefact you deploy.",
    ),
    "elsewhere": (
        "Backdoors, poisoned weights, and data that reached the model before it was tuned.",
        "Other forms of this model than the one named under provenance: test the artefact you deploy.",
        "How well an attack works on this model at all: no canaries are in it, so none could be looked for.",
        "Differential privacy: a lower bound on ε needs coins that were drawn before training.",
    ),
}
_TEXT = frozenset({"generated text", "predicted tokens", "predicted labels"})
_PERSONAL = "Names, numbers and other personal data by type; `--suite full` asks for them where the weights are here."
_INSIDE = frozenset({"gradients", "weights"})


def untested(
    kind: Kind, made: Mapping[str, Attack], known: Mapping[str, Attack], personal: bool = False
) -> tuple[str, ...]:
    """What was not measured of a model of this `kind` by the membership attacks `made`, of all that are `known`.

    `personal` says that personal data were asked for by kind.
    """
    access = {attack.access for attack in made.values()}
    found = [] if any("shadows" in attack.inputs for attack in made.values()) else [_SHADOWS]
    if kind == "text":
        return (*found, _MORE, _LABELS["text"], _PERSONAL, *_ALWAYS["elsewhere"])
    if kind == "classifier":
        left_out = ", ".join(name for name, attack in sorted(known.items()) if "classification" not in attack.tasks)
        found.insert(0, f"Scores over the tokens of a text ({left_out}): a classifier gives one class to the whole.")
        found.append(_LABELS["classifier"])
    elif not access & _TEXT:
        found.append(_ONLY_TEXT)
    if not access & _INSIDE:
        found.append(_GRADIENTS)
    if kind != "classifier" and not personal:
        found.append(_PERSONAL)
    return (*found, *_ALWAYS[kind])
