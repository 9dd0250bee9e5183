"""What the documentation says to type works: commands, targets, links, and the example of a product."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import Result

from mesh_assets.cli.app import app
from mesh_assets.derive.shift import DeriveShift
from mesh_assets.product import Mesh
from mesh_assets.settings import Settings
from mesh_assets.shift.report import Budget
from tests.cli.conftest import Organisation

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`((?:mesh|make) [^`]*)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
RUNNABLE = ("sql", "changes", "show", "products", "status", "version")
MADE_BY_DOCS = ("sales.returns", "sales.large_orders")
# Taken by make or held by what belongs to other parts of the project.
NOT_MADE_BY_DOCS = {"docs/images/dagster-graph.png"}


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def typed(page: Path, program: str) -> Iterator[list[str]]:
    """Everything that a page says to type for a program, as words."""
    text = page.read_text()
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    prose = BLOCK.sub("", text)
    for line in [*lines, *(span.replace("\n", " ") for span in SPAN.findall(prose))]:
        if line.startswith(f"{program} "):
            yield shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_parses(page: Path) -> None:
    program: Any = get_command(app)
    for words in typed(page, "mesh"):
        if words[0].startswith("-"):
            assert words[0] in ("--help", "--install-completion"), words
            continue
        assert words[0] in program.commands, words
        command = program.commands[words[0]]
        arguments = [one for one in words[1:] if one != "--help"]
        if len(words) == 1:
            continue
        command.make_context(words[0], arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_target_and_link_exists(page: Path) -> None:
    makefile = (PROJECT / "Makefile").read_text()
    for words in typed(page, "make"):
        target = next(word for word in words if "=" not in word)
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for link in LINK.findall(page.read_text()):
        if "://" in link or link in NOT_MADE_BY_DOCS:
            continue
        assert (page.parent / link).exists(), link


def test_commands_of_the_pages_run(home: Path, mesh: Callable[..., Result], tmp_path: Path) -> None:
    seen: set[tuple[str, ...]] = set()
    for page in PAGES:
        for words in typed(page, "mesh"):
            # Those of the examples run with them.
            if any(name in " ".join(words) for name in MADE_BY_DOCS):
                continue
            # Moments and positions of the examples lie outside of what a test captures.
            if words[0] not in RUNNABLE or len(words) == 1 or "--as-of" in words or tuple(words) in seen:
                continue
            seen.add(tuple(words))
            arguments = [one.replace("/tmp/", f"{tmp_path}/") for one in words]
            result = mesh(*arguments)
            assert result.exit_code == 0, (words, result.output)
    assert len(seen) > 12


@pytest.mark.parametrize("name", ["README.md", "docs/analyst.md", "docs/auditor.md"])
def test_python_of_the_pages_runs(home: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    space: dict[str, Any] = {}
    parts = blocks(PROJECT / name, "python")
    assert parts
    for part in parts:
        exec(compile(part, name, "exec"), space)
    assert capsys.readouterr().out


def test_the_example_of_a_new_product(captured: Organisation, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(
        PROJECT / "products", folder / "products", ignore=shutil.ignore_patterns("__pycache__", "returns")
    )
    programs = Path(sys.executable).parent
    environment = {
        **os.environ,
        "MESH_HOME": str(captured.settings.home),
        "MESH_PRODUCTS": str(folder / "products"),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }

    def shell(script: str) -> str:
        done = subprocess.run(
            ["/bin/sh", "-e", "-c", script],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    at_source, files, ask = (part for part in blocks(PROJECT / "README.md", "sh") if "returns" in part)
    shell(at_source)
    try:
        assert "no mistake" in shell(files)
        shell("mesh shift sales --idle-seconds 0.5")
        answer = shell(ask)
        assert "too small" in answer
        assert "equal" in answer
    finally:
        captured.execute("sales", "drop table shop.returns")


def test_the_example_of_a_derived_product(captured: Organisation, tmp_path: Path) -> None:
    """Derive, evolve and deprecate, each block as it stands, with the shifts that the mesh would run."""
    folder = tmp_path / "project"
    shutil.copytree(PROJECT / "products", folder / "products", ignore=shutil.ignore_patterns("__pycache__"))
    settings = Settings(home=captured.settings.home, products=folder / "products")
    programs = Path(sys.executable).parent
    environment = {
        **os.environ,
        "MESH_HOME": str(settings.home),
        "MESH_PRODUCTS": str(settings.products),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }

    def shell(script: str) -> str:
        done = subprocess.run(
            ["/bin/sh", "-e", "-c", script],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, script + done.stdout + done.stderr
        return done.stdout

    def derive() -> None:
        plans = [plan for plan in Mesh(settings).derive_plans("sales") if "large" in plan.name.product]
        result = DeriveShift(plans, budget=Budget(idle_seconds=0.4)).run()
        assert result.refused == {}

    def count(answer: str) -> int:
        return int(re.findall(r"[0-9,]+", answer)[-1].replace(",", ""))

    page = PROJECT / "docs" / "domain-team.md"
    made, ask, more, renamed, ask_both, deprecated, removed = (
        part for part in blocks(page, "sh") if "large_orders" in part
    )
    assert "no mistake" in shell(made)
    derive()
    large = count(shell(ask))
    assert large > 100
    assert "no mistake" in shell(more)
    derive()
    assert Mesh(settings).open("sales.large_orders").polars()["currency"].null_count() == 0
    told = shell(renamed)
    assert "no mistake" in told
    assert "breaks what 1.1.0 promised: large_orders: column 'amount' was removed" in told
    derive()
    shell(ask_both)
    mesh = Mesh(settings)
    kept = mesh.open("sales.large_orders_v1.large_orders").polars()
    assert kept.columns == ["order_id", "customer_id", "amount", "currency"]
    assert kept.height == large
    assert mesh.open("sales.large_orders").polars()["ordered"].null_count() == 0
    assert "no mistake" in shell(deprecated)
    assert "no mistake" in shell(removed)
