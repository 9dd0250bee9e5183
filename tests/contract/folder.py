"""A products folder under construction."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent, indent

from mesh_assets.contract import Discovery, discover

CONTRACT = """\
apiVersion: v3.1.0
kind: DataContract
id: {domain}.{product}
name: {product}
version: 1.0.0
status: active
domain: {domain}
team: {{name: {domain}-engineering}}
schema:
  - name: {product}
    physicalName: {table}
    properties:
      - name: id
        logicalType: integer
        physicalType: bigint
        primaryKey: true
"""


class Folder:
    """A products folder under construction."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()

    def domain(self, name: str, *sources: str) -> None:
        (self.root / name).mkdir()
        listed = "".join(f"    {source}: {{kind: postgres}}\n" for source in sources or ("app",))
        (self.root / name / "defs.yaml").write_text(
            "type: mesh_assets.orchestration.Domain\nattributes:\n  description: A domain.\n"
            f"  owner: team:{name}\n  sources:\n{listed}"
        )

    def product(self, domain: str, name: str, *, table: str | None = None, source: str = "app") -> Path:
        folder = self.root / domain / name
        folder.mkdir()
        (folder / "contract.yaml").write_text(
            CONTRACT.format(domain=domain, product=name, table=table or f"shop.{name}")
        )
        (folder / "defs.yaml").write_text(
            f"type: mesh_assets.orchestration.DataProduct\nattributes:\n  source: {source}\n"
        )
        return folder

    def derived(
        self,
        name: str,
        inputs: str,
        *,
        key: tuple[str, ...] = ("id",),
        transform: str | None = "def transform(inputs):\n    return inputs['a']\n",
        more: str = "",
    ) -> Path:
        """A derived product ``domain.product`` with bigint key columns and a text."""
        domain, _, product = name.partition(".")
        folder = self.root / domain / product
        folder.mkdir()
        columns = "".join(
            f"      - {{name: {column}, logicalType: integer, physicalType: bigint, primaryKey: true, "
            f"primaryKeyPosition: {place}}}\n"
            for place, column in enumerate(key, start=1)
        )
        (folder / "contract.yaml").write_text(
            CONTRACT.format(domain=domain, product=product, table="x")
            .replace("    physicalName: x\n", "")
            .partition("      - name: id")[0]
            + columns
            + "      - {name: note, logicalType: string, physicalType: text}\n"
        )
        (folder / "defs.yaml").write_text(
            "type: mesh_assets.orchestration.DataProduct\nattributes:\n  inputs:\n"
            + indent(dedent(inputs).strip("\n"), "    ")
            + "\n"
            + more
        )
        if transform is not None:
            (folder / "transform.py").write_text(transform)
        return folder

    def discover(self) -> Discovery:
        return discover(self.root)
