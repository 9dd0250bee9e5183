"""``mesh validate``: every mistake in contracts and definitions, and what others say of them.

Others are the sources' live tables, the contracts that were released before, those who read a
product, and the transforms of derived products.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mesh_assets import quality
from mesh_assets.cdc.source import Source
from mesh_assets.cli.baseline import Baseline, baseline
from mesh_assets.cli.release import Stay, as_before, awaiting, stays
from mesh_assets.cli.terminal import cell, console, counted, emit
from mesh_assets.contract import compatibility
from mesh_assets.contract.arrow import compare
from mesh_assets.contract.definition import CONTRACT_FILE, DEFINITION_FILE, DOMAIN_TYPE
from mesh_assets.contract.discovery import Discovery, Product, discover
from mesh_assets.contract.document import display
from mesh_assets.contract.loader import load
from mesh_assets.contract.support import support
from mesh_assets.errors import ContractError, MeshError, UnknownName
from mesh_assets.inspection import inspect
from mesh_assets.names import ProductName
from mesh_assets.readers import column_readers, input_tables
from mesh_assets.settings import Settings
from mesh_assets.shift.plan import capture_plan

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


def validate(
    settings: Settings, paths: Sequence[Path], *, against: str | None, offline: bool, as_json: bool
) -> int:
    """Check the paths (all products without one); returns 1 if there is a mistake."""
    findings: list[Finding] = []
    checked: list[str] = []
    with baseline(settings, against) as before:
        for path in paths or [settings.products]:
            whole = Path(os.path.normpath(path.absolute()))
            results = list(_check(settings, whole, before, offline=offline))
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


def _check(
    settings: Settings, path: Path, before: Baseline, *, offline: bool
) -> Iterator[tuple[str, list[Finding]]]:
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
    kept = stays(discovery, before)
    waiting = awaiting(discovery, kept)
    for folder, error in discovery.broken:
        if not _within(folder, below):
            continue
        why = waiting.get(ProductName(folder.parent.name, folder.name))
        if why is None:
            yield display(folder), list(_mistakes(folder, error))
        else:
            yield display(folder), [Finding("note", display(folder), 0, f"reads {why}")]
    products = [one for one in discovery.products.values() if _within(one.folder, below)]
    live: dict[Path, list[Finding]] = {}
    if not offline:
        live = _live(settings, discovery, products)
    for product in products:
        found = [*live.get(product.folder, []), *_changed(discovery, product, before, kept.get(product.name))]
        found += _rules(product)
        if product.derived:
            found += [*_transformed(discovery, product, kept), *_unread(discovery, product)]
        yield display(product.folder), found


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


def _changed(
    discovery: Discovery, product: Product, before: Baseline, stay: Stay | None
) -> Iterator[Finding]:
    """What a contract changes for those who read the product, and whether it may."""
    contract, file = product.contract, display(product.contract.path)
    try:
        old = before.contract(product.name)
    except MeshError as error:
        yield Finding("note", file, 0, f"not compared with what was released: {error.message}")
        return
    if old is None or old.hash == contract.hash:
        return
    changes = compatibility.compare(old, contract)
    if any(change.breaking for change in changes):
        changes = compatibility.compare(old, contract, column_readers(discovery, old))
    refused = compatibility.refusal(old, contract, changes)
    if refused is not None:
        yield from _mistakes(contract.path, refused)
    else:
        unraised = compatibility.unraised(old, contract, changes)
        if unraised is not None:
            yield from _mistakes(contract.path, ContractError.of(file, [unraised]))
        elif stay is not None:
            yield from _old_version(product, stay)
    for change in changes:
        if change.breaking and refused is None:
            message = f"breaks what {old.version} promised: {change}"
            yield Finding("note", file, change.line, message)
        elif not change.breaking:
            yield Finding("note", file, change.line, f"changed since {old.version}: {change}")


def _old_version(product: Product, stay: Stay) -> Iterator[Finding]:
    """What becomes of an old version that somebody still reads."""
    file, readers = display(product.contract.path), ", ".join(map(str, stay.readers))
    if stay.problem is not None:
        message = f"{stay.problem.message}; it is read by {readers}\n  hint: {stay.problem.hint}"
        yield Finding("mistake", file, 0, message)
        return
    number = compatibility.major(stay.old.version)
    yield Finding(
        "note",
        file,
        0,
        f"version {number} of {product.name} stays beside the new one as {stay.name}, for {readers}, "
        "until they have moved",
    )


def _unread(discovery: Discovery, product: Product) -> Iterator[Finding]:
    """A kept version is there for its consumers only."""
    found = support(discovery, product)
    if found is not None and found.may_go:
        message = f"keeps version {found.version} of {found.product}: {found.fate}"
        yield Finding("note", display(product.contract.path), 0, message)


def _rules(product: Product) -> Iterator[Finding]:
    """What is wrong with the rules of its contract and suites."""
    try:
        quality.load(product)
    except ContractError as error:
        yield from _mistakes(product.contract.path, error)


def _transformed(
    discovery: Discovery, product: Product, kept: Mapping[ProductName, Stay]
) -> Iterator[Finding]:
    """Whether a transform makes what its contract promises, as far as its query plan tells."""
    path = product.definition.transform
    assert path is not None  # It is a derived product.
    contract, file = product.contract, display(path)
    looked = inspect(product, input_tables(discovery, product))
    staying = [stay for stay in kept.values() if stay.problem is None and product.name in stay.unnamed]
    if looked.error and staying:
        before = inspect(product, input_tables(as_before(discovery, kept), product))
        if not before.error:
            looked, reads = before, ", ".join(str(stay.name) for stay in staying)
            yield Finding("note", file, 0, f"reads {reads} until it is written anew")
    if looked.error:
        yield Finding("mistake", file, 0, f"the transform cannot be used: {looked.error}")
        return
    for table in contract.tables:
        made = looked.makes.get(table.name)
        promise = display(contract.path)
        if made is None:
            told = ", ".join(looked.makes) or "nothing"
            yield Finding("mistake", file, 0, f"the transform makes no table {table.name!r}, but {told}")
            continue
        for column in table.columns:
            if column.name not in made:
                message = f"the transform makes no column {column.name!r} of {table.name!r}"
                yield Finding("mistake", promise, column.line, message)
        differs = looked.differs.get(table.name, {})
        for column in table.columns:
            if column.name in differs:
                yield Finding(
                    "note",
                    promise,
                    column.line,
                    f"column {column.name!r} is {column.physical_type} and comes from the transform as "
                    f"{made[column.name]}, not {differs[column.name]}",
                )
        promised = {column.name for column in table.columns}
        for name in made:
            if name not in promised:
                message = f"the transform makes column {name!r} of {table.name!r}, which nobody promised"
                yield Finding("mistake", promise, table.line, message)
    for name in looked.makes:
        if name not in {table.name for table in contract.tables}:
            yield Finding("mistake", file, 0, f"the transform makes table {name!r}, which nobody promised")


def _live(settings: Settings, discovery: Discovery, products: Sequence[Product]) -> dict[Path, list[Finding]]:
    """What the sources, as far as they can be asked, say of the contracts."""
    found: dict[Path, list[Finding]] = {one.folder: [] for one in products}
    by_source: dict[tuple[str, str], list[Product]] = {}
    for product in products:
        if product.definition.source is not None:
            by_source.setdefault((product.name.domain, product.definition.source), []).append(product)
    for (domain, name), fed in by_source.items():
        try:
            with Source(capture_plan(settings, discovery, domain, name).source) as source:
                source.session()
                for product in fed:
                    found[product.folder] += _compared(source, discovery, product)
        except MeshError as error:
            for product in fed:
                message = f"not compared with the source: {error.message}"
                found[product.folder] = [Finding("note", display(product.contract.path), 0, message)]
    return found


def _compared(source: Source, discovery: Discovery, product: Product) -> Iterator[Finding]:
    file = display(product.contract.path)
    readers: compatibility.Readers | None = None
    for table in product.contract.tables:
        try:
            relation = source.describe(table.physical_name)
        except UnknownName as error:
            yield Finding("mistake", file, table.line, str(error))
            continue
        for mismatch in compare(table, relation):
            message = str(mismatch)
            if mismatch.blocking:
                if readers is None:
                    readers = column_readers(discovery, product.contract)
                concerned = compatibility.concerned(readers, table.name, mismatch.column)
                if concerned:
                    message += f"; read by {', '.join(map(str, concerned))}"
            severity: Literal["mistake", "note"] = "mistake" if mismatch.blocking else "note"
            yield Finding(severity, file, mismatch.line, message)
