"""A model that a deletion leaves as it is, in a run of its own."""

import shutil

from sordino.errors import RunError
from sordino.run import Run, write_atomic, write_folder

__all__ = ["copy_model"]


def copy_model(parent: Run, child: Run) -> None:
    """A copy of the weights of `parent` in `child`, with the ledger of what they spent of ε, if there is one.

    They are whole or not there, and the child's own, so that the parent can be purged.

    Raises `RunError` where the parent has none, or where they are not those that its card names.
    """
    from sordino.model import weights_digest

    if not parent.weights.is_dir():
        raise RunError(f"{parent.path} has no weights.", "Train it, or restore the folder.")
    found, known = weights_digest(parent.weights), parent.card.model.get("weights")
    if known is not None and found != known:
        message = f"The weights in {parent.path} are not those it was trained to ({known} → {found})."
        raise RunError(message, "Restore them, or train the run again.")
    ledger = parent.path / "ledger.json"
    if ledger.exists():
        write_atomic(child.path / ledger.name, ledger.read_bytes())
    with write_folder(child.weights) as folder:
        shutil.copytree(parent.weights, folder, dirs_exist_ok=True)
