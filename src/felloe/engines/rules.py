"""Decisions about engine processes: start again or give up, dead or busy, what went wrong, what a log may hold."""

import hashlib
import re
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from felloe.domain.errors import FelloeError


class RestartPolicy(Struct, frozen=True, kw_only=True):
    """How patient a supervisor is; all times in seconds, memory in bytes.

    `crashes_allowed` within `crash_window` are answered by a restart, one more by quarantine; `starts_allowed` starts
    in a row may fail. A child is looked at every `probe_every` seconds and has `probe_seconds` for each of two answers.
    It hangs when it was deaf for `deaf_after`, or when it has work and finished no batch for `hung_after`, which is
    longer than a request is allowed by default. A watcher that comes `late_after` too late was asleep itself and counts
    anew. A child leaks that grew beyond `memory_factor` times its size at the start and `memory_allowance`; its answers
    have `drain_limit` to end.
    """

    first_delay: float = 0.5
    longest_delay: float = 30.0
    crashes_allowed: int = 2
    crash_window: float = 600.0
    starts_allowed: int = 10
    start_limit: float = 600.0
    probe_every: float = 5.0
    probe_seconds: float = 2.0
    deaf_after: float = 20.0
    hung_after: float = 900.0
    late_after: float = 5.0
    memory_every: float = 30.0
    memory_factor: float = 2.0
    memory_allowance: int = 512 * 1024 * 1024
    drain_limit: float = 60.0


class Restart(Struct, frozen=True):
    """Start again after `delay` seconds."""

    delay: float


class Quarantine(Struct, frozen=True):
    """Do not start again until the owner loads the model anew; `times` is how often it failed."""

    times: int


def after_crash(crashes: Sequence[float], now: float, policy: RestartPolicy, random: float) -> Restart | Quarantine:
    """What to do after the newest crash; `crashes` are the times of all of them, `random` is in [0, 1)."""
    recent = sum(1 for at in crashes if now - at <= policy.crash_window)
    return Quarantine(recent) if recent > policy.crashes_allowed else Restart(_delay(recent, policy, random))


def after_failed_start(failures: int, code: str, policy: RestartPolicy, random: float) -> Restart | Quarantine:
    """What to do after `failures` starts in a row failed, the last with the error `code`.

    A damaged file will not mend itself; memory that another program holds may come free.
    """
    if code == "bad_model_file" or failures > policy.starts_allowed:
        return Quarantine(failures)
    return Restart(_delay(failures, policy, random))


def _delay(failures: int, policy: RestartPolicy, random: float) -> float:
    """It doubles with every failure and is spread by up to a quarter.

    So engines of one machine that died together do not load together.
    """
    delay = min(policy.longest_delay, policy.first_delay * 2.0 ** min(max(failures, 1) - 1, 64))
    return delay * (0.75 + 0.25 * random)


class Work(NamedTuple):
    """What a child says of its work: requests that it has, batches that it has finished since it started."""

    requests: int
    batches: int


_COUNT = re.compile(r"^llamacpp:(requests_processing|n_decode_total) (\d{1,18})(?:\.\d+)?$", re.M)


def read_work(metrics: bytes) -> Work | None:
    """From the child's /metrics; None when they do not tell."""
    found = dict(_COUNT.findall(metrics.decode(errors="replace")))
    if len(found) < 2:
        return None
    return Work(int(found["requests_processing"]), int(found["n_decode_total"]))


def stands_still(before: Work | None, now: Work | None) -> bool:
    """Whether a child with work has finished no batch between two looks."""
    return before is not None and now is not None and now.requests > 0 and now.batches == before.batches


class Signs(NamedTuple):
    """What one look at a child showed: whether anything came from it, and whether its work moves or it has none."""

    alive: bool
    decoding: bool


class Pulse(Struct, frozen=True):
    """For how many seconds a child gave no sign of life, and none of progress."""

    deaf_for: float = 0.0
    stuck_for: float = 0.0


def after_look(pulse: Pulse, elapsed: float, signs: Signs, policy: RestartPolicy) -> Pulse:
    """The pulse after a look that ended `elapsed` seconds after the one before it.

    A watcher that was late itself (the machine slept, this process was stopped) knows nothing about the time between.
    """
    if elapsed > policy.probe_every + 2 * policy.probe_seconds + policy.late_after:
        return Pulse()
    return Pulse(
        0.0 if signs.alive or signs.decoding else pulse.deaf_for + elapsed,
        0.0 if signs.decoding else pulse.stuck_for + elapsed,
    )


def hang(pulse: Pulse, policy: RestartPolicy) -> str | None:
    """Why the child must be taken for hung; None while it need not.

    A long prefill is no hang: meanwhile the process answers, and each of its batches counts as progress.
    """
    if pulse.deaf_for > policy.deaf_after:
        return f"it gave no sign of life for {pulse.deaf_for:.0f} s"
    if pulse.stuck_for > policy.hung_after:
        return f"it had work and finished no part of it for {pulse.stuck_for:.0f} s"
    return None


def memory_bound(at_start: int, limit: int, leaks: int, policy: RestartPolicy) -> int:
    """How many bytes a child may hold that held `at_start` when it was ready; the owner's `limit` comes first.

    After each restart for its size the bound doubles, four times at most: what grows so far and no further is no leak.
    """
    return limit or (int(policy.memory_factor * at_start) + policy.memory_allowance) << min(leaks, 2)


def must_shed(held: int, bound: int, idle: bool) -> bool:
    """Whether a child that holds so many bytes is started anew now: when idle at once, else when half as much over."""
    return held > (bound if idle else bound + bound // 2)


def death(exit_code: int | None) -> str:
    """How a process ended, in words."""
    if exit_code is None or exit_code >= 0:
        return f"it ended by itself with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = "unknown"
    hint = ", perhaps because memory was short" if name == "SIGKILL" else ""
    return f"it was killed by signal {-exit_code} ({name}){hint}"


def may_blame_request(exit_code: int | None) -> bool:
    """Whether an end by itself with this code may come from a request; who sends SIGKILL or SIGTERM stands outside."""
    return exit_code not in (-signal.SIGKILL, -signal.SIGTERM) if sys.platform != "win32" else True


def last_words(lines: Sequence[str]) -> str:
    """The last line of an engine's log that says something, as a part of a reason; else nothing."""
    last = next((_reason(line) for line in reversed(lines) if line.strip() and "[left out" not in line), "")
    return f"; its log ends: {last}" if last else ""


def quarantine_reason(name: str, crashes: int, window: float, last: str) -> str:
    """What to tell the owner of a model that killed its engine too often; `last` says when and how."""
    return f"the engine of {name} crashed {crashes} times within {window / 60:g} minutes, the last time {last}"


def derived_seed(*parts: str | int) -> int:
    """A 32-bit seed that every node derives alike; never llama.cpp's 'choose at random' value."""
    text = "\0".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big") % 0xFFFFFFFF


_SIGKILL = 9
_OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate|unable to allocate|cannot allocate|insufficient memory|bad_alloc", re.I
)
_NO_CONTEXT = re.compile(r"failed to create context", re.I)
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
    patterns = (
        ("out_of_memory", _OUT_OF_MEMORY),
        ("engine_start_failed", _NO_CONTEXT),
        ("bad_model_file", _BAD_FILE),
    )
    for code, pattern in patterns:
        line = next((line for line in lines if pattern.search(line)), None)
        if line is not None:
            place = "its chat template: " if "chat_template" in line else ""
            return FelloeError(code, f"{file_name}: {place}{_reason(line)}")
    if exit_code == -_SIGKILL:
        detail = f"{file_name}: it was killed while it started, as the system does when memory is short"
        return FelloeError("out_of_memory", detail)
    if not lines:
        # llama.cpp says nothing at all about some headers that it cannot read.
        return FelloeError("bad_model_file", f"{file_name}: the engine could not read it and gave no reason")
    last = next((_reason(line) for line in reversed(lines) if line.strip()), "no reason in its log")
    ending = f"ended by signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
    return FelloeError("engine_start_failed", f"{file_name}: the engine did not start ({ending}): {last}")


def _reason(line: str) -> str:
    without_prefix = _PREFIX.sub("", line.strip())
    return _PATH.sub(r"\1", without_prefix)[:300]


_INFORMATION = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} [DIW] ")
_PREFIXED = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} [A-Z] ")


def is_chatter(line: str, after_chatter: bool) -> bool:
    """Whether a line is no error, or goes on with such a line: not to be kept of an engine that starts."""
    if _PREFIXED.match(line):
        return _INFORMATION.match(line) is not None
    return after_chatter and _SAFE_AFTER_START.match(line) is None


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
