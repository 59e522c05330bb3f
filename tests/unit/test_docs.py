"""The README's commands, files and help texts are true."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import sordino
from sordino.config import load
from sordino.starter import starter

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = ("demo", "init", "train", "audit", "report", "export", "unlearn")


def _help(*words: str) -> str:
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-m", "sordino.cli", *words, "--help"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def help_block() -> str:
    texts = [_help(), *(_help(command) for command in COMMANDS)]
    names = ["sordino --help", *(f"sordino {command} --help" for command in COMMANDS)]
    return "\n\n".join(f"```console\n$ {name}\n{text}\n```" for name, text in zip(names, texts, strict=True))


def test_help_texts_in_the_readme_are_those_of_the_program() -> None:
    made = f"<!-- help:begin -->\n{help_block()}\n<!-- help:end -->"
    [there] = re.findall(r"<!-- help:begin -->.*?<!-- help:end -->", README, re.S)
    if os.environ.get("SORDINO_UPDATE_DOCS"):
        (ROOT / "README.md").write_text(README.replace(there, made))
        pytest.fail("README.md was rewritten; run again without SORDINO_UPDATE_DOCS")
    assert there == made, "set SORDINO_UPDATE_DOCS=1 and run this test once"


def _console_lines() -> list[str]:
    blocks = re.findall(
        r"```console\n(.*?)```", README.split("<!-- help:begin -->")[0] + README.split("<!-- help:end -->")[1], re.S
    )
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_make_targets_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {line.split()[1] for line in _console_lines() if line.startswith("make ")}
    assert named == {"demo", "test"}
    assert named <= targets


def test_sordino_commands_in_the_readme_parse() -> None:
    from sordino.cli import app

    lines = [line for line in _console_lines() if line.startswith("sordino ")]
    assert len(lines) >= 5
    for line in lines:
        import shlex

        command, bound, _ = app.parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)
        assert command.__name__ in COMMANDS
        assert bound.arguments or line.split()[1] in ("audit", "demo")


def test_requirements_in_the_readme_have_the_right_form() -> None:
    from sordino.audit.require import parse

    texts = re.findall(r'--require "([^"]+)"', README)
    assert texts
    for text in texts:
        assert parse(text)[0].split(".")[0] in ("membership", "extraction", "canaries", "epsilon", "utility")


def test_python_block_uses_only_public_names() -> None:
    [block] = re.findall(r"```python\n(.*?)```", README, re.S)
    compile(block, "README.md", "exec")
    used = set(re.findall(r"sordino\.(\w+)", block))
    assert used <= set(sordino.__all__)
    for name in sordino.__all__:
        assert getattr(sordino, name) is not None


def test_file_tree_in_the_readme_exists_and_is_complete() -> None:
    tree = README.split("## The files")[1]
    named = set(re.findall(r"^  ([a-z_]+(?:\.py|/))", tree, re.M)) | {"bundled/", "commands.py", "console.py"}
    for name in named:
        assert (ROOT / "src/sordino" / name.rstrip("/")).exists(), name
    there = {p.name + ("/" if p.is_dir() else "") for p in (ROOT / "src/sordino").iterdir() if p.name[0] not in "_."}
    assert there - {"py.typed", "starter.py"} <= named | {f"{n}/" for n in named}


def test_pictures_and_links_in_the_readme_exist() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_starter_configuration_is_the_default_configuration(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(starter(Path("tickets.csv"), {"text": "body", "unit": "customer"}))
    written = load(path, environment={})
    bare = load(
        values={"data": {"path": "tickets.csv", "text": "body", "unit": "customer"}, "name": "tickets"}, environment={}
    )
    assert written == bare
    assert yaml.safe_load(path.read_text())["data"]["unit"] == "customer"


def test_nothing_of_this_workplace_is_named() -> None:
    done = subprocess.run(
        ["git", "grep", "-lE", r"/(work|root|home/[a-z]+)/"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode > 1:
        pytest.skip("not a git checkout")
    assert not [f for f in done.stdout.split() if f != "tests/unit/test_docs.py"]
