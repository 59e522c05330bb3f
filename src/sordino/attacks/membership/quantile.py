"""The quantile attack: is a record likelier than a record like it would be that was not trained on?"""

import numpy as np

from sordino.attacks.base import membership
from sordino.attacks.complexity import compressed_sizes
from sordino.signals import Scores, Signals

LEAST_DEVIATION = 1e-6


def features(signals: Signals) -> np.ndarray:
    """What says how hard a record is, (records, 4): ℓ and its spread under the base, its length, and zlib's."""
    base = signals.reference
    rows, mean = base.logprob, base.logprob.mean()
    spread = np.sqrt(np.maximum(type(rows)(np.asarray(rows.values, np.float64) ** 2, rows.offsets).mean() - mean**2, 0))
    sizes = signals.measured.get("compressed")  # known records are few: theirs are not kept
    sizes = compressed_sizes(signals.texts) if sizes is None else sizes
    lengths = np.array([max(1, len(text)) for text in signals.texts])
    return np.stack([-mean, spread, np.log1p(rows.counts), sizes / lengths], axis=1)


@membership(
    paper="Bertran et al. 2023, arXiv:2307.03694",
    base=True,
    needs=("logprob",),
    inputs=("known", "compressed"),
    cost="one pass over records known not to be trained on",
    suite="full",
)
def quantile(signals: Signals, *, penalty: float = 1.0) -> Scores:
    """Score a record by (μ(x) − ℓ(x))/σ(x), where non-members like it have ℓ ~ N(μ(x), σ²(x)).

    The paper's Gaussian head: ridge regressions (of strength `penalty`) of ℓ, and of the logarithm of its squared
    residual, on what the untuned model, length and zlib say of a record, fitted on known non-members alone.
    """
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known, outside = signals.told.signals, ~signals.told.member
    x, y = features(known)[outside], known.nll[outside]
    told = np.isfinite(x).all(axis=1) & np.isfinite(y)
    x, y = x[told], y[told]
    centre = make_pipeline(StandardScaler(), Ridge(alpha=penalty)).fit(x, y)
    rest = np.maximum(np.abs(y - centre.predict(x)), LEAST_DEVIATION)
    width = make_pipeline(StandardScaler(), Ridge(alpha=penalty)).fit(x, 2 * np.log(rest))
    scores, mine = np.full(len(signals), np.nan), features(signals)
    good = np.isfinite(mine).all(axis=1) & np.isfinite(signals.nll)
    if good.any():
        deviation = np.maximum(np.exp(width.predict(mine[good]) / 2), LEAST_DEVIATION)
        scores[good] = (centre.predict(mine[good]) - signals.nll[good]) / deviation
    return scores
