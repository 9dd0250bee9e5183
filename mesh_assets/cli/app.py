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

Node = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="domain.product[.table][.column].",
        autocompletion=completion.nodes,
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
    code is 0 only if everything worked; what is on its way then is waited for, a minute at most.
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
    from mesh_assets.shift.report import Budget

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
    rich_help_panel=_LOOK,
    epilog=_examples(
        "mesh show sales.orders",
        "mesh show sales.orders.order_lines",
        "mesh show sales.orders.orders --event-schema",
    ),
)
def show(
    name: Name,
    event_schema: Annotated[
        bool, typer.Option("--event-schema", help="Print the JSON Schema of its change events instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a product: contract, columns, owners, promises, newest version, where it lies."""
    from mesh_assets.cli import product

    if event_schema:
        product.show_event_schema(_mesh(), name)
    else:
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
    as_of: Annotated[
        str | None,
        typer.Option(metavar="MOMENT|VERSION|LSN", help="Only the changes up to then.", show_default=False),
    ] = None,
    all_columns: Annotated[
        bool, typer.Option("--all", help="Show also columns that did not change.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show every change of one key: when, by which transaction, before and after."""
    from mesh_assets.cli import key as command

    raise typer.Exit(command.show(_mesh(), name, key, as_of, all_columns=all_columns, as_json=as_json))


@app.command(
    rich_help_panel=_LOOK,
    epilog=_examples(
        "mesh lineage sales.customer_360",
        "mesh lineage sales.orders --column amount --downstream",
        "mesh lineage sales.customer_360 --upstream --as-of '2026-03-01T12:00:00+01:00'",
        "mesh lineage sales.customer_360 --runs",
    ),
)
def lineage(
    name: Node,
    column: Annotated[
        str | None, typer.Option("--column", "-c", help="Only this column.", show_default=False)
    ] = None,
    upstream: Annotated[bool, typer.Option("--upstream", "-u", help="Only what it is made of.")] = False,
    downstream: Annotated[bool, typer.Option("--downstream", "-d", help="Only what reads it.")] = False,
    as_of: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="As it was at a moment in ISO 8601.", show_default=False),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many steps to go.", show_default="all")
    ] = None,
    runs: Annotated[
        bool, typer.Option("--runs", help="Show product versions and the runs that made them.")
    ] = False,
    version: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="With --runs: of this version.", show_default="the newest"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a product, table or column is made of, and what is made of it.

    From contracts and from the lineage that every run leaves behind; now, or as of any moment.
    """
    if version is not None and not runs:
        raise typer.BadParameter("--version goes with --runs")
    if column is not None and runs:
        raise typer.BadParameter("give --column or --runs, not both")
    from mesh_assets.catalog.graph import Direction
    from mesh_assets.cli import lineage as command

    both: tuple[Direction, ...] = ("upstream", "downstream")
    chosen = tuple(one for one, wanted in zip(both, (upstream, downstream), strict=True) if wanted) or both
    if runs:
        command.versions(_mesh(), name, version, chosen, as_of, as_json=as_json)
    else:
        command.lineage(_mesh(), name, column, chosen, as_of, depth, as_json=as_json)


@app.command(
    rich_help_panel=_LOOK,
    epilog=_examples("mesh impact sales.orders.amount", "mesh impact sales.orders --json"),
)
def impact(
    name: Node,
    as_of: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="As it was at a moment in ISO 8601.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show whom a change of a table or column concerns: what it reaches, how, and whom to ask."""
    from mesh_assets.cli import lineage as command

    command.impact(_mesh(), name, as_of, as_json=as_json)


@app.command(
    rich_help_panel=_LOOK,
    epilog=_examples(
        "mesh search customer",
        "mesh search delivery date --only kind=column --only domain=sales",
        "mesh search --only classification=restricted --json",
    ),
)
def search(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WORD]...",
            help="Words, or how they begin; all that there is without one.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="FACET=VALUE",
            help="Only what has this kind, domain, product, owner, classification, tag or status.",
            autocompletion=completion.facets,
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Most hits.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Search products, tables, columns and the change history; best first.

    Exit code 1 if nothing was found.
    """
    from mesh_assets.cli import search as command

    filters = command.parse_filters(only or [])
    raise typer.Exit(command.search(_mesh(), words or [], filters, limit, as_json=as_json))


@app.command(
    rich_help_panel=_PROVE,
    epilog=_examples(
        "mesh rebuild sales.customer_360 --dry-run",
        "mesh rebuild sales.customer_360",
        "mesh rebuild sales.orders",
    ),
)
def rebuild(
    name: Annotated[
        str,
        typer.Argument(
            metavar="PRODUCT",
            help="domain.product.",
            autocompletion=completion.names,
            show_default=False,
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what differs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a product anew from the logs, show what differs from what stands, and swap it at once.

    A captured product is folded anew from its own log, a derived one recomputed from its inputs' logs.
    With --dry-run exit code 1 if something differs.
    """
    from mesh_assets.cli import rebuild as command

    raise typer.Exit(command.run(_mesh(), name, dry_run=dry_run, as_json=as_json))


@app.command(rich_help_panel=_LOOK, epilog=_examples("mesh version"))
def version(as_json: AsJson = False) -> None:
    """Print the versions of this program and of what it is made of."""
    from mesh_assets.cli import installation

    installation.version(as_json=as_json)


class _Quarantine(TyperGroup):
    """Lists if no command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - as typer has it
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


quarantine = typer.Typer(
    cls=_Quarantine,
    help="Show and release changes that fail a blocking rule and are kept out of current.",
    epilog=_examples(
        "mesh quarantine", "mesh quarantine finance.accounts --json", "mesh quarantine replay sales.orders"
    ),
    rich_markup_mode="rich",
)
app.add_typer(quarantine, name="quarantine", rich_help_panel=_PROVE)


@quarantine.command(
    "list", epilog=_examples("mesh quarantine list", "mesh quarantine list sales.orders.order_lines --json")
)
def quarantine_list(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Domains, products or tables; all without one.",
            autocompletion=completion.selectors,
            show_default=False,
        ),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=0, metavar="N", help="Most keys of a table, oldest first; 0 for all.")
    ] = 100,
    as_json: AsJson = False,
) -> None:
    """List what is in quarantine: key, rule, reason, row, position (this is what no command means)."""
    from mesh_assets.cli import quarantine as command

    raise typer.Exit(command.listing(_mesh(), names or [], most=rows, as_json=as_json))


@quarantine.command("replay", epilog=_examples("mesh quarantine replay sales.orders"))
def quarantine_replay(
    name: Name,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="How long to wait for the shift that runs.")
    ] = 120.0,
    as_json: AsJson = False,
) -> None:
    """Judge what is in quarantine once more, after its rule or contract was mended.

    What passes by now is released with its original position; it never overrides what came later.
    Exit code 1 if something still fails.
    """
    from mesh_assets.cli import quarantine as command

    raise typer.Exit(command.release(_mesh(), name, timeout_seconds=timeout, as_json=as_json))


# -- check and prove ------------------------------------------------------------------------------


@app.command(
    rich_help_panel=_PROVE,
    epilog=_examples("mesh check", "mesh check sales.orders --docs", "mesh check finance --json"),
)
def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Domains or products; all without one.",
            autocompletion=completion.selectors,
            show_default=False,
        ),
    ] = None,
    docs: Annotated[
        bool, typer.Option("--docs", help="Build Great Expectations' Data Docs of the outcomes, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate the quality rules of products on their newest version, and keep the outcomes.

    Shifts do the same now and then. Exit code 1 if a rule of severity error fails.
    """
    from mesh_assets.cli import check as command

    raise typer.Exit(command.run(_mesh(), names or [], docs=docs, as_json=as_json))


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
        "mesh validate",
        "mesh validate products/sales/orders",
        "mesh validate --against origin/main",
        "mesh validate --offline --json",
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
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="FOLDER|REVISION",
            help="Compare with this products folder or git revision, in place of what was released.",
            show_default=False,
        ),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the sources.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check contracts, definitions and transforms, also against live sources and released contracts.

    Prints every mistake with file and line, and whom it concerns. Exit code 1 if there is one.
    """
    from mesh_assets.cli import validation

    found = validation.validate(_settings(), paths or [], against=against, offline=offline, as_json=as_json)
    raise typer.Exit(found)


@app.command(
    rich_help_panel=_PROVE,
    epilog=_examples(
        "mesh keep sales.orders",
        "mesh keep sales.customer_360 --from origin/main --until 2030-12-31",
        "mesh keep sales.orders --json",
    ),
)
def keep(
    name: Annotated[str, typer.Argument(help="domain.product", autocompletion=completion.names)],
    state: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FOLDER|REVISION",
            help="Take the old version from this products folder or git revision.",
            show_default=False,
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="DAY", help="Its last day of support.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Keep the major version that a product is at, beside the next one, for those who read it.

    Writes the folder of a product of its own, such as sales.orders_v1. Do it before the contract
    changes, or name the state with --from.
    """
    from mesh_assets.cli import keeping

    keeping.keep(_settings(), name, state=state, until=until, as_json=as_json)
