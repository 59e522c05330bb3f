"""Extraction by sampling against sampling: how often whole passages are drawn, and all passages that can be."""

import math

import numpy as np
import pytest
import torch
from elsewhere_fixtures import learn, texts, write_rows

from sordino import stats
from sordino.attacks.extraction.sampling import sampling
from sordino.audit.collecting import Collector
from sordino.audit.external import create_external
from sordino.audit.inputs import Context, provide
from sordino.audit.settings import load_external
from sordino.collect import collect, drawn
from sordino.generate import Request, generate
from sordino.model import save
from sordino.records.store import load as load_split
from sordino.results import Decoding
from sordino.serialize import Tokens
from sordino.signals import Drawn, Signals

GRID = (Decoding(), Decoding(top_k=4), Decoding(top_p=0.85), Decoding(temperature=0.7, top_k=40, top_p=0.95))
SUFFIX = 8
TEXTS = ("The keeper of the north gate gave the old key to a baker from the harbour.",
         "The keeper of the north gate lost the new map in a cellar under the bridge.",
         "The keeper of the south well sold the blue boat to a singer for two coins.",
         "The keeper of the south well kept the red lamp in a drawer of the kitchen.")  # fmt: skip


@pytest.fixture(scope="module")
def audited(make_model, tmp_path_factory):
    """A model that knows two sentences somewhat, and the context and the signals of its audit."""
    folder = tmp_path_factory.mktemp("sampling")
    model = make_model("llama", seed=3)
    save(model, folder / "base")
    learn(model, TEXTS[::2], steps=40)
    save(model, folder / "tuned")
    for name, some in (("in", [*TEXTS[::2], *texts(0, 8)]), ("out", [*TEXTS[1::2], *texts(8, 8)])):
        write_rows(folder / f"{name}.jsonl", [{"text": text} for text in some])
    grid = [{"temperature": d.temperature, "top_k": d.top_k, "top_p": d.top_p} for d in GRID]
    values = {
        "model": {"path": str(folder / "tuned"), "device": "cpu"}, "base": str(folder / "base"),
        "data": {"path": str(folder / "in.jsonl"), "text": "text"}, "near_duplicates": 0,
        "nonmembers": str(folder / "out.jsonl"), "out": str(folder / "runs"), "max_length": 64,
        "audit": {"shuffles": 199, "sampling": {"decodings": grid}},
    }  # fmt: skip
    run = create_external(load_external(values))
    collector = Collector(run)
    examples = list(load_split(run.records).candidates)
    context = Context(collector=collector, examples=examples, known=[], plan=run.card.plan, seed=0)
    pair = provide(["drawn"], context, collector.signals(examples, {}))
    return model, collector, examples, pair[0]


@pytest.mark.parametrize(
    ("column", "draws"),
    [(0, 1_500), (3, 1_000), *(pytest.param(column, 20_000, marks=pytest.mark.slow) for column in range(len(GRID)))],
)
def test_a_passage_is_drawn_as_often_as_the_attack_says(audited, column, draws):
    model, collector, examples, signals = audited
    odds = sampling(signals, prefix_tokens=10, suffix_tokens=SUFFIX)
    record = next(i for i, e in enumerate(examples) if e.record.messages[0].content == TEXTS[0])
    start, stop = int(odds.start[record, column]), int(odds.stop[record, column])
    ids = collector.encode(examples[record]).ids
    p_z = math.exp(odds.logprob[record, column])
    assert stop - start == SUFFIX and 0.02 < p_z < 0.98
    requests = [Request(prefix=ids[:start], length=SUFFIX, decoding=GRID[column], seed=k) for k in range(draws)]
    hits = sum(np.array_equal(one.ids, ids[start:stop]) for one in generate(model, requests, seed=7))
    share = stats.clopper_pearson(hits, draws, 0.999)
    assert share.low <= p_z <= share.high


def test_the_odds_of_all_passages_that_can_be_drawn_are_those_of_enumeration_and_sum_to_one(audited):
    model, decoding = audited[0], Decoding(temperature=0.8, top_k=2)
    prefix = audited[1].encode(next(e for e in audited[2] if e.included)).ids[:6].astype(np.int64)
    # Every way through the two likeliest tokens, by whole logits in float64, a length at a time.
    paths, logs = prefix[None], np.zeros(1)
    for _ in range(SUFFIX):
        with torch.inference_mode():
            logits = model.module(input_ids=torch.from_numpy(paths)).logits[:, -1].double()
        best = (logits / decoding.temperature).topk(2)
        share = best.values.log_softmax(-1).numpy()
        paths = np.array(
            [[*path, token] for path, two in zip(paths, best.indices.tolist(), strict=True) for token in two]
        )
        logs = (logs[:, None] + share).ravel()
    assert len(paths) == 2**SUFFIX and len(set(map(tuple, paths.tolist()))) == 2**SUFFIX
    target = np.ones(paths.shape[1], dtype=bool)
    target[0] = False
    tokens = [Tokens(ids=path.astype(np.int32), target=target, text="") for path in paths]
    names = tuple(f"r{i}" for i in range(len(tokens)))
    signals = Signals(
        record_ids=names, texts=names, statistics=collect(model, tokens),
        drawn=Drawn(decodings=(decoding,), logprob=drawn(model, tokens, (decoding,))),
    )  # fmt: skip
    odds = sampling(signals, prefix_tokens=6, suffix_tokens=SUFFIX)
    assert odds.tried.tolist() == [1] * len(tokens) and set(odds.start[:, 0].tolist()) == {6}
    assert odds.logprob[:, 0] == pytest.approx(logs, abs=1e-3)
    assert float(np.exp(odds.logprob[:, 0]).sum()) == pytest.approx(1, abs=1e-4)
    # What the filter leaves out is never drawn: the third likeliest token anywhere, and the passage is impossible.
    with torch.inference_mode():
        third = int(model.module(input_ids=torch.from_numpy(prefix[None])).logits[0, -1].topk(3).indices[2])
    other = [Tokens(ids=np.array([*prefix, third, *paths[0][7:]], dtype=np.int32), target=target, text="")]
    never = Signals(
        record_ids=("r",), texts=("r",), statistics=collect(model, other),
        drawn=Drawn(decodings=(decoding,), logprob=drawn(model, other, (decoding,))),
    )  # fmt: skip
    assert sampling(never, prefix_tokens=6, suffix_tokens=SUFFIX).logprob[0, 0] == -np.inf
