"""What people read: sizes, lengths of time, exit codes, help."""

import pytest
from typer.testing import CliRunner

from felloe.cli.invite import seconds_of
from felloe.cli.main import create_app
from felloe.cli.output import exit_code, moment, size
from felloe.domain.errors import CATALOGUE, FelloeError


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (4_000_000, "4.0 MB"), (12_900_000_000, "12.9 GB")]
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("30m", 1800), ("2h", 7200), ("7d", 604_800), ("0", 0)])
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "2 weeks", "soon"])
def test_other_words_are_no_length_of_time(text: str) -> None:
    with pytest.raises(FelloeError, match="no length of time"):
        seconds_of(text)


def test_zero_is_never() -> None:
    assert moment(0) == "never"


def test_exit_codes_tell_the_kinds_apart() -> None:
    codes = {code: exit_code(FelloeError(code, "")) for code in CATALOGUE}
    assert codes["not_running"] == 3
    assert codes["bad_token"] == codes["wrong_network"] == 4
    assert codes["port_taken"] == 1


def test_every_command_explains_itself() -> None:
    app = create_app()
    runner = CliRunner()
    assert runner.invoke(app, ["--help"]).exit_code == 0
    for command in app.registered_commands:
        assert command.name is not None
        shown = runner.invoke(app, [command.name, "--help"])
        assert shown.exit_code == 0
        assert command.callback is not None
        assert command.callback.__doc__
    for group in app.registered_groups:
        assert group.name is not None
        assert runner.invoke(app, [group.name, "--help"]).exit_code == 0
