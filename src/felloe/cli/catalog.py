"""`felloe catalog list|show|log`"""

from typing import Annotated

import typer

from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption, moment, print_json, print_table, say, size, warn
from felloe.console.catalog_messages import CatalogEntry, CatalogRow, CatalogView, DecisionRow
from felloe.console.messages import NameRequest

app = typer.Typer(help="Which models the network may load, and who said so.", no_args_is_help=True)
_MOST_TEXT_LINES = 20


@app.command("list")
def list_catalog(json: JsonOption = False) -> None:
    """List what is approved, what waits and for whom, what was withdrawn."""
    view = OperatorClient().ask("/catalog", CatalogView)
    if json:
        print_json(view)
        return
    print_table(
        ["MODEL", "CONTENT", "SIZE", "QUANT", "PULLED BY", "SINCE", "STANDING"],
        [
            [
                row.name,
                row.content[:12],
                size(row.size) if row.size else "-",
                row.quantisation or "-",
                row.made_by or "-",
                moment(row.at) if row.at else "-",
                standing(row),
            ]
            for row in view.rows
        ],
    )
    for note in view.notes:
        warn(note)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="The model's name, or the beginning of its content id.")],
    json: JsonOption = False,
) -> None:
    """Show what a published model is: files, source, licence, template."""
    entry = OperatorClient().tell("/catalog/show", NameRequest(name), CatalogEntry)
    if json:
        print_json(entry)
        return
    row = entry.row
    lines = [
        ("name", row.name),
        ("content", row.content),
        ("standing", standing(row)),
        ("pulled by", f"{row.made_by}, {moment(entry.made_at)}"),
        ("from", " ".join(filter(None, (entry.source, entry.revision))) or "-"),
        ("architecture", " ".join(filter(None, (row.architecture, row.quantisation))) or "-"),
        ("context", str(entry.context or "-")),
        ("can", ", ".join(entry.capabilities) or "-"),
    ]
    for label, text in lines:
        say(f"{label:<13} {text}")
    for file in entry.files:
        say(f"{'file':<13} {file.path}  {size(file.size)}  {file.role}  {file.digest}")
    for label, text in (("licence", entry.licence), ("template", entry.template)):
        _say_text(label, text)


@app.command("log")
def log(json: JsonOption = False) -> None:
    """Show every decision of the curators, the newest last."""
    rows = OperatorClient().ask("/catalog/log", list[DecisionRow])
    if json:
        print_json(rows)
        return
    print_table(
        ["WHEN", "CURATOR", "DECIDED", "ABOUT", "CONTENT", "REASON"],
        [
            [
                moment(row.at),
                row.curator,
                row.verdict.replace("_", " "),
                row.about,
                row.content[:12] or "-",
                row.reason or "-",
            ]
            for row in rows
        ],
    )


def standing(row: CatalogRow) -> str:
    """`approved by anna`, `waiting 1 of 2 (bob, eve)`, `withdrawn: why`."""
    if row.standing == "approved":
        leaving = f"; {', '.join(row.rejected_by)}: withdraw" if row.rejected_by else ""
        return f"approved by {', '.join(row.approved_by)}{leaving}"
    if row.standing == "waiting":
        missing = f" ({', '.join(row.waits_for)})" if row.waits_for else ""
        return f"waiting {len(row.approved_by)} of {row.wanted}{missing}"
    if row.standing == "rejected" and not row.reason:
        return f"rejected by {', '.join(row.rejected_by)}"
    return f"{row.standing}: {row.reason}" if row.reason else row.standing


def _say_text(label: str, text: str) -> None:
    """The beginning of a text that may be long; the whole is in the JSON."""
    printable = ["".join(each if each.isprintable() else "?" for each in line) for line in text.strip().splitlines()]
    for line in printable[:_MOST_TEXT_LINES]:
        say(f"{label:<13} {line}")
        label = ""
    if len(printable) > _MOST_TEXT_LINES:
        say(f"{label:<13} ... {len(printable) - _MOST_TEXT_LINES} more lines with --json")
