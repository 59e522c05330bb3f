"""The demonstration: a made-up private corpus, the built-in model, and settings that let it leak."""

import random
from pathlib import Path

from sordino.bundled.corpus import canary_sentences, house_style, write_jsonl
from sordino.canaries import CanaryConfig
from sordino.config import MethodConfig, RunConfig, TrainConfig
from sordino.records import DataConfig, SplitConfig
from sordino.run import Run
from sordino.train.flow import Prepared, create, prepare

__all__ = ["CUSTOMERS", "demo_config", "prepare_demo"]

CUSTOMERS = 500


def demo_config(corpus: Path, out: Path, seed: int) -> RunConfig:
    """The run of the demonstration: a few epochs of LoRA at a rate that memorises, as hasty tuning does."""
    return RunConfig(
        name="demo",
        out=str(out),
        seed=seed,
        data=DataConfig(path=str(corpus), text="text", id="id", unit="customer"),
        split=SplitConfig(candidates=0.88, validation=0.1),
        canaries=CanaryConfig(levels=(1, 4, 16, 32), per_level=12, templates=_carriers()),
        method=MethodConfig(rank=32, alpha=64.0),
        train=TrainConfig(epochs=2, batch_size=16, learning_rate=4e-3, checkpoint_every=200),
    )


def _carriers() -> tuple[str, ...]:
    rng = random.Random("carriers")
    return tuple(house_style(sentence, rng) for sentence in canary_sentences())


def prepare_demo(out: Path, seed: int) -> tuple[Run, Prepared]:
    """Write the corpus to `out/tickets.jsonl`, draw the coins and make the run folder."""
    out.mkdir(parents=True, exist_ok=True)
    corpus = out / "tickets.jsonl"
    write_jsonl(corpus, seed, CUSTOMERS)
    config = demo_config(corpus, out, seed)
    prepared = prepare(config)
    return create(config, prepared), prepared
