"""``mesh validate``: every mistake in contracts and definitions, and what the sources say of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mesh_assets.cdc.source import Source
from mesh_assets.cli.terminal import cell, console, counted, emit
from mesh_assets.contract.arrow import compare
from mesh_assets.contract.definition import CONTRACT_FILE, DEFINITION_FILE, DOMAIN_TYPE
from mesh_assets.contract.discovery import Discovery, Product, discover
from mesh_assets.contract.document import display
from mesh_assets.contract.loader import load
from mesh_assets.errors import ContractError, MeshError, UnknownName
from mesh_assets.plan import capture_plan
from mesh_assets.settings import Settings

_PLACE = re.compile(r"(?P<file>.+?):(?P<line>\d+): (?P<message>.*)")


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        severity: a ``mistake`` has to be mended; a ``note`` is worth knowing.
        file, line: where; line 0 means the file as a whole.
    """

    severity: Literal["mistake", "note"]
    file: str
    line: int
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.message}"


def validate(settings: Settings, paths: Sequence[Path], *, offline: bool, as_json: bool) -> int:
    """Check the paths (all products without one); returns 1 if there is a mistake."""
    findings: list[Finding] = []
    checked: list[str] = []
    for path in paths or [settings.products]:
        results = list(_check(settings, path.absolute(), offline=offline))
        if not results:
            raise _nothing(path)
        for file, found in results:
            checked.append(file)
            findings += found
    findings = list(dict.fromkeys(findings))
    mistakes = [one for one in findings if one.severity == "mistake"]
    if as_json:
        emit({"valid": not mistakes, "checked": checked, "findings": [asdict(one) for one in findings]})
        return 1 if mistakes else 0
    out = console()
    for one in findings:
        style = "red" if one.severity == "mistake" else "dim"
        prefix = "" if one.severity == "mistake" else "note: "
        out.print(cell(prefix + str(one), style), soft_wrap=True)
    verdict = counted(len(mistakes), "mistake") if mistakes else "no mistake"
    out.print(cell(f"{len(checked)} checked: {verdict}", "bold red" if mistakes else "green"), soft_wrap=True)
    return 1 if mistakes else 0


def _check(settings: Settings, path: Path, *, offline: bool) -> Iterator[tuple[str, list[Finding]]]:
    """What was checked below a path, and what was found there.

    Raises:
        UnknownName: if the path holds neither a domain nor a product nor a contract.
    """
    root = _root(path)
    if root is None:
        if not path.is_file():
            raise _nothing(path)
        yield display(path), _alone(path)
        return
    below = path.parent if path.is_file() else path
    discovery = discover(root)
    for folder, error in discovery.broken:
        if _within(folder, below):
            yield display(folder), list(_mistakes(folder, error))
    products = [one for one in discovery.products.values() if _within(one.folder, below)]
    live: dict[Path, list[Finding]] = {}
    if not offline:
        live = _live(settings, discovery, products)
    for product in products:
        yield display(product.folder), live.get(product.folder, [])


def _nothing(path: Path) -> UnknownName:
    """A check of nothing must not pass."""
    return UnknownName(
        f"{display(path)} holds no product" if path.exists() else f"there is no {display(path)}",
        hint="give the products folder, a domain's, a product's, or a contract file",
    )


def _within(folder: Path, below: Path) -> bool:
    # A product's own folder also answers for what is wrong with its domain.
    return folder.is_relative_to(below) or below.is_relative_to(folder)


def _root(path: Path) -> Path | None:
    """The products folder that a path is, or is in."""
    folder = path.parent if path.is_file() else path
    if path.is_file() and path.name not in (CONTRACT_FILE, DEFINITION_FILE):
        return None
    for candidate in (folder, *folder.parents[:2]):
        if any(_is_domain(inner) for inner in _folders(candidate)):
            return candidate
    return None


def _folders(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (inner for inner in folder.iterdir() if inner.is_dir())


def _is_domain(folder: Path) -> bool:
    try:
        return DOMAIN_TYPE in (folder / DEFINITION_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _alone(path: Path) -> list[Finding]:
    """A contract outside of any products folder."""
    try:
        load(path)
    except ContractError as error:
        return list(_mistakes(path, error))
    return []


def _mistakes(path: Path, error: ContractError) -> Iterator[Finding]:
    """The mistakes of an error, whose text has each in a line of its own and more about it indented."""
    texts: list[str] = []
    for line in str(error).splitlines():
        if line.startswith("  ") and texts:
            texts[-1] += f"\n{line}"
        else:
            texts.append(line)
    for text in texts:
        first, _, rest = text.partition("\n")
        match = _PLACE.match(first)
        message = match["message"] if match else first
        yield Finding(
            "mistake",
            match["file"] if match else display(path),
            int(match["line"]) if match else 0,
            f"{message}\n{rest}" if rest else message,
        )


def _live(settings: Settings, discovery: Discovery, products: Sequence[Product]) -> dict[Path, list[Finding]]:
    """What the sources, as far as they can be asked, say of the contracts."""
    found: dict[Path, list[Finding]] = {one.folder: [] for one in products}
    by_source: dict[tuple[str, str], list[Product]] = {}
    for product in products:
        by_source.setdefault((product.name.domain, product.definition.source), []).append(product)
    for (domain, name), fed in by_source.items():
        try:
            with Source(capture_plan(settings, discovery, domain, name).source) as source:
                source.session()
                for product in fed:
                    found[product.folder] += _compared(source, product)
        except MeshError as error:
            for product in fed:
                message = f"not compared with the source: {error.message}"
                found[product.folder] = [Finding("note", display(product.contract.path), 0, message)]
    return found


def _compared(source: Source, product: Product) -> Iterator[Finding]:
    file = display(product.contract.path)
    for table in product.contract.tables:
        try:
            relation = source.describe(table.physical_name)
        except UnknownName as error:
            yield Finding("mistake", file, table.line, str(error))
            continue
        for mismatch in compare(table, relation):
            severity: Literal["mistake", "note"] = "mistake" if mismatch.blocking else "note"
            yield Finding(severity, file, mismatch.line, str(mismatch))
