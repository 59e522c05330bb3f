"""Matplotlib figures as small inline SVG that takes its colours from the page's CSS variables.

The page forbids style attributes (its policy allows exactly one style sheet), so every style that
Matplotlib writes becomes a presentation attribute. The same figure gives the same bytes each time.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

__all__ = ["ACCENT", "CONTROL", "GRID", "INK", "MUTED", "PAPER", "SHADE", "canvas", "to_svg"]

# Colours no figure would use by accident; each stands for one of the page's variables.
INK, MUTED, GRID, ACCENT = "#010203", "#010204", "#010205", "#010206"
CONTROL, PAPER, SHADE = "#010207", "#010208", "#010209"
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    ACCENT: "var(--accent)",
    CONTROL: "var(--control)",
    PAPER: "var(--card)",
    SHADE: "var(--shade)",
}
# Set once on the page's style sheet, or SVG's own default: saying them on every element is dead weight.
DEFAULTS = {("stroke-linejoin", "round"), ("opacity", "1"), ("stroke-width", "1"), ("stroke-opacity", "1")}


REFERENCE = re.compile(r"(?<=#)[^)\s]+")


@contextmanager
def canvas() -> Iterator[None]:
    """Set Matplotlib's own defaults plus what makes its SVG stable, whatever the caller's settings are."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # A reader's font draws the text, so it doesn't matter that the measuring font lacks a glyph.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "sordino", "svg.fonttype": "none", "font.size": 11})
        yield


def to_svg(figure: Any, *, key: str, title: str, description: str) -> str:
    """Turn `figure` into one `<svg role="img">` with ids that start with `key`, and words to read out."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    _remove(root, {"metadata", "style"})
    used = dict.fromkeys(REFERENCE.findall(" ".join(_references(root))))
    names = {name: f"{key}-{number}" for number, name in enumerate(used)}
    for element in root.iter():
        _tidy(element, names)
    _hoist(root)
    _unwrap(root)
    labels = {"title": f"{key}-title", "desc": f"{key}-desc"}
    root.attrib = {
        "class": "chart",
        "role": "img",
        "viewBox": root.attrib["viewBox"],
        "aria-labelledby": " ".join(labels.values()),
    }
    for position, (tag, text) in enumerate(zip(labels, (title, description), strict=True)):
        label = ElementTree.Element(tag, {"id": labels[tag]})
        label.text = text
        root.insert(position, label)
    return ElementTree.tostring(root, encoding="unicode")


def _references(root: ElementTree.Element) -> Iterator[str]:
    """List the attributes by which one element names another."""
    for element in root.iter():
        for name, value in element.attrib.items():
            if name.endswith("href") or name == "clip-path":
                yield value


def _remove(root: ElementTree.Element, tags: set[str]) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in tags:
                parent.remove(child)


def _tidy(element: ElementTree.Element, names: dict[str, str]) -> None:
    """Rewrite one element's attributes: new ids by `names`, rounded numbers, styles as attributes."""
    attributes: dict[str, str] = {}
    for full, value in element.attrib.items():
        name = full.rpartition("}")[2]
        if name == "style":
            attributes |= _presentation(value)
        elif name == "id":
            attributes |= {"id": names[value]} if value in names else {}
        elif name in {"href", "clip-path"}:
            attributes[name] = REFERENCE.sub(lambda found: names[found[0]], value)
        elif not value.startswith("rotate(-0 "):
            attributes[name] = _rounded(value)
    element.attrib = attributes
    for part in ("text", "tail"):
        if not (getattr(element, part) or "").strip():
            setattr(element, part, None)


def _rounded(value: str) -> str:
    """Round numbers to a hundredth of a point and turn the line breaks of path data into spaces."""
    text = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
    return re.sub(r"\s*\n\s*", " ", text).strip()


def _presentation(style: str) -> dict[str, str]:
    """Turn a style into presentation attributes; the font family is the page's."""
    pairs = [part.split(":", 1) for part in style.split(";") if ":" in part]
    named = {name.strip(): value.strip() for name, value in pairs}
    named.pop("font-family", None)
    return {
        name: VARIABLES.get(value, _rounded(value)) for name, value in named.items() if (name, value) not in DEFAULTS
    }


def _unwrap(parent: ElementTree.Element) -> None:
    """Put the children of groups without attributes in the place of the group."""
    for child in list(parent):
        _unwrap(child)
        if child.tag in {"g", "defs"} and not child.attrib and (child.tag == "g" or len(child) == 0):
            at = list(parent).index(child)
            parent.remove(child)
            for offset, inner in enumerate(list(child)):
                parent.insert(at + offset, inner)


def _hoist(root: ElementTree.Element) -> None:
    """Say once, on the group, what a row of marks would say on every mark."""
    for group in root.iter("g"):
        marks = list(group)
        if len(marks) < 2 or any(mark.tag != "use" for mark in marks):
            continue
        common = set.intersection(*(set(mark.attrib.items()) for mark in marks))
        common = {(name, value) for name, value in common if name not in {"href", "x", "y"}}
        group.attrib |= dict(sorted(common))
        for mark in marks:
            mark.attrib = {name: value for name, value in mark.attrib.items() if (name, value) not in common}
