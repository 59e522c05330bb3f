"""The blind baseline: can members be told from non-members without the model, from the texts alone?

If so, the split is at fault and no attack's figure means anything (Meeus et al. 2024; Das et al. 2024).
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sordino.stats import smallest_detectable_auc

__all__ = ["Blind", "blind_baseline"]

_DIGIT = re.compile("[0-9]")
_YEARS = re.compile(r"(?<![0-9])(?:19|20)[0-9]{2}(?![0-9])")
_FOLDS, _REPEATS, _RIDGE = 5, 3, 1.0
_MOST_RECORDS = 2_000


@dataclass(frozen=True, kw_only=True)
class Blind:
    """Cross-validated `auc` of a text-only classifier, its permutation `p_value`, and the test's reach."""

    auc: float
    p_value: float
    detectable_auc: float
    records: int


def _kernel(texts: Sequence[str]) -> np.ndarray:
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    matrix = hstack([words.fit_transform(texts), pieces.fit_transform(texts)]).tocsr()
    sizes = np.array(
        [[len(t), len(t.split()), len(zlib.compress(t.encode())), len(_DIGIT.findall(t)), _year(t)] for t in texts],
        dtype=np.float64,
    )
    spread = sizes.std(axis=0)
    sizes = (sizes - sizes.mean(axis=0)) / np.where(spread > 0, spread, 1)
    kernel: np.ndarray = (matrix @ matrix.T).toarray() + sizes @ sizes.T / sizes.shape[1]
    return kernel


def _year(text: str) -> float:
    years = [int(found) for found in _YEARS.findall(text)]
    return float(np.mean(years)) if years else 0.0


def _predictors(kernel: np.ndarray, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """H with prediction = H · labels: kernel ridge regression, each fold predicted from the others.

    The predictor is linear in the labels, so thousands of label shuffles cost one matrix product.
    """
    codes = np.unique(group)
    fold_of = dict(zip(codes[rng.permutation(len(codes))].tolist(), np.arange(len(codes)) % _FOLDS, strict=True))
    fold = np.array([fold_of[g] for g in group.tolist()])
    hat = np.zeros_like(kernel)
    for number in range(_FOLDS):
        test, train = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        inner = kernel[np.ix_(train, train)] + _RIDGE * np.eye(len(train))
        weights = np.linalg.solve(inner, kernel[np.ix_(train, test)]).T
        # Centre the labels of the training folds: a constant says nothing about who is a member.
        hat[np.ix_(test, train)] = weights - weights.sum(axis=1, keepdims=True) / len(train)
    return hat


def _aucs(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    ranks = rankdata(predictions, axis=0)
    inside = labels.sum(axis=0)
    wins = (ranks * labels).sum(axis=0) - inside * (inside + 1) / 2
    areas: np.ndarray = wins / (inside * (len(labels) - inside))
    return areas


def blind_baseline(texts: Sequence[str], member: np.ndarray, group: np.ndarray, *, shuffles: int, seed: int) -> Blind:
    """Test whether `texts` tell `member`; all arrays (n,), `group` is the coin a record shares.

    TF-IDF of words 1–2-grams and characters 2–4-grams, lengths, compressed size, digits and years;
    5-fold cross-validation by coin, repeated 3 times; labels permuted over coins; one-sided
    p = (1 + #)/(1 + shuffles). At most 2,000 records are used, whole coins drawn by `seed`.
    """
    rng = np.random.default_rng(seed)
    if len(texts) > _MOST_RECORDS:
        codes, counts = np.unique(group, return_counts=True)
        order = rng.permutation(len(codes))
        inside = codes[order[np.cumsum(counts[order]) <= _MOST_RECORDS]]
        keep = np.isin(group, inside)
        texts, member, group = [t for t, k in zip(texts, keep, strict=True) if k], member[keep], group[keep]
    codes, first, place = np.unique(group, return_index=True, return_inverse=True)
    truth = member[first].astype(np.float64)
    drawn = rng.permuted(np.tile(truth, (shuffles, 1)), axis=1)
    labels = np.concatenate([truth[None], drawn])[:, place].T
    kernel = _kernel(texts)
    areas = np.mean([_aucs(_predictors(kernel, group, rng) @ labels, labels) for _ in range(_REPEATS)], axis=0)
    inside_coins = int(truth.sum())
    return Blind(
        auc=float(areas[0]),
        p_value=float((1 + (areas[1:] >= areas[0] - 1e-12).sum()) / (1 + shuffles)),
        detectable_auc=smallest_detectable_auc(inside_coins, len(truth) - inside_coins),
        records=len(texts),
    )
