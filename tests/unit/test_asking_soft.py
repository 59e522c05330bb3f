"""Soft prompts against records, in an audit: who is asked, the controls, what resumes, and what is left as it was."""

import dataclasses
import functools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from elsewhere_fixtures import learn, write_rows

from sordino.attacks.extraction.soft_prompt import soft_prompt
from sordino.attacks.passages import windows
from sordino.attacks.soft_prompts import SoftPrompt, train_soft_prompt
from sordino.audit.asking import lacking
from sordino.audit.collecting import Collector
from sordino.audit.external import create_external
from sordino.audit.flow import audit
from sordino.audit.settings import load_external
from sordino.config import load
from sordino.errors import AuditError, ConfigError
from sordino.generate import greedy
from sordino.model import save
from sordino.records.store import load as load_split
from sordino.results import InputPlan
from sordino.serialize import Tokens

WORDS = ("river", "stone", "market", "window", "garden", "letter", "bridge", "winter", "candle", "mirror", "forest")
INPUTS = InputPlan(shadows=2, neighbours=1, shots=1)


def text(number):
    """A sentence that no other number has, and without personal data."""
    rng = np.random.default_rng(number)
    return "We saw " + " and the ".join(WORDS[i] for i in rng.permutation(len(WORDS))[:6].tolist())


@pytest.fixture(scope="module")
def run(make_model, tmp_path_factory):
    """A model that learned 40 sentences, though not all by heart, its base, and 40 sentences that it never saw."""
    folder = tmp_path_factory.mktemp("soft")
    model, inside, outside = make_model("llama", seed=3), range(0, 80, 2), range(1, 80, 2)
    save(model, folder / "base")
    learn(model, [text(i) for i in inside], steps=120)
    save(model, folder / "tuned")
    for name, some in (("in", inside), ("out", outside)):
        write_rows(folder / f"{name}.jsonl", [{"text": text(i)} for i in some])
    values = {
        "model": {"path": str(folder / "tuned"), "device": "cpu"}, "base": str(folder / "base"),
        "data": {"path": str(folder / "in.jsonl"), "text": "text"}, "near_duplicates": 0, "known": 0.5,
        "nonmembers": str(folder / "out.jsonl"), "out": str(folder / "runs"), "max_length": 64,
        "audit": {
            "shuffles": 99, "prefix_tokens": 10, "suffix_tokens": 10, "fpr": [0.1],
            "near_bound": {"records": 1, "beam": 1},
            "soft_prompt": {"tokens": 4, "steps": 30, "learning_rate": 0.02, "records": 15},
        },
    }  # fmt: skip
    return create_external(load_external(values))


@pytest.fixture(scope="module")
def report(run):
    return audit(run, attacks=["loss"], suite="all", inputs=INPUTS)


def named(report, name="soft_prompt"):
    [found] = [a for a in report.attempts if a.name == name]
    return found


def test_members_come_out_and_neither_other_records_nor_the_untuned_model(report):
    found = named(report)
    for n in found.notes: print(n)
    for k,v in found.estimates.items(): print(k, v)
    assert found.records == 30
    assert found.estimates["rate"].value > 0.5
    assert found.estimates["excess"].low > 0
    assert found.estimates["non-members"].value == 0 and found.control["rate"].value == 0
