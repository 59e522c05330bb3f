"""Shards side by side: the mean of their probabilities answers, before a deletion, in between and after it."""

import pytest
import torch
from shard_fixtures import child_of, deletion_of, settings

from sordino.model import restore, save, weights_digest
from sordino.model.loading import load, quiet
from sordino.records.store import load as load_split
from sordino.train import sharded
from sordino.train.flow import fine_tune
from sordino.train.shard_plan import place, read_manifest, read_stage, snapshot
from sordino.unlearn.methods.shards import drop, rebuild

pytest.importorskip("sordino.model.combined")


def answers(config, run, source, among):
    """Whether the weights of `run` say the mean, by records, of what the shards `among` of `source` say."""
    from peft import PeftModel

    ids = torch.arange(3, 23)[None]
    with restore(config.model, config.method, run.weights).active() as module:
        found = module(input_ids=ids).logits.double().log_softmax(-1)
    counts, wanted = {}, 0.0
    for shard in among:
        counts[shard] = sum(read_stage(snapshot(source, (shard, part))).count for part in range(2))
    for shard, count in counts.items():
        with quiet(), torch.inference_mode():
            part = PeftModel.from_pretrained(load(config.model).module, str(snapshot(source, (shard, 1)))).eval()
            wanted = wanted + count / sum(counts.values()) * part(input_ids=ids).logits.double().softmax(-1)
    torch.testing.assert_close(found, wanted.log(), rtol=0, atol=1e-5)


def test_the_mean_of_the_probabilities_answers(make_model, tmp_path, monkeypatch):
    save(make_model("llama", seed=3), tmp_path / "base")
    monkeypatch.setattr(sharded, "new_key", lambda: "0b" * 32)
    config = settings(tmp_path, tmp_path / "base", shards={"combine": "ensemble"}, train={"epochs": 1})
    run = fine_tune(config)
    assert run.card.training["validation"] > 0
    answers(config, run, run, (0, 1, 2))
    key = read_manifest(run).key
    name = load_split(run.records).training[0].record.unit
    shard = place(key, name, 3, 2)[0]
    deletion = deletion_of(run, [name])
    child = child_of(deletion)
    drop(deletion, child)
    answers(config, child.run, run, [s for s in range(3) if s != shard])
    dropped = weights_digest(child.run.weights)
    rebuild(deletion, child)
    answers(config, child.run, child.run, (0, 1, 2))
    assert len({dropped, weights_digest(child.run.weights), weights_digest(run.weights)}) == 3
