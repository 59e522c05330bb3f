"""The DP-certified tier: the guarantee that the model was trained under says that it has forgotten already."""

import dataclasses
import time
from typing import Any

from sordino.errors import UnlearningError
from sordino.results import Cost
from sordino.unlearn.base import Child, Deletion, unlearner
from sordino.unlearn.tuning.copying import copy_model
from sordino.unlearn.verifying.capacity import Capacity, check_capacity

__all__ = ["dp"]


@unlearner(tier="dp", needs=("dp",), defaults={"epsilon": None, "delta": None, "spent": None}, paper="arXiv:1911.03030")
def dp(deletion: Deletion, child: Child) -> Cost:
    """The weights as they are: (ε, δ)-close to those of a training without the deleted, by group privacy.

    Settings: the `epsilon` and `delta` that this has to be worth; `spent` is how many units were deleted under the same
    guarantee before, by default what the ledger of deletions says. Raises `UnlearningError` where it is worth less.
    """
    start = time.monotonic()
    epsilon, delta, spent = (child.settings.get(name) for name in ("epsilon", "delta", "spent"))
    if epsilon is None or delta is None:
        message = "It was not said what the guarantee has to be worth for those who go."
        raise UnlearningError(message, "Set the method's `epsilon` and `delta`.")
    found = check_capacity(deletion, float(epsilon), float(delta), _spent(deletion) if spent is None else int(spent))
    copy_model(deletion.run, child.run)
    card = child.run.card
    child.run.write_card(dataclasses.replace(card, unlearning={**card.unlearning, "guarantee": told(found)}))
    child.say(f"The weights stay as they are. {found.sentence()}")
    for note in found.notes:
        child.say(note)
    return Cost(seconds=time.monotonic() - start, tokens=0, share=0.0)


def told(found: Capacity) -> dict[str, Any]:
    """What the card of the run that comes of it says of the guarantee."""
    return {
        "epsilon": found.epsilon,
        "delta": found.reached,
        "target delta": found.delta,
        "unit": found.unit,
        "relation": found.relation,
        "units": found.asked,
        "spent": found.spent,
        "capacity": found.largest,
        "method": found.method,
        "sentence": found.sentence(),
        "notes": list(found.notes),
    }


def _spent(deletion: Deletion) -> int:
    """How many units were deleted under the guarantee of the run, as the ledger of deletions beside it says."""
    out = deletion.run.path.parent
    if not (out / "deletions").is_dir():
        return 0
    from sordino.deletions import Deletions

    return int(Deletions.open(out).spent(deletion.run.card.name))
