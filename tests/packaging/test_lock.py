"""The lock files: complete, pinned, hashed, without addresses, and in step with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-uv.lock")
PINNED = re.compile(r"^[a-z0-9][a-z0-9._-]*(\[[a-z,]+\])?==\S+( ; .+)? \\$")


def pins(lock: str) -> dict[str, set[str]]:
    """The locked versions by canonical name (several where they differ by Python version)."""
    found: dict[str, set[str]] = {}
    for line in (PROJECT / lock).read_text().splitlines():
        if PINNED.match(line):
            requirement = Requirement(line.rstrip(" \\"))
            found.setdefault(canonicalize_name(requirement.name), set()).add(
                str(requirement.specifier).removeprefix("==")
            )
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_is_a_pin_a_hash_or_a_comment(lock: str) -> None:
    for line in (PROJECT / lock).read_text().splitlines():
        assert PINNED.match(line) or re.match(r"    (--hash=sha256:[0-9a-f]{64}( \\)?|#.*)$", line), line


@pytest.mark.parametrize("lock", LOCKS)
def test_no_address_is_named(lock: str) -> None:
    text = (PROJECT / lock).read_text()
    assert "://" not in text
    assert "--index" not in text


def test_the_declared_dependencies_are_locked_within_their_ranges() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    wanted = {
        "requirements.lock": [*project["project"]["dependencies"], *groups["build"]],
        "requirements-dev.lock": [*project["project"]["dependencies"], *groups["build"], *groups["dev"]],
        "requirements-uv.lock": groups["installer"],
    }
    for lock, requirements in wanted.items():
        locked = pins(lock)
        for text in requirements:
            requirement = Requirement(text)
            versions = locked.get(canonicalize_name(requirement.name), set())
            assert versions, f"{lock} lacks {requirement.name}: run `make lock`"
            assert all(requirement.specifier.contains(version) for version in versions), (
                lock,
                text,
                versions,
            )


def test_development_uses_the_runtimes_versions() -> None:
    runtime, development = pins("requirements.lock"), pins("requirements-dev.lock")
    assert {name: development.get(name) for name in runtime} == runtime
