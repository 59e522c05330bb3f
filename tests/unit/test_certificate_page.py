"""The page of a certificate: sealed, whole, escaped, and the pictures drawn from the stored scores."""

import base64
import dataclasses
import hashlib
import re
from xml.etree import ElementTree

import certificate_fixtures as fixtures
import pytest
from test_report_html import HOSTILE, Page

from sordino.evidence import Tree
from sordino.report.text import figure_text, interval_text
from sordino.results import Manifests, Outcome, Scores
from sordino.unlearn.certificates.page import HEADLINES, SECTIONS, curve_svg, losses_svg, render_certificate


@pytest.fixture(scope="module")
def certificate():
    return fixtures.issued()


@pytest.fixture(scope="module")
def page(certificate):
    return Page(render_certificate(certificate))


def test_the_page_is_sealed(page):
    policy = next(meta["content"] for meta in page.having("meta") if meta.get("http-equiv"))
    style = re.search(r"<style>(.*?)</style>", page.markup, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';") and "unsafe" not in policy
    names = {name for _, attributes in page.elements for name in attributes}
    assert not names & {"src", "srcset", "style", "action", "ping", "background"}
    assert not [name for name in names if name.startswith("on")]
    assert not {tag for tag, _ in page.elements} & {"script", "img", "iframe", "object", "embed", "form", "base"}
    targets = [a["href"] for _, a in page.elements if "href" in a]
    assert targets and all(target.startswith("#") or target == "data:," for target in targets)
    assert not re.search(r"url\((?!#)|@import", page.markup)


def test_ids_are_unique_and_every_reference_has_one(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [a["href"][1:] for _, a in page.elements if a.get("href", "").startswith("#")]
    named += [i for _, a in page.elements for i in a.get("aria-labelledby", "").split()]
    assert set(named) <= set(ids)
    assert [section["id"] for section in page.having("section") if "id" in section] == [name for name, _ in SECTIONS]


def test_every_figure_and_sentence_is_on_the_page(certificate, page):
    verification = certificate.verification
    estimates = [one for row in verification.rows for one in row.metrics.values()]
    estimates += [one.difference for one in verification.comparisons]
    estimates += [one.estimate for one in verification.robustness] + list(certificate.utility.values())
    assert [e for e in estimates if f"{figure_text(e)} {interval_text(e)}" not in page.text] == []
    digests = certificate.digests
    words = [
        *certificate.reasons, *certificate.does_not_prove, certificate.promise, certificate.issuer, certificate.method,
        *(one.path for one in certificate.purge), *(one.definition for one in verification.comparisons),
        *(one.what for one in verification.robustness), *(one.note for one in verification.robustness),
        HEADLINES[certificate.outcome], certificate.public_key, certificate.signature, certificate.id,
        digests.base, digests.weights_before, digests.weights_after, digests.tokenizer, digests.data, digests.code,
        certificate.manifests.root_before, certificate.manifests.root_after, *certificate.request.records,
        *certificate.request.subjects, "2.1 %", "4,000", "lr 1e-05", "alpha 1.0", "refusals null", "trials 12",
    ]  # fmt: skip
    assert [one for one in words if one not in page.text] == []
    assert page.text.count("still there") == 1 and "removed" in page.text


@pytest.mark.parametrize("outcome", Outcome.__args__)
def test_each_outcome_has_its_sign(certificate, outcome):
    made = Page(render_certificate(dataclasses.replace(certificate, outcome=outcome)))
    assert HEADLINES[outcome] in made.text
    banner = next(a for tag, a in made.elements if a.get("class", "").startswith("banner"))
    assert (
        banner["class"]
        == f"banner {dict(zip(('pass', 'fail', 'inconclusive'), ('good', 'bad', 'open'), strict=True))[outcome]}"
    )


def hostile(value):
    """`value` with every text in it turned against the page, but those that only have a few values."""
    if isinstance(value, dict):
        return {hostile(k) if k in ("lr", "trials") else k: hostile(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [hostile(one) for one in value]
    kept = ("pass", "fail", "inconclusive", "subject", "record", "exact", "dp", "approximate", "both", "above")
    return HOSTILE if isinstance(value, str) and value not in kept else value


def test_no_text_becomes_markup(certificate, page):
    import msgspec

    made = msgspec.convert(hostile(msgspec.to_builtins(certificate)), type(certificate))
    found = Page(render_certificate(made))
    assert "<script" not in found.markup and "onerror=alert(1)>" not in found.markup
    assert str(7 * 1911) not in found.markup
    assert {tag for tag, _ in found.elements} == {tag for tag, _ in page.elements}
    assert found.text.count("<svg onload=alert(2)>") > 30


def test_what_is_missing_is_said(certificate):
    bare = dataclasses.replace(
        certificate, before=None, after=None, qualification=None, purge=(), utility={}, missing=("row: retrain",),
        verification=dataclasses.replace(certificate.verification, rows=(), comparisons=(), robustness=()),
        settings={}, search={}, issuer="", cost=dataclasses.replace(certificate.cost, share=None, formula=None),
    )  # fmt: skip
    found = Page(render_certificate(bare)).text
    for words in (
        "Nobody tried to bring back",
        "was not held against training anew",
        "No place is listed",
        "row: retrain",
    ):
        assert words in found
    assert "Losses before and after" not in found


def test_the_same_certificate_gives_the_same_bytes(certificate, page):
    assert render_certificate(certificate) == page.markup


def test_the_picture_shows_the_losses(certificate):
    drawn = ElementTree.fromstring(losses_svg(certificate.before, certificate.after))
    before, after, never = (
        sum(columns["loss"]) / len(columns["loss"])
        for columns in (certificate.before.forget, certificate.after.forget, certificate.after.never)
    )
    words = drawn.find("desc").text
    assert f"before {before:.2f} and after {after:.2f}" in words and f"trained on {never:.2f}" in words
    assert losses_svg(None, certificate.after) == ""
    empty = Scores(model="", forget={}, never={}, retain={}, validation={})
    assert losses_svg(empty, certificate.after) == ""
    many = dataclasses.replace(certificate.after, forget={"loss": tuple(float(i) for i in range(5000))})
    assert len(losses_svg(many, certificate.after)) < 20_000
    equal = dataclasses.replace(certificate.after, forget={"loss": (1.0,)}, never={"loss": (1.0,)})
    assert losses_svg(equal, equal).startswith("<svg")


def test_curves_are_drawn_where_there_are_some(certificate):
    attack = certificate.verification.robustness[0]
    assert "0.50 at step 0, 0.55 at step 10" in curve_svg(attack, "c")
    for curve in ((), ((0, 0.5),), ((5, 0.5), (5, 0.6))):
        assert curve_svg(dataclasses.replace(attack, curve=curve), "c") == ""


def test_many_hashes_are_not_all_printed(certificate):
    leaves = tuple(fixtures.leaf(i).hex() for i in range(150))
    manifests = Manifests(before="a", after="b", root_before=Tree(leaves).root, root_after=Tree([]).root, proofs=())
    request = dataclasses.replace(certificate.request, records=leaves)
    found = Page(render_certificate(dataclasses.replace(certificate, request=request, manifests=manifests))).text
    assert "The first hundred of each" in found and leaves[99] in found and leaves[100] not in found
