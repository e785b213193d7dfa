import json
from pathlib import Path

import pytest

from felloe.learning.__main__ import main
from felloe.learning.progress import Finished, Progress, Stage, print_json, print_lines

PROGRESS = Progress(
    step=50, steps=200, loss=3.21, learning_rate=0.01, tokens_per_second=1500.0, remaining_seconds=125.4
)


def test_a_wrong_recipe_is_an_error_of_its_own_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent.toml")]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("steps", ["0", "-1", "many"])
def test_steps_must_be_a_positive_number(steps: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["recipe.toml", f"--steps={steps}"])
    assert "not a whole number of 1 or more" in capsys.readouterr().err


def test_a_line_of_progress_shows_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines(PROGRESS)
    assert capsys.readouterr().out == "step 50/200  loss 3.210  1,500 tokens/s  2:05 left\n"


def test_every_event_is_one_json_object_that_names_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for event in (Stage("corpus", "3 files"), PROGRESS, Finished("a.gguf", {"held_out_loss": 1.0})):
        print_json(event)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in printed] == ["stage", "progress", "finished"]
    assert printed[1]["tokens_per_second"] == 1500.0
