"""What a run tells while it works, as lines for people or as JSON events for programs."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Stage:
    """A stage of the run begins; `detail` says with what."""

    name: str
    detail: str


@dataclass(frozen=True)
class Progress:
    """Training has come to `step`; `loss` is that batch's, in nats a token."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    remaining_seconds: float


@dataclass(frozen=True)
class Finished:
    """The run's files are complete; `figures` is what figures.json holds."""

    model_file: str
    figures: dict[str, object]


Event = Stage | Progress | Finished
Report = Callable[[Event], None]


def print_lines(event: Event) -> None:
    """Print an event as one readable line."""
    match event:
        case Stage():
            line = f"{event.name}: {event.detail}"
        case Progress():
            line = (
                f"step {event.step}/{event.steps}  loss {event.loss:.3f}  "
                f"{event.tokens_per_second:,.0f} tokens/s  {_clock(event.remaining_seconds)} left"
            )
        case Finished():
            line = f"wrote {event.model_file}: held-out perplexity {event.figures['held_out_perplexity']}"
    print(line, flush=True)


def print_json(event: Event) -> None:
    """Print an event as one JSON object whose `event` is stage, progress or finished."""
    print(json.dumps({"event": type(event).__name__.lower(), **asdict(event)}), flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
