"""The commands, their options and their help. What a command does is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mesh_assets.cli import completion, terminal
from mesh_assets.errors import MeshError

if TYPE_CHECKING:
    from mesh_assets.product import Mesh
    from mesh_assets.settings import Settings

_RUN, _LOOK, _PROVE = "Run", "Look and ask", "Check and prove"


class _Commands(TyperGroup):
    """Shows errors that name a mistake as sentences; anything else is a fault of ours, shown whole."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - as typer has it
        try:
            return super().invoke(ctx)
        except MeshError as error:
            terminal.show_error(error)
            raise typer.Exit(1) from None

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 - as typer has it
        del ctx
        return list(self.commands)


def _examples(*commands: str) -> str:
    # Help joins lines and keeps paragraphs; brackets would be read as markup.
    return "\n\n".join(["Examples:", *(f"  {command}".replace("[", r"\[") for command in commands)])


app = typer.Typer(
    name="mesh",
    cls=_Commands,
    help="A data mesh: changes of operational databases, captured exactly once into data products.",
    epilog=_examples("mesh up", "mesh status", "mesh sql 'select count(*) from sales.orders'"),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Name = Annotated[
    str,
    typer.Argument(
        metavar="PRODUCT",
        help="domain.product, or domain.product.table.",
        autocompletion=completion.names,
        show_default=False,
    ),
]


def _settings() -> Settings:
    from pydantic import ValidationError

    from mesh_assets.errors import SettingError
    from mesh_assets.settings import Settings

    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(f"MESH_{one['loc'][0]}".upper() + f": {one['msg']}" for one in error.errors())
        raise SettingError(f"a setting is wrong: {wrong}") from None


def _mesh() -> Mesh:
    from mesh_assets.product import Mesh

    return Mesh(_settings())


# -- run ------------------------------------------------------------------------------------------


@app.command(
    rich_help_panel=_RUN,
    epilog=_examples("mesh up", "mesh up --for 60", "mesh up --rate 50 --port 3333"),
)
def up(
    seconds: Annotated[
        float | None,
        typer.Option(
            "--for", metavar="SECONDS", min=0, help="Stop by itself after so long.", show_default=False
        ),
    ] = None,
    rate: Annotated[
        float, typer.Option(metavar="TPS", min=0, help="Transactions per second of each sample application.")
    ] = 5.0,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Where Dagster's pages are, if it is free.", show_default="3000"),
    ] = None,
) -> None:
    """Start everything and show it until Ctrl-C.

    Databases, sample applications, Dagster. The data stays for the next time. With --for the exit
    code is 0 only if everything worked.
    """
    from mesh_assets.cli import installation

    settings = _settings()
    if port is not None:
        settings = settings.model_copy(update={"port": port})
    raise typer.Exit(installation.up(settings, seconds, rate))


@app.command(rich_help_panel=_RUN, epilog=_examples("mesh down"))
def down(as_json: AsJson = False) -> None:
    """Stop the running mesh; the data stays."""
    from mesh_assets.cli import installation

    installation.down(_settings(), as_json=as_json)


@app.command(rich_help_panel=_RUN, epilog=_examples("mesh reset", "mesh reset --yes"))
def reset(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False, as_json: AsJson = False
) -> None:
    """Remove all data of this installation: databases, lake, Dagster's history."""
    from mesh_assets.cli import installation

    installation.reset(_settings(), confirmed=yes, as_json=as_json)


@app.command(
    rich_help_panel=_RUN,
    epilog=_examples("mesh shift sales", "mesh shift sales --source app --idle-seconds 2"),
)
def shift(
    domain: Annotated[
        str, typer.Argument(help="Whose source.", autocompletion=completion.domains, show_default=False)
    ],
    source: Annotated[
        str | None, typer.Option(help="Which source, if the domain has several.", show_default=False)
    ] = None,
    idle_seconds: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="End after so long without a change.")
    ] = 5.0,
    max_seconds: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="End after so long.")] = 900.0,
    as_json: AsJson = False,
) -> None:
    """Capture one source here and now, without Dagster.

    For platform teams and for looking at problems. Only one shift of a source runs at a time.
    Ctrl-C ends it between two batches.
    """
    from mesh_assets.cli import shift as command
    from mesh_assets.report import Budget

    budget = Budget(max_seconds=max_seconds, idle_seconds=idle_seconds)
    raise typer.Exit(command.run(_mesh(), domain, source, budget, as_json=as_json))


# -- look and ask ---------------------------------------------------------------------------------


@app.command(rich_help_panel=_LOOK, epilog=_examples("mesh status", "mesh status --json"))
def status(as_json: AsJson = False) -> None:
    """Show how everything stands, whether the mesh runs or not.

    Per source the shift, the lag, positions and retained WAL; per product its version, rows,
    changes and freshness; parked tables and gaps.
    """
    from mesh_assets.cli import status as command

    command.show(_mesh(), as_json=as_json)


@app.command(rich_help_panel=_LOOK, epilog=_examples("mesh products"))
def products(as_json: AsJson = False) -> None:
    """List all products."""
    from mesh_assets.cli import product

    product.listing(_mesh(), as_json=as_json)


@app.command(
    rich_help_panel=_LOOK, epilog=_examples("mesh show sales.orders", "mesh show sales.orders.order_lines")
)
def show(name: Name, as_json: AsJson = False) -> None:
    """Show a product: contract, columns, owners, promises, newest version, where it lies."""
    from mesh_assets.cli import product

    product.show(_mesh(), name, as_json=as_json)


@app.command(
    rich_help_panel=_LOOK,
    epilog=_examples(
        "mesh sql 'select status, count(*) from sales.orders group by all'",
        "mesh sql 'from sales.orders limit 5' --version 12",
        "mesh sql 'from sales.orders' --as-of '2026-03-01T12:00:00+01:00' --output orders.parquet",
    ),
)
def sql(
    statement: Annotated[
        str,
        typer.Argument(
            help="One SELECT; products are domain.product or domain.product.table.", show_default=False
        ),
    ],
    as_of: Annotated[
        str | None,
        typer.Option(
            metavar="TIME|VERSION|LSN",
            help="Read as it was: a moment in ISO 8601 (UTC without a zone), a version, a position.",
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Read this product version.", show_default=False)
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="table|csv|json|parquet",
            help="How to write the rows; by default as the file's name says, else a table.",
            autocompletion=lambda: ["table", "csv", "json", "parquet"],
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write to a file.", show_default=False)
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Most rows in a table; 0 for all. By default 50 on a terminal, else all.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask products in SQL (DuckDB's), now or as of any moment since the first capture."""
    if as_of is not None and version is not None:
        raise typer.BadParameter("give --as-of or --version, not both")
    if as_json and form not in (None, "json"):
        raise typer.BadParameter("give --json or --format, not both")
    from mesh_assets.cli import query

    wanted = "json" if as_json else form
    if wanted is not None and wanted not in list(query.Format):
        raise typer.BadParameter(f"{wanted!r} is not one of {', '.join(query.Format)}", param_hint="--format")
    chosen = query.Format(wanted) if wanted else query.format_of(output)
    query.run(_mesh(), statement, as_of if version is None else version, chosen, output, rows)


@app.command(
    rich_help_panel=_LOOK,
    epilog=_examples(
        "mesh changes sales.orders --key 42",
        "mesh changes sales.orders.order_lines --key order_id=42,line_number=1 --all",
    ),
)
def changes(
    name: Name,
    key: Annotated[
        list[str],
        typer.Option(
            metavar="VALUE|COLUMN=VALUE,…",
            help="The key; for several columns column=value, with commas or --key again.",
            show_default=False,
        ),
    ],
    all_columns: Annotated[
        bool, typer.Option("--all", help="Show also columns that did not change.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show every change of one key: when, by which transaction, before and after."""
    from mesh_assets.cli import key as command

    raise typer.Exit(command.show(_mesh(), name, key, all_columns=all_columns, as_json=as_json))


@app.command(rich_help_panel=_LOOK, epilog=_examples("mesh version"))
def version(as_json: AsJson = False) -> None:
    """Print the versions of this program and of what it is made of."""
    from mesh_assets.cli import installation

    installation.version(as_json=as_json)


# -- check and prove ------------------------------------------------------------------------------


@app.command(
    rich_help_panel=_PROVE, epilog=_examples("mesh parity", "mesh parity sales finance.accounts --json")
)
def parity(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Domains, products or tables; all without one.",
            autocompletion=completion.selectors,
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare products with their sources, row by row, at one and the same position.

    Applications may go on writing meanwhile. Exit code 1 if a table differs; the first keys that
    differ are named.
    """
    from mesh_assets.cli import parity as command

    raise typer.Exit(command.compare(_mesh(), names or [], as_json=as_json))


@app.command(
    rich_help_panel=_PROVE,
    epilog=_examples(
        "mesh validate", "mesh validate products/sales/orders", "mesh validate --offline --json"
    ),
)
def validate(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH]...",
            help="Products folder, domain, product or contract file; all products without one.",
            show_default=False,
        ),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the sources.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check contracts and definitions, also against the live tables of sources that can be reached.

    Prints every mistake with file and line. Exit code 1 if there is one.
    """
    from mesh_assets.cli import validation

    raise typer.Exit(validation.validate(_settings(), paths or [], offline=offline, as_json=as_json))
