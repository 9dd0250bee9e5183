"""What derived products wait for: newer versions of the products that they subscribe to.

A derive shift leaves in its run's tags up to which versions of its inputs it has looked. A version
beyond is a reason for the next shift; one that it has seen is none, whether or not every product
could be derived from it: a transform that failed fails again until it, or an input, is another.
A product left behind for a reason that may pass is named there too, and tried again ever later.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mesh_assets.contract.discovery import Discovery, Product
from mesh_assets.errors import ContractError, UnknownName
from mesh_assets.names import ProductName

SEEN_TAG = ".dagster/mesh_seen"
"""Versions of the inputs up to which a run has looked, as JSON; not shown to people."""

RETRY_SECONDS = 30.0
"""How long the next shift waits after one that failed."""

BEHIND_SECONDS = 60.0
"""How long the next shift waits after one that left a product behind; twice as long after each more."""

LONGEST_BEHIND_SECONDS = 600.0

Heads = Mapping[ProductName, int]


@dataclass(frozen=True)
class Past:
    """The derive shifts of a domain that have ended.

    Attributes:
        seen: :data:`SEEN_TAG` of the last one that has one; empty if none has.
        failed_at: when the last one ended, if it failed, in seconds since 1970.
        ended_at: when the last one ended.
        attempts: how many of the last ones have left the same ``seen``.
    """

    seen: str = ""
    failed_at: float | None = None
    ended_at: float = 0.0
    attempts: int = 1


def input_products(products: Iterable[Product], discovery: Discovery) -> list[Product]:
    """The products that others are made of directly, each once, those made here left out."""
    made = list(products)
    own = {product.name for product in made}
    names = {one.product for product in made for one in product.definition.inputs}
    return [discovery.products[name] for name in sorted(names - own) if name in discovery.products]


def root_sources(products: Iterable[Product], discovery: Discovery) -> list[str]:
    """``domain.source`` of everything that products are made of in the end.

    A derive shift waits for shifts over these only: two that waited for each other would never end.
    """
    found: set[str] = set()
    waiting = [one.product for product in products for one in product.definition.inputs]
    seen: set[ProductName] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in discovery.products:
            continue
        seen.add(name)
        definition = discovery.products[name].definition
        if definition.source is not None:
            found.add(f"{name.domain}.{definition.source}")
        waiting += [one.product for one in definition.inputs]
    return sorted(found)


def code_text(products: Iterable[Product]) -> str:
    """Changes with whatever decides how products are derived."""
    return ",".join(f"{one.name}:{one.contract.hash[:12]}:{_code_hash(one)[:12]}" for one in products)


def _code_hash(product: Product) -> str:
    try:
        return product.code_hash
    except ContractError:
        # Its folder was removed meanwhile, as that of an old version is: it is no longer planned next time.
        return ""


def seen_text(heads: Heads, code: str, behind: Iterable[ProductName] = ()) -> str:
    """The value of :data:`SEEN_TAG`; ``behind``: what may yet be made of the same inputs."""
    versions = {str(name): version for name, version in sorted(heads.items())}
    left = sorted(str(name) for name in behind)
    return json.dumps({"code": code, "heads": versions, **({"behind": left} if left else {})})


def seen_heads(text: str, code: str) -> dict[ProductName, int]:
    """What :func:`seen_text` wrote; nothing if it was written of other code."""
    try:
        found = json.loads(text or "{}")
        if found["code"] != code:
            return {}
        return {ProductName.parse(name): int(version) for name, version in found["heads"].items()}
    except (UnknownName, ValueError, TypeError, KeyError, AttributeError):
        return {}


def left_behind(text: str) -> list[str]:
    """The products that :func:`seen_text` named as left behind."""
    try:
        found = json.loads(text or "{}").get("behind", [])
        return [str(name) for name in found]
    except (ValueError, TypeError, AttributeError):
        return []


def due(
    products: Sequence[Product], heads: Heads, past: Past, running: Sequence[str], now: float
) -> tuple[bool, str]:
    """Whether a domain without a running derive shift needs one, and why, or why not.

    Args:
        products: the derived products of the domain.
        heads: the newest versions of what they subscribe to; 0 before the first.
        past: what was derived.
        running: sources of the inputs, as ``domain.source``, of which changes are being captured now.
    """
    own = {product.name for product in products}
    ready = [
        product
        for product in products
        if all(one.product in own or heads.get(one.product) for one in product.definition.inputs)
    ]
    if not ready:
        return False, "what they are made of has no version yet"
    if past.failed_at is not None and now - past.failed_at < RETRY_SECONDS:
        return (
            False,
            f"the last shift failed; the next one starts in {past.failed_at + RETRY_SECONDS - now:.0f} s",
        )
    seen = seen_heads(past.seen, code_text(products))
    if not seen:
        return True, "they were not derived by this code yet"
    for name in sorted({one.product for product in ready for one in product.definition.inputs} - own):
        if heads[name] != seen.get(name, 0):
            return True, f"{name} has version {heads[name]}"
    if running:
        return True, f"changes of {', '.join(running)} are being captured"
    if behind := ", ".join(left_behind(past.seen)):
        pause = min(LONGEST_BEHIND_SECONDS, BEHIND_SECONDS * 2.0 ** (past.attempts - 1))
        if now - past.ended_at >= pause:
            return True, f"{behind} was left behind"
        return False, f"{behind} was left behind; tried again in {past.ended_at + pause - now:.0f} s"
    return False, "nothing new"
