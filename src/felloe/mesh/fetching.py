"""Pieces of a node's models over the messages of the mesh: for nodes that nobody can dial.

Such a node has dialled a hub itself, so it is asked on `node.<id>.fetch` and answers over that line. A question names a
path as the transfer port does (docs/transfer.md) and a span of at most 256 KiB; few are under way at a time, because
prompts and tokens travel the same line.
"""

from collections.abc import Awaitable, Callable

import msgspec

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.mesh.connection import Connection
from felloe.mesh.permissions import fetch
from felloe.mesh.services import Services, ask_subject

PIECE_BYTES = 256 * 1024
LONGEST_PATH = 256
_AT_WORK = 16
_PER_ASKER = 4
_ANSWER_SECONDS = 15.0


class FetchQuestion(msgspec.Struct, array_like=True, frozen=True):
    """Ask for `length` bytes (1 to 256 KiB) of `path` from `start` on; at the end there may be fewer."""

    path: str
    start: int
    length: int


class FetchAnswer(msgspec.Struct, array_like=True, frozen=True):
    """A piece of a path whose whole length is `size` bytes."""

    size: int
    piece: bytes


class FetchServer:
    """A node's side: every member may ask, at most 16 questions are at work, 4 of them for one asker."""

    def __init__(self, connection: Connection) -> None:
        self._services = Services(
            connection, lambda _: fetch(connection.node), most_at_work=_AT_WORK, most_per_asker=_PER_ASKER
        )

    async def serve(self, read: Callable[[FetchQuestion], Awaitable[FetchAnswer]]) -> None:
        """Answer with `read`, which gets questions of the right shape and size."""

        async def answer(question: FetchQuestion) -> FetchAnswer:
            if len(question.path) > LONGEST_PATH or question.start < 0 or not 1 <= question.length <= PIECE_BYTES:
                raise FelloeError("invalid_value", "there is no such piece")
            return await read(question)

        await self._services.serve("fetch", FetchQuestion, answer)

    async def close(self) -> None:
        """Stop answering."""
        await self._services.close()


async def fetch_piece(connection: Connection, node: NodeId, question: FetchQuestion) -> FetchAnswer:
    """One piece from `node`.

    Raises what the node answered, `network_unreachable` when it or the hub is not there, `deadline_exceeded`,
    `internal` for an answer that is none, `source_failed` for one with more bytes than were asked for.
    """
    answer = await ask_subject(connection, fetch(node), question, FetchAnswer, _ANSWER_SECONDS)
    if len(answer.piece) > question.length or question.start + len(answer.piece) > answer.size:
        raise FelloeError("source_failed", f"the piece from {node} is longer than asked for")
    return answer
