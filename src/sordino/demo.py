"""The demonstration: a made-up private corpus, the built-in model, tuned so that it leaks, and again privately."""

import random
from dataclasses import replace
from pathlib import Path

from sordino.bundled.corpus import canary_sentences, house_style, write_jsonl
from sordino.canaries import CanaryConfig
from sordino.config import DPConfig, MethodConfig, RunConfig, TrainConfig
from sordino.records import DataConfig, SplitConfig
from sordino.results import AuditPlan
from sordino.run import Run
from sordino.train.flow import Prepared, create, prepare

__all__ = ["CUSTOMERS", "demo_config", "prepare_demo", "private_config"]

CUSTOMERS = 500


def demo_config(corpus: Path, out: Path, seed: int) -> RunConfig:
    """The plain run: a few epochs of LoRA at a rate that memorises, as hasty tuning does."""
    return RunConfig(
        name="plain",
        out=str(out),
        seed=seed,
        data=DataConfig(path=str(corpus), text="text", id="id", unit="customer"),
        split=SplitConfig(candidates=0.88, validation=0.1),
        # Four digits: an exact rank among 10,000 costs a tenth of one among 100,000, for 3.3 bits less to be seen.
        canaries=CanaryConfig(levels=(1, 4, 16, 32), per_level=12, digits=4, templates=_carriers()),
        method=MethodConfig(rank=32, alpha=64.0),
        train=TrainConfig(epochs=2, batch_size=16, learning_rate=4e-3, checkpoint_every=200),
        # 220 non-members resolve the strongest attack's TPR at 20 %, and a single attack's at 10 %.
        audit=AuditPlan(fpr=(0.2, 0.1, 0.01)),
    )


def private_config(plain: RunConfig) -> RunConfig:
    """The same run under differential privacy: same records, coins and canaries, other steps.

    The unit is what shares an audit coin, so that the audit's ε can be held against the claim. Few steps of
    large batches need the least noise, and one record a customer keeps them cheap.
    """
    return replace(
        plain,
        name="private",
        train=replace(plain.train, epochs=3, batch_size=64, accumulation=2, learning_rate=1e-2, validate_every=100),
        dp=DPConfig(epsilon=8.0, unit="cluster", records_per_unit=1),
    )


def _carriers() -> tuple[str, ...]:
    rng = random.Random("carriers")
    return tuple(house_style(sentence, rng) for sentence in canary_sentences())


def prepare_demo(out: Path, seed: int) -> tuple[Run, Run, Prepared]:
    """Write the corpus to `out/tickets.jsonl`, draw the coins and make the folders of the plain and the private run."""
    out.mkdir(parents=True, exist_ok=True)
    corpus = out / "tickets.jsonl"
    write_jsonl(corpus, seed, CUSTOMERS)
    config = demo_config(corpus, out, seed)
    prepared = prepare(config)
    return create(config, prepared), create(private_config(config), prepared), prepared
