"""Which code locations are made of files that were edited, so that they have to be loaded again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mesh_assets.local.instance import Location


class Edits:
    """Compares the files that code locations are made of with those of the last look.

    Args:
        products: the products folder.
        locations: the code locations, as they are now.
    """

    def __init__(self, products: Path, locations: Sequence[Location]) -> None:
        self._products = products
        self._locations = locations
        self._states: list[tuple[str, int, int] | None] = []
        self._fingerprints: dict[str, int] = {}
        self._look()

    def changed(self) -> list[str]:
        """Names of the code locations that have been edited since the last look."""
        known = self._fingerprints
        self._look()
        return [name for name, fingerprint in self._fingerprints.items() if known[name] != fingerprint]

    def _look(self) -> None:
        # Brings Dagster, which is imported while the clusters start.
        from mesh_assets.orchestration.component import file_states

        states = file_states(self._products.absolute())
        if states != self._states:
            self._states = states
            self._fingerprints = {one.name: self._fingerprint(one.attribute) for one in self._locations}

    def _fingerprint(self, attribute: str) -> int:
        """Changes with any file that a code location's definitions are made of."""
        from mesh_assets.orchestration.component import discovered
        from mesh_assets.orchestration.enterprise import DOMAIN

        discovery = discovered(self._products)
        # A domain's depend on what its own products are made of, the enterprise's on all products.
        domains = {attribute, *(discovery.domains if attribute == DOMAIN else ())}
        for product in discovery.derived(attribute):
            domains.update(one.product.domain for one in product.definition.inputs)
        folders = tuple(str(self._products.absolute() / name) + os.sep for name in sorted(domains))
        return hash(tuple(one for one in self._states if one and one[0].startswith(folders)))
