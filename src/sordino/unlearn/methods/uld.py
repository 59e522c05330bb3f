"""Unlearning from logit difference: an assistant that remembers only the deleted is subtracted."""

from sordino.errors import UnlearningError
from sordino.results import Cost
from sordino.unlearn.base import Child, Deletion, unlearner
from sordino.unlearn.tuning.opening import pieces
from sordino.unlearn.tuning.retaining import Retained
from sordino.unlearn.tuning.second import TRAINING, Reversed, open_for_second
from sordino.unlearn.tuning.settings import all_given
from sordino.unlearn.tuning.steps import Epochs

__all__ = ["uld"]

_DEFAULTS = {**TRAINING, "learning_rate": 1e-3, "epochs": 10, "weight": 0.8, "filter": 0.01, "beta": 5.0}


@unlearner(
    tier="approximate", needs=("lora",), defaults=_DEFAULTS, paper="arXiv:2406.08607",
    passes=lambda settings: 2.0 * settings["epochs"],
)  # fmt: skip
def uld(deletion: Deletion, child: Child) -> Cost:
    """Answer by z − w·z_assistant; the assistant remembers the deleted and is uniform on what stays.

    The assistant is the run's adapter tuned on (the paper takes the first layers of the model, here it has all), with
    `beta` on what stays; tokens that the model finds unlikely are left alone (`filter`, see
    `sordino.model.methods.rules.uld`). Defaults are those of the authors' runs on TOFU. A token costs two forward
    passes. The files still hold what was deleted, and the child's card says so.
    """
    settings = all_given("uld", _DEFAULTS, child.settings)
    if not settings["weight"]:
        raise UnlearningError("weight of uld is 0: the model would stay as it is.", "Give weight above 0.")
    if settings["filter"] > 1:
        message = f"filter of uld is {settings['filter']!r}."
        raise UnlearningError(message, "Allowed: 0 to 1, a share of the probability of the likeliest token.")
    work = open_for_second(deletion, child)
    forget, serializer = pieces(deletion.forget, work.opened.serializer), work.opened.serializer
    epochs = Epochs(
        lengths=[len(t) for t in forget], epochs=settings["epochs"], batch_size=settings["batch_size"], seed=child.seed
    )
    retained = Retained(deletion.retain, serializer, child.seed)
    steps = Reversed(opened=work.opened, forget=forget, retained=retained, beta=settings["beta"], epochs=epochs)
    progress = work.tune(settings, steps=steps)
    return work.finish(progress, "uld", "assistant", {"weight": settings["weight"], "filter": settings["filter"]})
