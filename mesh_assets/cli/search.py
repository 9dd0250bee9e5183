"""``mesh search``: products, tables, columns and changes by words, with facets."""

from __future__ import annotations

from collections.abc import Mapping

from mesh_assets.catalog.search import FACETS, Found, SearchIndex
from mesh_assets.cli.folded import folded
from mesh_assets.cli.terminal import age, cell, console, counted, emit, note, table
from mesh_assets.errors import SettingError, UnknownName
from mesh_assets.product import Mesh

_INDEX_FILE = "search.sqlite"
_SHOWN_VALUES = 5


def search(mesh: Mesh, words: list[str], filters: Mapping[str, str], limit: int, *, as_json: bool) -> int:
    """Print what was found; returns the exit code: 1 if nothing was."""
    layout = folded(mesh)
    with SearchIndex(mesh.settings.home / _INDEX_FILE) as index:
        index.refresh(layout)
        found = index.search(" ".join(words), filters=filters, limit=limit)
    if as_json:
        emit(
            {
                "total": found.total,
                "loose": found.loose,
                "hits": [
                    {
                        "kind": one.kind,
                        "name": one.name,
                        "title": one.title or None,
                        "summary": one.summary or None,
                        "domain": one.domain,
                        "product": one.product,
                        "owner": one.owner or None,
                        "classification": one.classification or None,
                        "status": one.status or None,
                        "tags": list(one.tags),
                        "at": one.at,
                        "score": one.score,
                    }
                    for one in found.hits
                ],
                "facets": {name: dict(values) for name, values in found.facets.items()},
            }
        )
    else:
        _show(found, words)
    return 0 if found.total else 1


def parse_filters(texts: list[str]) -> dict[str, str]:
    """``facet=value`` texts.

    Raises:
        SettingError: if one is not of that form.
        UnknownName: if there is no such facet.
    """
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise SettingError(
                f"{text!r} is not a filter", available=FACETS, hint="write facet=value, such as kind=column"
            )
        if name not in FACETS:
            raise UnknownName.of("facet", name, FACETS)
        found[name] = value
    return found


def _show(found: Found, words: list[str]) -> None:
    out = console()
    if not found.total:
        out.print(cell(f"nothing was found for {' '.join(words)!r}"), soft_wrap=True)
        return
    if found.loose:
        note("nothing has all of the words; this has some of them", "yellow")
    made = table("kind", "name", "", "what it is")
    for one in found.hits:
        made.add_row(
            cell(one.kind, "dim"),
            cell(one.name, "bold"),
            cell(f"{age(one.at)} ago" if one.at else one.title, "dim" if one.at else ""),
            cell(one.summary),
        )
    out.print(made)
    for name, values in found.facets.items():
        if len(values) > 1:
            shown = [f"{value} {number:,}" for value, number in list(values.items())[:_SHOWN_VALUES]]
            more = f", {len(values) - _SHOWN_VALUES} more" if len(values) > _SHOWN_VALUES else ""
            out.print(cell(f"{name:<15}", "dim"), cell(", ".join(shown) + more), sep="", soft_wrap=True)
    if found.total > len(found.hits):
        note(
            f"the best {len(found.hits):,} of {found.total:,}; --only kind=column and the like narrow it down"
        )
    else:
        note(counted(found.total, "hit"))
