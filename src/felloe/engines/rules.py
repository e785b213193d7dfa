"""Decisions about engine processes: when to start again, when to give up, what went wrong, what a log may hold."""

import hashlib
import re
from collections.abc import Sequence

from msgspec import Struct

from felloe.domain.errors import FelloeError


class RestartPolicy(Struct, frozen=True, kw_only=True):
    """How patient a supervisor is; all times in seconds.

    `crashes_allowed` within `crash_window` are answered by a restart, one more by quarantine.
    """

    first_delay: float = 0.5
    longest_delay: float = 30.0
    crashes_allowed: int = 5
    crash_window: float = 300.0
    start_limit: float = 600.0
    probe_every: float = 5.0
    hung_after: float = 120.0


class Restart(Struct, frozen=True):
    """Start again after `delay` seconds."""

    delay: float


class Quarantine(Struct, frozen=True):
    """Do not start again until the owner loads the model anew."""

    crashes: int


def after_crash(crashes: Sequence[float], now: float, policy: RestartPolicy, random: float) -> Restart | Quarantine:
    """What to do after the newest crash; `crashes` are the times of all of them, `random` is in [0, 1).

    The delay doubles with every recent crash and is spread by up to a quarter, so that engines of one machine that
    died together do not load together.
    """
    recent = sum(1 for at in crashes if now - at <= policy.crash_window)
    if recent > policy.crashes_allowed:
        return Quarantine(recent)
    delay = min(policy.longest_delay, policy.first_delay * 2.0 ** (max(recent, 1) - 1))
    return Restart(delay * (0.75 + 0.25 * random))


def is_hung(last_answer: float, now: float, policy: RestartPolicy) -> bool:
    """Whether an engine that last answered a probe at `last_answer` must be taken for hung."""
    return now - last_answer > policy.hung_after


def derived_seed(*parts: str | int) -> int:
    """A 32-bit seed that every node derives alike; never llama.cpp's 'choose at random' value."""
    text = "\0".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big") % 0xFFFFFFFF


_OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate|unable to allocate|cannot allocate|bad_alloc|failed to create context", re.I
)
_BAD_FILE = re.compile(
    r"error loading model: (?!llama_model_loader: failed)|gguf_|invalid magic|corrupted|not within the file bounds"
    r"|failed to load model|unknown model architecture|mmap an empty file|chat_templates?_init: error"
    r"|llama-(?:model|vocab|hparams|arch)\S*: GGML_ASSERT",
    re.I,
)
_PREFIX = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} [A-Z] (?:\S+\s+){0,2}?\S+: ")
_PATH = re.compile(r"'?(?:/[^\s/']+)+/([^\s/']+)'?")


def start_failure(file_name: str, lines: Sequence[str], exit_code: int | None) -> FelloeError:
    """The error for an engine that ended before it was ready, from the lines of its log (no prompt came yet)."""
    for code, pattern in (("engine_start_failed", _OUT_OF_MEMORY), ("bad_model_file", _BAD_FILE)):
        line = next((line for line in lines if pattern.search(line)), None)
        if line is not None:
            place = "its chat template: " if "chat_template" in line else ""
            return FelloeError(code, f"{file_name}: {place}{_reason(line)}")
    if not lines:
        # llama.cpp says nothing at all about some headers that it cannot read.
        return FelloeError("bad_model_file", f"{file_name}: the engine could not read it and gave no reason")
    last = next((_reason(line) for line in reversed(lines) if line.strip()), "no reason in its log")
    ending = f"ended by signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
    return FelloeError("engine_start_failed", f"{file_name}: the engine did not start ({ending}): {last}")


def _reason(line: str) -> str:
    without_prefix = _PREFIX.sub("", line.strip())
    return _PATH.sub(r"\1", without_prefix)[:300]


_SAFE_AFTER_START = re.compile(
    r"^(?:\d+\.\d\d\.\d{3}\.\d{3} [A-Z] (?:ggml|llama|CUDA)|\S+:\d+: GGML_ASSERT\(|terminate called|CUDA error|ggml_)"
)
_SHAPE = re.compile(r"^(\d+\.\d\d\.\d{3}\.\d{3} [A-Z] [A-Za-z_ ]{1,40}):")


def loggable(line: str, ready: bool) -> str | None:
    """What of an engine's line may be kept: all of it before the first prompt, then only lines of known origin.

    Others may quote a request or an answer; of those only the place that wrote them is kept, or nothing.
    """
    if not ready or _SAFE_AFTER_START.match(line):
        return line
    shape = _SHAPE.match(line)
    return f"{shape.group(1)}: [left out: may quote a request]" if shape is not None else None
