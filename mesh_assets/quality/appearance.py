"""Has Great Expectations' pages stand on their own.

As they are made they take styles, icons, scripts and pictures from half a dozen hosts: without them the
index is empty and no outcome is to be seen, and with them those hosts learn who reads what. A style
sheet of ours takes their place, and an index without scripts.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

_STYLE = Path(__file__).with_name("data_docs.css")
_INDEX = "index.html"
_REMOTE = re.compile(
    r"""<script\b.*?</script>|<footer\b.*?</footer>|<link\b[^>]*>|<img\b[^>]*>|\sonclick="[^"]*\""""
    r"""|\burl\([^)]*://[^)]*\)""",
    re.DOTALL | re.IGNORECASE,
)
_HEAD = re.compile(r"<title>\s*</title>\s*|</head>")

# Examples of values are part of pages: whatever stands in them is not run.
_POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
)


def stand_alone(site: Path, asked: Mapping[str, Any]) -> None:
    """Rewrite the pages of a product, and its index.

    Args:
        site: the folder of pages as Great Expectations built them.
        asked: ``product``, ``at`` and ``suites``, each with ``name`` and ``result``.
    """
    style = f"{_POLICY}\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>"
    for page in site.rglob("*.html"):
        plain = _REMOTE.sub("", page.read_text(encoding="utf-8"))
        page.write_text(_HEAD.sub(lambda found: style if found[0] == "</head>" else "", plain), "utf-8")
    shutil.rmtree(site / "static", ignore_errors=True)
    (site / _INDEX).write_text(_index(site, asked, style), encoding="utf-8")


def _index(site: Path, asked: Mapping[str, Any], style: str) -> str:
    product, at = escape(asked["product"]), escape(asked["at"])
    rows = "\n".join(_row(site, suite["name"], suite["result"]) for suite in asked["suites"])
    return f"""<!DOCTYPE html>
<html>
<head>
<meta charset="UTF-8">
<meta name="viewport" content="width=device-width, initial-scale=1.0">
<title>Data Docs of {product}</title>
{style}
<body>
<div class="container-fluid">
<h4>Data Docs of {product}</h4>
<p>How its rules came out when they were last evaluated, at {at}.</p>
<table class="table">
<thead><tr><th>Status</th><th>Table</th><th>Rules met</th><th>Not met</th><th>Pages</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
</body>
</html>
"""


def _row(site: Path, name: str, result: Mapping[str, Any]) -> str:
    counts = result["statistics"]
    met, unmet = counts["successful_expectations"], counts["unsuccessful_expectations"]
    icon = "fa-times text-danger" if unmet else "fa-check-circle text-success"
    links = [
        f'<a href="{escape(path.relative_to(site).as_posix())}">{said}</a>'
        for said, folder in (("outcomes", "validations"), ("rules", "expectations"))
        for path in _pages(site / folder / Path(*name.split(".")), folder == "validations")
    ]
    cells = (f'<i class="fas {icon}"></i>', escape(name), str(met), str(unmet), " ".join(links))
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _pages(place: Path, deep: bool) -> Sequence[Path]:
    """A suite's page, or those of its outcomes, which lie in folders of their run."""
    return sorted(place.rglob("*.html")) if deep else [place.with_name(f"{place.name}.html")]
