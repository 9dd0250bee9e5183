"""What the documentation says to type works: commands, targets, links, and the examples of products."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.main import get_command
from typer.testing import Result

from benchmarks.__main__ import NAMES
from benchmarks.record import Record
from mesh_assets import contract
from mesh_assets.cli.app import app
from mesh_assets.derive.shift import DeriveShift
from mesh_assets.ingest.shift import Shift
from mesh_assets.local import instance, organisation
from mesh_assets.orchestration.location import location
from mesh_assets.product import Mesh
from mesh_assets.quality.ruleset import compile_rules
from mesh_assets.settings import Settings
from mesh_assets.shift.report import Budget
from tests.cli.conftest import QUICK, Organisation

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`((?:mesh|make) [^`]*)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
# Those left out start, stop or write; that they work is tested elsewhere, that they parse is tested here.
RUNNABLE = (
    *("sql", "changes", "show", "products", "status", "version"),
    *("lineage", "impact", "search", "check", "quarantine", "parity", "validate", "rebuild"),
)
MADE_BY_DOCS = ("returns", "large_orders", "complaints")
# Named by the prose as commands, and complete with a name only.
NAMED_ONLY = {("show",), ("sql",), ("changes",), ("lineage",), ("impact",)}
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


def test_the_page_of_benchmarks_names_all_of_them_and_what_they_record(tmp_path: Path) -> None:
    page = (PROJECT / "benchmarks" / "README.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == sorted(NAMES)
    (fields,) = re.findall(r"`\{(name, [^}]*)\}`", page)
    file = Record("fold_memory", "fold: memory", 1.0, 2.0, "the limit", 1.0, "GB").write(tmp_path)
    assert list(json.loads(file.read_text())) == fields.split(", ")


@dataclass(frozen=True)
class Project:
    """A copy of the products in a project's folder, whose mesh is the captured organisation."""

    folder: Path
    settings: Settings

    def shell(self, script: str) -> str:
        """Type a block of a page; what it answers."""
        programs = Path(sys.executable).parent
        done = subprocess.run(
            ["/bin/sh", "-e", "-c", script],
            cwd=self.folder,
            env={
                **os.environ,
                "MESH_HOME": str(self.settings.home),
                "MESH_PRODUCTS": str(self.settings.products),
                "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, script + done.stdout + done.stderr
        return done.stdout

    def capture(self) -> None:
        """What a mesh that is up does by itself."""
        Shift(Mesh(self.settings).plan("sales", "app"), budget=QUICK).run()

    def derive(self, word: str) -> None:
        """The same for derived products with a word in their names."""
        plans = [plan for plan in Mesh(self.settings).derive_plans("sales") if word in plan.name.product]
        assert DeriveShift(plans, budget=Budget(idle_seconds=0.4)).run().refused == {}

    def rows(self, name: str) -> pl.DataFrame:
        """What a product holds now."""
        return Mesh(self.settings).open(name).polars()


@pytest.fixture
def project(captured: Organisation, tmp_path: Path) -> Project:
    folder = tmp_path / "project"
    shutil.copytree(PROJECT / "products", folder / "products", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "workspace.yaml", folder)
    return Project(folder, Settings(home=captured.settings.home, products=folder / "products"))


@pytest.fixture(scope="module")
def derived(captured: Organisation) -> None:
    """The sample organisation's derived products are made."""
    for domain in organisation.DOMAINS:
        plans = Mesh(captured.settings).derive_plans(domain)
        assert DeriveShift(plans, budget=Budget(idle_seconds=0.4)).run().refused == {}


@pytest.mark.usefixtures("home", "derived")
def test_commands_of_the_pages_run(
    mesh: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    seen: set[tuple[str, ...]] = set()
    for page in PAGES:
        for words in typed(page, "mesh"):
            # Those of the examples run with them.
            if any(name in " ".join(words) for name in MADE_BY_DOCS) or words[-1] in (".", ".."):
                continue
            # Moments and positions of the examples lie outside of what a test captures, revisions of what
            # a checkout has.
            if {"--as-of", "--against"} & set(words):
                continue
            if words[0] not in RUNNABLE or tuple(words) in seen or tuple(words) in NAMED_ONLY:
                continue
            seen.add(tuple(words))
            arguments = [one.replace("/tmp/", f"{tmp_path}/") for one in words]
            result = mesh(*arguments)
            assert result.exit_code == 0, (words, result.output)
            assert result.output, words
    assert {words[0] for words in seen} == set(RUNNABLE)


def test_the_walk_of_a_mistyped_credit_limit(
    captured: Organisation, home: Path, mesh: Callable[..., Result]
) -> None:
    """It waits and the check fails until it is corrected; current goes on showing the last good row."""
    (commands,) = (block for block in blocks(PROJECT / "README.md", "sh") if "sales.customers" in block)
    limit = "select credit_limit from sales.customers where customer_id = 1"
    was = mesh("sql", limit, "--json").stdout

    def walk() -> list[Result]:
        captured.capture("sales")
        return [mesh(*shlex.split(line)[1:]) for line in commands.splitlines()]

    def clerk(amount: str) -> None:
        captured.execute("sales", f"update shop.customers set credit_limit = {amount} where customer_id = 1")

    clerk("-credit_limit")
    waits, check = walk()
    assert waits.exit_code == 0
    assert re.search(r"customer_id=1\b.*credit_limit_is_not_negative", waits.stdout)
    assert check.exit_code == 1
    assert re.search(r"credit_limit_is_not_negative\W+failed", check.stdout)
    assert mesh("sql", limit, "--json").stdout == was
    clerk("-credit_limit")
    waits, check = walk()
    assert "customer_id=1 " not in waits.stdout
    assert check.exit_code == 0, check.stdout


@pytest.mark.parametrize("name", ["README.md", "docs/analyst.md", "docs/auditor.md"])
def test_python_of_the_pages_runs(home: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    space: dict[str, Any] = {}
    parts = blocks(PROJECT / name, "python")
    assert parts
    for part in parts:
        exec(compile(part, name, "exec"), space)
    assert capsys.readouterr().out


def test_the_example_of_a_new_product(captured: Organisation, project: Project) -> None:
    at_source, files, ask = (part for part in blocks(PROJECT / "README.md", "sh") if "returns" in part)
    shutil.rmtree(project.settings.products / "sales" / "returns", ignore_errors=True)
    project.shell(at_source)
    try:
        assert "no mistake" in project.shell(files)
        project.shell("mesh shift sales --idle-seconds 0.5")
        answer = project.shell(ask)
        assert "too small" in answer
        assert "equal" in answer
    finally:
        captured.execute("sales", "drop table shop.returns")


def test_the_example_of_a_captured_product(captured: Organisation, project: Project) -> None:
    """Add, put right, evolve and remove, each block as it stands, with the shifts that the mesh would run."""
    page, shell, rows = PROJECT / "docs" / "domain-team.md", project.shell, project.rows
    at_source, files, look, bad, waits, mended, more, look_again, removed = (
        part for part in blocks(page, "sh") if "complaints" in part
    )
    try:
        shell(at_source)
        assert "no mistake" in shell(files)
        project.capture()
        told = shell(look)
        assert "damaged" in told
        assert "equal" in told
        shell(bad)
        project.capture()
        assert "reason_is_known" in shell(waits)
        assert rows("sales.complaints").height == 2
        assert "no mistake" in shell(mended)
        assert sorted(rows("sales.complaints")["reason"]) == ["damaged", "late", "lost"]
        assert "no mistake" in shell(more)
        project.capture()
        assert re.search(r"false\W+3", shell(look_again).lower())
        assert "no mistake" in shell(removed)
    finally:
        captured.execute("sales", "drop table if exists shop.complaints")


def test_the_example_of_a_derived_product(project: Project) -> None:
    """Derive, evolve and deprecate, each block as it stands, with the shifts that the mesh would run."""

    def count(answer: str) -> int:
        return int(re.findall(r"[0-9,]+", answer)[-1].replace(",", ""))

    page, shell, rows = PROJECT / "docs" / "domain-team.md", project.shell, project.rows
    made, ask, more, renamed, ask_both, deprecated, removed = (
        part for part in blocks(page, "sh") if "large_orders" in part
    )
    assert "no mistake" in shell(made)
    project.derive("large")
    large = count(shell(ask))
    assert large > 100
    assert "no mistake" in shell(more)
    project.derive("large")
    assert rows("sales.large_orders")["currency"].null_count() == 0
    told = shell(renamed)
    assert "no mistake" in told
    assert "breaks what 1.1.0 promised: large_orders: column 'amount' was removed" in told
    project.derive("large")
    shell(ask_both)
    kept = rows("sales.large_orders_v1.large_orders")
    assert kept.columns == ["order_id", "customer_id", "amount", "currency"]
    assert kept.height == large
    assert rows("sales.large_orders")["ordered"].null_count() == 0
    assert "no mistake" in shell(deprecated)
    assert "no mistake" in shell(removed)


# pytest puts its own filters in place of the program's: what Dagster warns of itself is ignored again.
@pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated", "ignore::dagster.BetaWarning")
def test_the_page_s_domain_and_rule_are_understood(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    page = PROJECT / "docs" / "domain-team.md"
    domain, stanza, rule = blocks(page, "yaml")
    folder = project.settings.products / "purchasing"
    folder.mkdir()
    (folder / "defs.yaml").write_text(domain)
    workspace = project.folder / "workspace.yaml"
    workspace.write_text(workspace.read_text() + stanza)
    assert [one.name for one in instance.locations(workspace)][-1] == "purchasing"
    monkeypatch.setenv("MESH_HOME", str(project.settings.home))
    monkeypatch.setenv("MESH_PRODUCTS", str(project.settings.products))
    found = contract.discover(project.settings.products)
    assert found.domains["purchasing"].owner == "team:purchasing"
    location("purchasing").get_repository_def()

    files = next(part for part in blocks(page, "sh") if "complaints/contract.yaml" in part)
    text = files.split("<<'END'\n")[1].split("END\n")[0]
    assert text.count("    properties:\n") == 1
    text = text.replace("    properties:\n", textwrap.indent(rule, "    ") + "    properties:\n")
    path = project.folder / "contract.yaml"
    path.write_text(text)
    assert compile_rules(contract.load(path)).rule("complaints.there_are_few").blocking
