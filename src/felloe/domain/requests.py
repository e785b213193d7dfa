"""What is asked, what comes back piece by piece, and where a broken answer goes on.

An answer is always a stream of `Piece`s closed by one `Done`. Frames are rendered once, by the engine that answers, as
the server-sent events that an OpenAI client reads; every other hop passes their bytes on. The request carries the
answer's `id` and `created`, so two replicas render the same answer to the same bytes.
"""

from typing import Any, Literal

from msgspec import Struct

from felloe.domain.ids import ModelName, RequestId

Kind = Literal["chat", "completion", "embedding"]
Reach = Literal["device", "network", "market"]


class TokenResume(Struct, frozen=True, tag="tokens", array_like=True):
    """Continue after these token ids: the prompt is rendered again and the ids are appended to it."""

    ids: tuple[int, ...]


class ReplayResume(Struct, frozen=True, tag="replay", array_like=True):
    """Answer again from the start and skip what was delivered, if it is the same.

    `length` counts the bytes of all frames delivered, `digest` is their BLAKE2b-256. A replica whose first `length`
    bytes differ fails with `resume_diverged`: nothing is ever delivered twice or spliced.
    """

    length: int
    digest: bytes


class InferenceRequest(Struct, frozen=True, kw_only=True):
    """One choice of one answer, as it travels to the replica.

    `body` is the checked OpenAI body, less what the gateway itself carries out (`model`, `n`, `stream`,
    `stream_options`). `created` is in Unix seconds, `deadline` in seconds from now. For `chat` the body holds
    `messages`; for `completion` a single `prompt` (text or token ids); for `embedding` an `input` list. `wait` is how
    many seconds the asking node waits for a model that is being loaded, None: as it is configured; no other node is
    told.
    """

    id: RequestId
    kind: Kind
    model: ModelName
    body: dict[str, Any]
    created: int
    deadline: float
    index: int = 0
    reach: Reach = "network"
    resume: TokenResume | ReplayResume | None = None
    wait: float | None = None


class Usage(Struct, frozen=True, array_like=True):
    """Tokens of one choice. `completion` counts over all replicas that took part in the answer."""

    prompt: int
    completion: int = 0
    cached: int = 0


class Piece(Struct, tag="p", array_like=True, gc=False):
    """The next part of an answer.

    `frames` holds whole server-sent events (`data: {...}\\n\\n`, no `[DONE]`), rendered for the request's `id`,
    `created`, `model` and `index`; for an embedding request it is the JSON body. `ids` are the token ids that produced
    exactly this text, empty when the engine cannot tell them: such an answer resumes by replay. `number` is how many
    tokens (or events, without ids) the answer holds after this piece, counted over all replicas.
    """

    number: int
    ids: tuple[int, ...]
    frames: bytes


class Done(Struct, tag="d", array_like=True, frozen=True):
    """The answer is complete; the frame with the finish reason has been delivered."""

    usage: Usage
    finish_reason: str


class Failure(Struct, tag="f", array_like=True, frozen=True):
    """The answer failed on the answering node; `code` is from the error catalogue."""

    code: str
    detail: str
    param: str | None = None
    retry_after: float | None = None


Part = Piece | Done
"""What an answer is made of, where it crosses a wire."""
