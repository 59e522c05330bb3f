"""The page: its outline, what it must contain, what it must never contain."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import report_fixture

from sordino.report import Excerpt, mask, render_html, text
from sordino.results import Claim, Gate, Notice

OUTLINE = Path(__file__).parents[1] / "golden" / "report_outline.txt"
STATES = ("leaks", "no leak found", "inconclusive", "invalid split")
HOSTILE = "</script></style></title><img src=x onerror=alert(1)>\"'<svg onload=alert(2)>{{ 7 * 1911 }}"
VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """Tags, attributes, headings and visible text; fails where tags don't close in order."""

    def __init__(self, markup):
        super().__init__(convert_charrefs=True)
        self.markup, self.elements, self.open = markup, [], []
        self.pieces, self.headings = [], []
        self.feed(markup)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in {"h1", "h2", "h3"}:
            self.headings.append([tag, ""])

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.pieces.append(data)
        if self.open and self.open[-1] in {"h1", "h2", "h3"}:
            self.headings[-1][1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.pieces).split())

    def having(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def page(state="leaks", **more):
    arguments = {"excerpts": report_fixture.excerpts()} | more
    return Page(render_html(report_fixture.report(state), report_fixture.card(), **arguments))


@pytest.fixture(scope="module")
def pages():
    return {state: page(state) for state in STATES}


def test_the_outline_is_the_golden_one(pages):
    found = "\n".join(f"{tag} {words.strip()}" for tag, words in pages["leaks"].headings)
    assert found + "\n" == OUTLINE.read_text(encoding="utf-8")


@pytest.mark.parametrize("state", STATES)
def test_the_page_is_sealed(pages, state):
    one = pages[state]
    policies = [meta["content"] for meta in one.having("meta") if meta.get("http-equiv")]
    style = re.search(r"<style>(.*?)</style>", one.markup, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert len(policies) == 1
    assert policies[0].startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "unsafe" not in policies[0]
    names = {name for _, attributes in one.elements for name in attributes}
    assert not names & {"src", "srcset", "style", "action", "ping", "background"}
    assert not [name for name in names if name.startswith("on")]
    assert not {tag for tag, _ in one.elements} & {
        "script",
        "img",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
    }
    targets = [a["href"] for _, a in one.elements if "href" in a]
    assert targets and all(target.startswith("#") or target == "data:," for target in targets)
    assert not re.search(r"url\((?!#)|@import", one.markup)


@pytest.mark.parametrize("state", STATES)
def test_ids_are_unique_and_every_reference_has_one(pages, state):
    ids = [attributes["id"] for _, attributes in pages[state].elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [a["href"][1:] for _, a in pages[state].elements if a.get("href", "").startswith("#")]
    named += [i for _, a in pages[state].elements for i in a.get("aria-labelledby", "").split()]
    assert set(named) <= set(ids)


@pytest.mark.parametrize("state", STATES)
def test_the_same_report_gives_the_same_bytes(pages, state):
    assert page(state).markup == pages[state].markup


@pytest.mark.parametrize("state", ["leaks", "no leak found", "inconclusive"])
def test_every_figure_is_on_the_page(pages, state):
    report, shown = report_fixture.report(state), pages[state].text
    every = [(m, one) for a in report.attempts for m, one in (*a.estimates.items(), *a.control.items())]
    every += [("", one) for level in report.canaries for one in (level.included, level.left_out)]
    every += [*report.utility.items(), *report.metrics.items()]
    every += [(one.text, one.estimate) for one in report.requirements]
    missing = {text.estimate_text(one, metric) for metric, one in every} - {
        text.estimate_text(one, metric) for metric, one in every if text.estimate_text(one, metric) in shown
    }
    assert not missing


def test_every_sentence_of_the_report_is_on_the_page(pages):
    report, card, shown = report_fixture.report(), report_fixture.card(), pages["leaks"].text
    sentences = [
        report.verdict.headline,
        *report.verdict.reasons,
        *report.untested,
        *report.threat_model.values(),
    ]
    sentences += [words for one in report.claims for words in (one.statement, one.evidence, one.status)]
    sentences += [words for one in report.gates for words in (one.name, one.question, one.finding)]
    sentences += [words for one in report.attempts for words in (one.name, one.summary, one.paper, *one.notes)]
    sentences += [words for one in report.requirements for words in (one.text, one.status, one.finding)]
    sentences += [one.message for one in (*report.notices, *card.notices)]
    sentences += [*report.provenance.values(), "kept by the owner, in run.json", "method.rank", "δ = 1e-05"]
    assert [words for words in sentences if " ".join(words.split()) not in shown] == []


def test_sections_come_in_the_agreed_order(pages):
    wanted = ["verdict", "threat-model", "claims", "trade-off", "attacks", "effort", "personal", "secrets", "canaries",
              "excerpts", "controls", "requirements", "untested", "data", "provenance"]  # fmt: skip
    for one in pages.values():
        assert [section["id"] for section in one.having("section") if "id" in section] == wanted
        assert [a["href"] for a in one.having("a") if a.get("class") != "skip"] == [f"#{w}" for w in wanted]


def test_an_invalid_split_shows_its_reason_and_no_membership_figure(pages):
    report, shown = report_fixture.report("invalid split"), pages["invalid split"].text
    assert report.verdict.headline not in pages["invalid split"].markup
    assert report.verdict.reasons[0] in shown
    hidden = {text.estimate_text(one) for a in report.attempts[:-1] for one in a.estimates.values()}
    hidden -= {text.estimate_text(one) for name, one in report.metrics.items() if not name.startswith("member")}
    assert [words for words in hidden if words in shown and "not resolvable" not in words] == []
    assert "figures withheld" in shown and "figure withheld: invalid split" in shown
    assert "ROC" not in shown and "AUC of every membership attack" not in shown
    assert text.estimate_text(report.metrics["membership.delta_auc"]) in shown
    assert text.estimate_text(report.attempts[-1].estimates["rate"]) in shown


def test_headline_figures_are_those_of_records_that_did_not_choose_the_attack():
    report = report_fixture.report()
    fresh = replace(report.metrics["membership.auc"], value=0.777, low=0.7, high=0.8)
    changed = replace(report, metrics={**report.metrics, "membership.auc": fresh})
    shown = Page(render_html(changed, report_fixture.card())).text
    tiles, card = shown.index("AUC, reference 0.777 [0.700, 0.800]"), shown.index("Attacks Every attack")
    assert tiles < card
    assert text.estimate_text(report.attempts[0].estimates["auc"]) in shown[card:]


@pytest.mark.parametrize("state", STATES)
def test_forbidden_words_are_absent(pages, state):
    assert not re.search(r"complian(t|ce)|privacy score|guaranteed", pages[state].text, re.IGNORECASE)


def test_private_text_is_masked_by_default(pages):
    without = render_html(report_fixture.report(), report_fixture.card())
    for one in report_fixture.excerpts():
        words = set(re.findall(r"\w{4,}", f"{one.record_id} {one.prefix} {one.suffix}"))
        assert [word for word in words if word in pages["leaks"].markup and word not in without] == []
        assert mask(one.suffix) in pages["leaks"].markup
    revealed = page(reveal=True).text
    for one in report_fixture.excerpts():
        assert " ".join(one.prefix.split()) in revealed and one.record_id in revealed
    assert "shown in full" in revealed and "shown in full" not in pages["leaks"].text


@pytest.mark.parametrize("passage", ["a b\nc", "naïve 😀 x@y.z", "\t\u2003\u00a0\r", "\x00\u202e", "é"])
def test_masking_keeps_the_shape_and_no_character(passage):
    masked = mask(passage)
    assert len(masked) == len(passage)
    assert set(masked) <= {"•", " ", "\n"}
    assert [c.isspace() for c in masked] == [c.isspace() for c in passage]


def test_many_masked_passages_are_counted_not_repeated():
    many = [Excerpt(record_id=str(i), prefix="a", suffix="b", base_hit=False) for i in range(40)]
    masked, revealed = page(excerpts=many), page(excerpts=many, reveal=True)
    assert len(masked.having("blockquote")) == 12 and "28 more passages came out" in masked.text
    assert len(revealed.having("blockquote")) == 40 and "more passages" not in revealed.text


def hostile():
    report, card = report_fixture.report(), report_fixture.card()
    attempt = replace(report.attempts[0], name=HOSTILE, summary=HOSTILE, paper=HOSTILE, access=HOSTILE,
                      parameters={HOSTILE: HOSTILE}, notes=(HOSTILE,))  # fmt: skip
    report = replace(
        report,
        run=HOSTILE,
        created=HOSTILE,
        strongest=HOSTILE,
        verdict=replace(report.verdict, headline=HOSTILE, reasons=(HOSTILE,)),
        threat_model={HOSTILE: HOSTILE},
        attempts=(attempt,),
        claims=(Claim(statement=HOSTILE, evidence=HOSTILE, status="supported"),),
        gates=(Gate(name=HOSTILE, question=HOSTILE, passed=None, finding=HOSTILE),),
        untested=(HOSTILE,),
        notices=(Notice(kind=HOSTILE, count=1, message=HOSTILE),),
        provenance={HOSTILE: HOSTILE},
        counts={HOSTILE: 3},
    )
    card = replace(card, config={HOSTILE: HOSTILE}, data={"source": HOSTILE}, environment={HOSTILE: HOSTILE})
    return report, card, (Excerpt(record_id=HOSTILE, prefix=HOSTILE, suffix=HOSTILE, base_hit=False),)


def test_hostile_text_is_inert():
    report, card, excerpts = hostile()
    found = Page(render_html(report, card, excerpts, reveal=True))
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "img", "b"}
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    assert found.text.count("<img src=x onerror=alert(1)>") > 15
    assert "13377" not in found.text, "a template inside the data was run"


def test_an_empty_report_says_what_is_missing():
    report = replace(
        report_fixture.report(), attempts=(), canaries=(), gates=(), claims=(), requirements=(), untested=(),
        notices=(), metrics={}, utility={}, counts={}, threat_model={}, strongest=None,
    )  # fmt: skip
    shown = Page(render_html(report, replace(report_fixture.card(), notices=()))).text
    sentences = ["No attack was carried out", "No canaries were planted", "Missing evidence is not a pass"]
    sentences += ["No claim was made", "No requirement was set", "treat this as an omission"]
    sentences += ["No passage was handed to this page"]
    for sentence in sentences:
        assert sentence in shown


def test_the_seed_which_tells_coins_from_names_is_not_shown():
    card = replace(report_fixture.card(), seed=987654321987)
    card = replace(card, config={**card.config, "seed": card.seed})
    assert "987654321987" not in render_html(report_fixture.report(), card, [])
