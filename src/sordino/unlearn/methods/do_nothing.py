"""The control that forgets nothing: what every metric is before, measured as if it were after."""

import time

from sordino.results import Cost
from sordino.unlearn.base import Child, Deletion, unlearner
from sordino.unlearn.tuning.copying import copy_model

__all__ = ["do_nothing"]


@unlearner(tier="approximate", control=True, passes=lambda settings: 0.0)
def do_nothing(deletion: Deletion, child: Child) -> Cost:
    """The weights as they were: the control that shows what no unlearning at all looks like."""
    start = time.monotonic()
    copy_model(deletion.run, child.run)
    return Cost(seconds=time.monotonic() - start, tokens=0, share=0.0)
