"""Restart, quarantine, reasons of a failed start, and what a log may hold."""

from pathlib import Path

import pytest

from felloe.engines.engine_log import EngineLog
from felloe.engines.rules import (
    Quarantine,
    Restart,
    RestartPolicy,
    after_crash,
    derived_seed,
    loggable,
    start_failure,
)

POLICY = RestartPolicy(first_delay=1.0, longest_delay=10.0, crashes_allowed=5, crash_window=100.0)


@pytest.mark.parametrize(("crashes", "delay"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 10.0)])
def test_the_delay_doubles_up_to_its_limit(crashes: int, delay: float) -> None:
    assert after_crash([10.0] * crashes, 10.0, POLICY, random=1.0) == Restart(delay)


def test_the_delay_is_spread_by_up_to_a_quarter() -> None:
    assert after_crash([10.0], 10.0, POLICY, random=0.0) == Restart(0.75)


def test_too_many_crashes_in_the_window_mean_quarantine() -> None:
    assert after_crash([10.0] * 6, 10.0, POLICY, random=0.5) == Quarantine(6)


def test_old_crashes_are_forgotten() -> None:
    assert after_crash([*[10.0] * 9, 500.0], 500.0, POLICY, random=1.0) == Restart(1.0)


def test_seeds_are_alike_everywhere_and_never_the_random_one() -> None:
    assert derived_seed("a", 0, 1) == derived_seed("a", 0, 1)
    assert len({derived_seed("a", index) for index in range(1000)}) == 1000
    assert all(0 <= derived_seed(index) < 0xFFFFFFFF for index in range(1000))


@pytest.mark.parametrize(
    ("line", "code", "part"),
    [
        (
            "0.00.010.195 E llama_model_load: error loading model: 'x' is corrupted",
            "bad_model_file",
            "corrupted",
        ),
        ("0.00.008.252 E gguf_init_from_reader: failed to read magic", "bad_model_file", "failed to read magic"),
        ("/w/llama-model.cpp:13: GGML_ASSERT(hparams.n_layer > 0) failed", "bad_model_file", "n_layer"),
        ("0.00.012.036 E cmn  common_init_: failed to load model '/secret/dir/m.gguf'", "bad_model_file", "m.gguf"),
        ("0.00.012.036 E ggml_backend: failed to allocate buffer", "out_of_memory", "allocate"),
        ("0.00.012.036 E srv start: couldn't bind HTTP server socket", "engine_start_failed", "couldn't bind"),
    ],
)
def test_a_failed_start_names_the_file_and_the_reason(line: str, code: str, part: str) -> None:
    error = start_failure("m.gguf", [line], 3)
    assert error.code == code
    assert error.detail.startswith("m.gguf: ")
    assert part in error.detail
    assert "/secret" not in error.detail


def test_want_of_memory_is_not_blamed_on_the_file() -> None:
    lines = ["E ggml: failed to allocate 99 bytes", "E cmn: failed to load model 'm.gguf'"]
    assert start_failure("m.gguf", lines, 3).code == "out_of_memory"


def test_a_death_by_signal_says_so() -> None:
    assert "signal 11" in start_failure("m.gguf", ["something"], -11).detail


def test_an_engine_that_is_killed_while_it_starts_was_short_of_memory() -> None:
    assert start_failure("m.gguf", ["something"], -9).code == "out_of_memory"


def test_before_the_first_prompt_every_line_is_kept() -> None:
    assert loggable("anything at all", ready=False) == "anything at all"


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("0.00.010.195 E ggml_cuda: out of memory", "0.00.010.195 E ggml_cuda: out of memory"),
        ("/w/x.cpp:12: GGML_ASSERT(n > 0) failed", "/w/x.cpp:12: GGML_ASSERT(n > 0) failed"),
        (
            "0.03.607.987 E srv    send_error: error: SECRET",
            "0.03.607.987 E srv    send_error: [left out: may quote a request]",
        ),
        ("a line of the prompt: SECRET", None),
        ("WARNING: pattern SECRET", None),
        ("", None),
    ],
)
def test_after_it_only_lines_of_known_origin_are_kept(line: str, kept: str | None) -> None:
    assert loggable(line, ready=True) == kept


def test_an_engines_log_is_bounded_and_private(tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "engine.log", limit=1000)
    for number in range(200):
        log.write(f"line {number:04}")
    log.write("x" * 100_000)
    log.close()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"engine.log", "engine.log.1"}
    assert sizes["engine.log.1"] <= 1000
    assert sizes["engine.log"] <= 2001
    assert (tmp_path / "engine.log").stat().st_mode & 0o077 == 0
