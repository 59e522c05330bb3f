"""Figures with honest intervals: AUC, rates at thresholds, bounds on ε, tests, means (NumPy and SciPy).

Scores are higher for likelier members. `member` is a boolean per record; `group` labels the records
that share one inclusion coin, and every interval and test treats a group as one observation.
"""

from sordino.stats.common import UNBOUNDED, Interval
from sordino.stats.curves import roc, thin
from sordino.stats.epsilon import (
    epsilon_from_gdp,
    epsilon_one_run,
    epsilon_two_sided,
    gdp_mu,
    one_run_guesses,
    one_run_p_value,
)
from sordino.stats.equivalence import Equivalence, auc_tost, paired_tost, welch_tost
from sordino.stats.equivalence_power import Side, auc_half_width, observations_for, smallest_margin, tost_power
from sordino.stats.fdp import epsilon_f_dp, f_dp_mu, f_dp_p_value
from sordino.stats.means import bootstrap, mean_interval, perplexity_interval, ratio_interval
from sordino.stats.multiplicity import benjamini_hochberg, conformal_p, holm
from sordino.stats.paired import paired_difference, sign_flip
from sordino.stats.permutation import max_t, max_t_within
from sordino.stats.proportions import clopper_pearson, korn_graubard
from sordino.stats.queries import log1mexp, log10_queries, queries, within
from sordino.stats.ranking import PairedDifference, auc, delong, paired_delong, smallest_detectable_auc
from sordino.stats.thresholds import calibration_split, three_way_split, tpr_at_fpr, tpr_at_fpr_in_sample

__all__ = [
    "UNBOUNDED",
    "Equivalence",
    "Interval",
    "PairedDifference",
    "Side",
    "auc",
    "auc_half_width",
    "auc_tost",
    "benjamini_hochberg",
    "bootstrap",
    "calibration_split",
    "clopper_pearson",
    "conformal_p",
    "delong",
    "epsilon_f_dp",
    "epsilon_from_gdp",
    "epsilon_one_run",
    "epsilon_two_sided",
    "f_dp_mu",
    "f_dp_p_value",
    "gdp_mu",
    "holm",
    "korn_graubard",
    "log1mexp",
    "log10_queries",
    "max_t",
    "max_t_within",
    "mean_interval",
    "observations_for",
    "one_run_guesses",
    "one_run_p_value",
    "paired_delong",
    "paired_difference",
    "paired_tost",
    "perplexity_interval",
    "queries",
    "ratio_interval",
    "roc",
    "sign_flip",
    "smallest_detectable_auc",
    "smallest_margin",
    "thin",
    "three_way_split",
    "tost_power",
    "tpr_at_fpr",
    "tpr_at_fpr_in_sample",
    "welch_tost",
    "within",
]
