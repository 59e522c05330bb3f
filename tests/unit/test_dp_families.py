"""Clipped sums of every family of models under every method of tuning, against one example at a time."""

import contextlib
import dataclasses

import pytest
import torch
from dp_models import a_batch, brute, clipped_sum, norms_of, prepared, row_losses

from sordino.dp.engine import Clipper, Clipping
from sordino.dp.selftest import self_test, synthetic
from sordino.errors import DPError
from sordino.train.objective import autocast, recomputed

FAMILIES = ("gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "opt", "gemma")
METHODS = ("full", "lora", "prefix", "prompt", "ia3", "bitfit", "head")
MORE = [(f, m) for f in ("gpt2", "llama") for m in ("adapters", "dora", "rslora", "ffa")]
# Norms are computed layer by layer. Two families have every kind of layer under every method; the others are tuned
# whole, which reaches all layers they have, and by one other method each. The rest is for the slow tests.
OTHERS = {"qwen2": "prefix", "qwen3": "head", "gpt_neox": "ia3", "opt": "bitfit", "gemma": "prompt"}


def always(pairs, others=OTHERS):
    """`pairs` of family and method, all but the chosen ones marked as slow."""
    chosen = {"full": FAMILIES, **{m: ("gpt2", "llama") for _, m in pairs if m != "full"}}
    return [
        pytest.param(f, m, marks=() if f in chosen[m] or others.get(f) == m else pytest.mark.slow) for f, m in pairs
    ]


IDS, MASK = a_batch(rows=4, length=7)


def retied(model, tied: bool):
    """The model with its head tied to the embedding, or not, whatever its family does."""
    torch.manual_seed(0)
    kind, config = type(model.module), model.module.config.from_dict(model.module.config.to_dict())
    config.tie_word_embeddings = tied
    module = kind(config).eval()
    head, table = module.get_output_embeddings().weight, module.get_input_embeddings().weight
    assert (head is table) == tied
    return dataclasses.replace(model, module=module)


def without_dropout(module):
    """The module in training mode, as checkpointing needs it, and nothing left to chance."""
    module.train()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    return module


def check(module, mode, *, units=4, close=1e-10, parts=((0, 4),), low="fp32", alone=None, scale=1.0):
    """Norms and the clipped sum of `units` units, in micro-batches of rows `parts`, against brute force.

    `alone` are the gradients of rows, if they are known.
    """
    rows = 4 // units
    kinds = autocast(low, torch.device("cpu"))
    alone = alone or brute(module, IDS, MASK, kinds)
    wanted = [{n: sum(row[n] for row in alone[k : k + rows]) for n in alone[0]} for k in range(0, 4, rows)]
    norms = norms_of(wanted)
    bound = float(norms.median())
    found = []
    with Clipper(module, Clipping(norm=bound), mode=mode, scale=scale) as clipper:
        for first, last in parts:

            def losses(first=first, last=last):
                with kinds:
                    return row_losses(module, IDS[first:last], MASK[first:last])

            found.append(clipper.add(losses, units=(last - first) // rows))
        clipper.finish(None, 2.0)
    torch.testing.assert_close(torch.cat(found).double(), norms, rtol=close, atol=0)
    total = clipped_sum(wanted, bound)
    size = torch.stack([value.norm() for value in total.values()]).norm()
    for name, parameter in clipper.parameters.items():
        error = (2 * parameter.grad.double() - total[name]).norm()
        assert error <= close * (total[name].norm() + 0.05 * size), (name, float(error))


@pytest.mark.parametrize(("family", "method"), always([(f, m) for f in FAMILIES for m in METHODS] + MORE))
def test_as_one_example_at_a_time(make_model, family, method):
    module = prepared(make_model(family), method)
    alone = brute(module, IDS, MASK)
    # Gemma computes its norms in float32, whatever the type of its weights.
    close = 1e-7 if family == "gemma" else 1e-10
    check(module, "book-keeping", alone=alone, close=close)
    check(module, "two-backward", units=2, parts=((0, 2), (2, 4)), alone=alone, close=close)
    if method != "prefix":  # PEFT does not checkpoint it
        with recomputed(without_dropout(module), on=True):
            check(module, "book-keeping", units=2, alone=alone, close=close)
            if method in ("full", "lora"):
                check(module, "two-backward", alone=alone, close=close)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_tied_and_untied(make_model, family, tied):
    module = prepared(retied(make_model(family), tied), "full")
    alone, close = brute(module, IDS, MASK), 1e-7 if family == "gemma" else 1e-10
    check(module, "book-keeping", alone=alone, close=close)
    # Parts of a step, and each part's layers computed again.
    with recomputed(without_dropout(module), on=True):
        check(module, "two-backward", units=2, parts=((0, 2), (2, 4)), alone=alone, close=close)
    if family in ("gpt2", "llama"):
        check(module, "one-by-one", alone=alone, close=close)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_alone_that_was_tied(make_model, family):
    # The head gets weights of its own, and the embedding stays.
    check(
        prepared(retied(make_model(family), True), "head"), "book-keeping", close=1e-7 if family == "gemma" else 1e-10
    )


@pytest.mark.parametrize(("family", "method"), always([(f, m) for f in FAMILIES for m in METHODS], {}))
def test_in_float32(make_model, family, method):
    check(prepared(make_model(family), method, torch.float32), "book-keeping", close=1e-5)


AUTOCAST = [(f, m) for f in FAMILIES for m in ("full", "lora")]
AUTOCAST += [(f, m) for f in ("gpt2", "llama") for m in ("ia3", "bitfit", "prompt", "prefix", "head")]


@pytest.mark.parametrize(("family", "method"), always(AUTOCAST, {}))
def test_under_autocast(make_model, family, method):
    module = prepared(make_model(family), method, torch.float32)
    check(module, "book-keeping", close=3e-2, low="bf16")
    if method != "prefix":
        with recomputed(without_dropout(module), on=True):
            check(module, "two-backward", close=3e-2, low="bf16")


@pytest.mark.parametrize("mode", ["book-keeping", "two-backward", "one-by-one"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_losses_are_scaled_and_gradients_are_not(make_model, method, mode):
    check(prepared(make_model("llama"), method), mode, scale=1024.0)
    module = prepared(make_model("gpt2"), method, torch.float32)
    exact = brute(module, IDS, MASK)
    if mode != "one-by-one":
        check(module, mode, close=1e-2, low="fp16", scale=1024.0, alone=exact)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_kinds_of_attention(make_model, implementation):
    module = prepared(make_model("llama"), "full")
    module.set_attn_implementation(implementation)
    check(module, "book-keeping")


def test_weights_in_bf16(make_model):
    # Sums stay in float32; what the model computes is rounded, alone as in a batch.
    module = prepared(make_model("llama"), "lora", torch.bfloat16)
    check(module, "book-keeping", close=5e-2)


def test_a_classifier(make_model):
    from transformers import LlamaForSequenceClassification

    config = make_model("llama").module.config
    config = config.from_dict({**config.to_dict(), "num_labels": 3, "pad_token_id": 2})
    torch.manual_seed(0)
    module = LlamaForSequenceClassification(config).double().eval()

    def losses(ids, mask):
        ids = ids.masked_fill(mask == 0, 2)
        logits = module(input_ids=ids, attention_mask=mask).logits
        return torch.nn.functional.cross_entropy(logits, ids[:, 0] % 3, reduction="none")

    batch = synthetic(2048, 9, 1, torch.device("cpu"))
    for mode in ("book-keeping", "two-backward"):
        assert self_test(Clipper(module, Clipping(norm=0.1), mode=mode), losses, batch=batch) < 1e-10


def test_shared_layers(make_model):
    # The second block is the first: each of its parameters is used twice in a forward pass.
    module = prepared(make_model("llama"), "full")
    module.model.layers[1] = module.model.layers[0]
    for mode in ("book-keeping", "two-backward"):
        check(module, mode)


def test_logits_of_picked_positions_are_refused(make_model):
    module = prepared(make_model("llama"), "full")
    hook = module.lm_head.register_forward_pre_hook(lambda _, given: (given[0].flatten(0, 1)[None],))
    with contextlib.closing(_Removed(hook)), Clipper(module, Clipping()) as clipper:

        def losses():
            return module(input_ids=IDS).logits[0].view(4, 7, -1).logsumexp(-1).sum(1)

        with pytest.raises(DPError, match=r"lm_head computes on a tensor of shape \(1, 28, 2048\) in a batch of 4"):
            clipper.add(losses, units=4)
        assert all(p.grad is None for p in module.parameters())


class _Removed:
    def __init__(self, hook) -> None:
        self.close = hook.remove


PEFT = {
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "biases": {"target_modules": ["q_proj"], "lora_bias": True},
    "whole modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "some tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 7, int(IDS[0, 1])]},
}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:.*lora_bias=True")
@pytest.mark.parametrize("kind", PEFT)
def test_other_kinds_of_lora(make_model, kind):
    import peft

    config = peft.LoraConfig(r=2, task_type="CAUSAL_LM", **PEFT[kind])
    module = peft.get_peft_model(make_model("llama").module, config).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).double(), alpha=0.05)
    check(module, "book-keeping")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_tokens_shared_with_a_tied_head_are_refused(make_model):
    import peft

    config = peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True,
                             trainable_token_indices=[5])  # fmt: skip
    module = peft.get_peft_model(make_model("gpt2").module, config)
    with Clipper(module, Clipping()) as clipper, pytest.raises(DPError, match=r"wte.*is used outside the module"):
        clipper.add(lambda: row_losses(module, IDS, MASK), units=4)
