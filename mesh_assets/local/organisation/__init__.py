"""The sample organisation: three domains, each with a database and an application of its own.

Sales owns customers and orders, distribution the supply chain, finance accounts and transactions.
The applications are ordinary programs (``python -m mesh_assets.local.organisation.sales``): a role of
their own owns their schema, and nothing in them knows that their databases are captured. Capture has
a role per domain that may replicate, read, and publish the tables.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from mesh_assets.local.organisation.application import URL_VARIABLE, Application, schema

if TYPE_CHECKING:
    from mesh_assets.local.postgres import Cluster
    from mesh_assets.settings import Settings

DOMAINS = ("sales", "distribution", "finance")
SOURCE = "app"
"""The name of each domain's one source."""

_SCHEMAS = {"sales": "shop", "distribution": "supply", "finance": "ledger"}


def create(cluster: Cluster, settings: Settings, *, seed: int = 1) -> dict[str, str]:
    """Make what is missing of the organisation and leave the capture addresses where sources are found.

    Roles, databases, schemas, tables and their first rows are made once; what exists is kept.

    Args:
        cluster: the running cluster of the sources.
        settings: says where the addresses go (:meth:`Settings.source_file`).
        seed: decides the first rows.

    Returns:
        The capture URL of each domain.
    """
    urls = {}
    for domain in DOMAINS:
        cluster.create_role(_application_role(domain))
        cluster.create_role(_capture_role(domain), replication=True)
        cluster.create_database(domain, owner=_application_role(domain))
        _fill(cluster, domain, seed)
        _grant(cluster, domain)
        urls[domain] = cluster.url(domain, _capture_role(domain))
        _publish_address(settings, domain, urls[domain])
    return urls


def application_command(domain: str, *, rate: float, seed: int = 1) -> list[str]:
    """The command that runs a domain's application; it ends when the process that started it does."""
    module = f"{__name__}.{domain}"
    return [sys.executable, "-m", module, "--rate", f"{rate:g}", "--seed", str(seed), "--stop-with-parent"]


def application_environment(cluster: Cluster, domain: str) -> dict[str, str]:
    """What the application finds in its environment: the address of its database."""
    return {URL_VARIABLE: cluster.url(domain, _application_role(domain))}


def _application_role(domain: str) -> str:
    return f"{domain}_app"


def _capture_role(domain: str) -> str:
    return f"mesh_capture_{domain}"


def _application(domain: str) -> type[Application]:
    found: type[Application] = getattr(import_module(f"{__name__}.{domain}"), domain.capitalize())
    return found


def _fill(cluster: Cluster, domain: str, seed: int) -> None:
    """Make schema and first rows in one transaction, so that either is there only with the other."""
    with psycopg.connect(cluster.url(domain, _application_role(domain)), autocommit=True) as connection:
        if connection.execute("SELECT to_regnamespace(%s)", (_SCHEMAS[domain],)).fetchone() != (None,):
            return
        with connection.transaction():
            connection.execute(schema(domain).encode())
            _application(domain)(connection, seed).seed()
        connection.execute("ANALYZE")


def _grant(cluster: Cluster, domain: str) -> None:
    """Let the capture role read and publish, and keep the other domains out."""
    names = {
        "database": sql.Identifier(domain),
        "schema": sql.Identifier(_SCHEMAS[domain]),
        "owner": sql.Identifier(_application_role(domain)),
        "capture": sql.Identifier(_capture_role(domain)),
    }
    statements = (
        "REVOKE ALL ON DATABASE {database} FROM PUBLIC",
        "GRANT CONNECT, CREATE ON DATABASE {database} TO {capture}",
        "GRANT USAGE ON SCHEMA {schema} TO {capture}",
        "GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {capture}",
        "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {schema} GRANT SELECT ON TABLES TO {capture}",
        # Only a table's owner may publish it; and only who sees other sessions can name a blocker.
        "GRANT {owner} TO {capture}",
        "GRANT pg_read_all_stats TO {capture}",
    )
    with cluster.connect(domain) as connection, connection.transaction():
        for statement in statements:
            connection.execute(sql.SQL(statement).format(**names))


def _publish_address(settings: Settings, domain: str, url: str) -> None:
    """Write a source's address, complete at any moment and readable by this account only."""
    file = settings.source_file(domain, SOURCE)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(url + "\n")
    new.rename(file)
