"""Statistics of next-token distributions by their definitions."""

import math

import numpy as np
import torch

NAMES = ("logprob", "mean", "variance", "rank", "top")


def brute(logits, targets):
    """The definitions, in float64, a row at a time."""
    rows = []
    for row, target in zip(logits.double(), targets.tolist(), strict=True):
        finite = row[row > -math.inf]
        logp = finite - torch.logsumexp(finite, 0)
        mean = (logp.exp() * logp).sum()
        variance = (logp.exp() * (logp - mean) ** 2).sum()
        own = row[target] - torch.logsumexp(finite, 0)
        rows.append((float(own), float(mean), float(variance), int((row > row[target]).sum()), int(row.argmax())))
    return [np.array(column) for column in zip(*rows, strict=True)]


def near(found, expected, tolerance, names=NAMES):
    for name, a, b in zip(names, found, expected, strict=True):
        if name in ("rank", "top"):
            np.testing.assert_array_equal(np.asarray(a), b, err_msg=name)
        else:
            np.testing.assert_allclose(np.asarray(a), b, rtol=tolerance, atol=tolerance, err_msg=name)
