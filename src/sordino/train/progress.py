"""How far training has come, for checkpoints and for whoever watches."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Monitor", "Progress"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far training has come: `step` optimizer steps and the bytes of the loss log that go with them.

    `skipped` of the steps changed nothing, because a float16 gradient overflowed and its scale was lowered.
    `validation` is the loss on validation records, `accuracy` a classifier's share of right classes there;
    `clip_norm` is the norm that adaptive private clipping has come to: part of what a step goes on from.
    `stopped` says that it reached `train.stop_loss`, and training ended there.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float | None = None
    validation: float | None = None
    accuracy: float | None = None
    best: float | None = None
    best_step: int | None = None
    log_bytes: int = 0
    threads: int = 0
    skipped: int = 0
    clip_norm: float | None = None
    stopped: bool = False


Monitor = Callable[[Progress, int], None]
"""Called after every step with the progress and the number of steps in all."""
