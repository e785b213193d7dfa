"""How results look: tables for people, JSON for programs, errors with their next step."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from felloe.console.messages import Progress, PullRow
from felloe.domain.errors import FelloeError

EXIT_FAILED = 1
EXIT_NOT_RUNNING = 3
EXIT_REFUSED = 4
EXIT_INTERRUPTED = 130
_REFUSALS = frozenset(
    {
        "forbidden",
        "wrong_node",
        "token_refused",
        "wrong_network",
        "bad_token",
        "bad_passphrase",
        "invalid_api_key",
        "version_refused",
        "not_approved",
        "model_withdrawn",
        "catalog_expired",
        "not_curator",
        "source_refused",
        "address_refused",
    }
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def exit_code(error: FelloeError) -> int:
    """The documented exit code of an error."""
    if error.code == "not_running":
        return EXIT_NOT_RUNNING
    return EXIT_REFUSED if error.code in _REFUSALS else EXIT_FAILED


def complain(error: FelloeError) -> None:
    """One line for what went wrong, one for what to do, on standard error."""
    console = Console(stderr=True, highlight=False)
    console.print(Text("error: ", style="bold red") + Text(f"{error.detail} ({error.code})"), soft_wrap=True)
    console.print(Text(f"       {error.spec.next_step}"), soft_wrap=True)


def print_json(value: object) -> None:
    """Indented JSON on standard output."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def say(text: str) -> None:
    """One line on standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """One line on standard error that a person should heed."""
    console = Console(stderr=True, highlight=False)
    console.print(Text("note: ", style="bold yellow") + Text(text), soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A plain table without lines, that a pipe can read as well. Values are text, never markup."""
    result = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        result.add_column(column, overflow="fold")
    for row in rows:
        result.add_row(*(Text(cell) for cell in row))
    return result


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print `table(...)` on standard output."""
    Console(highlight=False).print(table(columns, rows))


def size(count: int) -> str:
    """Bytes for people: `4.0 MB`, `12.9 GB` (powers of 1000, as disks and cards are sold)."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{int(value)} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def speed(step: Progress | PullRow) -> str:
    """`12.3 MB/s, 1:05 left`, or why nothing comes."""
    if step.note or not step.rate:
        return step.note
    return f"{size(int(step.rate))}/s, {time_left(step.eta)}"


def time_left(eta: float) -> str:
    """`1:05 left`, `2:00:07 left`; `eta` in seconds."""
    left = int(eta)
    hours, minutes, seconds = left // 3600, left % 3600 // 60, left % 60
    return (f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}") + " left"


def moment(seconds: float) -> str:
    """A Unix time in the reader's own zone; 0 reads `never`."""
    if not seconds:
        return "never"
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
