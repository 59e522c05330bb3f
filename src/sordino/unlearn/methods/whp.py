"""Who's Harry Potter, at inference: what a model that was tuned further on the deleted finds likelier counts less."""

from sordino.errors import UnlearningError
from sordino.results import Cost
from sordino.unlearn.base import Child, Deletion, unlearner
from sordino.unlearn.tuning.opening import pieces
from sordino.unlearn.tuning.second import TRAINING, open_for_second
from sordino.unlearn.tuning.settings import all_given

__all__ = ["whp"]

_DEFAULTS = {**TRAINING, "learning_rate": 1e-4, "epochs": 3, "alpha": 1.0}


@unlearner(
    tier="approximate", needs=("lora",), defaults=_DEFAULTS, paper="arXiv:2310.02238",
    passes=lambda settings: float(settings["epochs"]),
)  # fmt: skip
def whp(deletion: Deletion, child: Child) -> Cost:
    """Answer by z − α·ReLU(z_reinforced − z), z_reinforced of the run's adapter tuned further on the deleted.

    The paper trains on texts made so, with entities renamed; this is its rule on logits, as it is compared with other
    methods. A token costs two forward passes. The files still hold what was deleted, and the child's card says so.
    """
    settings = all_given("whp", _DEFAULTS, child.settings)
    if not settings["alpha"]:
        raise UnlearningError("alpha of whp is 0: the model would stay as it is.", "Give alpha above 0.")
    work = open_for_second(deletion, child)
    progress = work.tune(settings, tokens=pieces(deletion.forget, work.opened.serializer))
    return work.finish(progress, "whp", "reinforced", {"alpha": settings["alpha"]})
