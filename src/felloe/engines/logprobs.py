"""Log probabilities: from llama.cpp's shape to OpenAI's two shapes."""

from collections.abc import Sequence

import msgspec
from msgspec import Struct


class Candidate(Struct):
    """One token that could have come here."""

    token: str
    logprob: float
    bytes: list[int] = []


class Probability(Struct):
    """The token that came, and the best candidates."""

    token: str
    logprob: float
    bytes: list[int] = []
    top_logprobs: list[Candidate] = []


def chat_logprobs(entries: Sequence[Probability], top: int) -> bytes:
    """The `logprobs` object of a chat choice, as JSON."""
    content = [
        {
            "token": entry.token,
            "logprob": entry.logprob,
            "bytes": entry.bytes,
            "top_logprobs": entry.top_logprobs[:top],
        }
        for entry in entries
    ]
    return msgspec.json.encode({"content": content, "refusal": None})


def completion_logprobs(entries: Sequence[Probability], top: int, offset: int) -> bytes:
    """The `logprobs` object of a text completion choice, as JSON; `offset` is where the text begins, in characters."""
    offsets: list[int] = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry.token)
    best = [{each.token: each.logprob for each in entry.top_logprobs[:top]} for entry in entries]
    return msgspec.json.encode(
        {
            "tokens": [entry.token for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": best if top else None,
            "text_offset": offsets,
        }
    )
