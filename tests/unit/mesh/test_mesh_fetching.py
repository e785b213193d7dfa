"""Pieces of models over the real message server."""

import asyncio

import pytest
from mesh_network import Member, Network

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.mesh.connection import Connection
from felloe.mesh.fetching import PIECE_BYTES, FetchAnswer, FetchQuestion, FetchServer, fetch_piece
from felloe.mesh.permissions import fetch
from waiting import until

CONTENT = bytes(range(256)) * 4096


async def read(question: FetchQuestion) -> FetchAnswer:
    if question.path != "/blobs/x":
        raise FelloeError("not_found", "there is no such path")
    return FetchAnswer(len(CONTENT), CONTENT[question.start : question.start + question.length])


async def serve(network: Network, member: Member) -> NodeId:
    line = await network.connect(member)
    server = FetchServer(line)
    await server.serve(read)
    await line.flush()
    network.closers.append(server.close)
    return member.id


async def asker(network: Network) -> Connection:
    return await network.connect(network.member())


async def test_any_member_reads_pieces_of_any_other(network: Network) -> None:
    node, line = await serve(network, network.member()), await asker(network)
    pieces = [
        await fetch_piece(line, node, FetchQuestion("/blobs/x", at, PIECE_BYTES))
        for at in range(0, len(CONTENT), PIECE_BYTES)
    ]
    assert b"".join(piece.piece for piece in pieces) == CONTENT
    assert {piece.size for piece in pieces} == {len(CONTENT)}


async def test_what_the_node_answers_is_told(network: Network) -> None:
    node, line = await serve(network, network.member()), await asker(network)
    with pytest.raises(FelloeError) as refused:
        await fetch_piece(line, node, FetchQuestion("/blobs/y", 0, 1))
    assert refused.value.code == "not_found"


@pytest.mark.parametrize(
    "question",
    [
        FetchQuestion("/blobs/x", -1, 1),
        FetchQuestion("/blobs/x", 0, 0),
        FetchQuestion("/blobs/x", 0, PIECE_BYTES + 1),
        FetchQuestion("/" * 1000, 0, 1),
    ],
)
async def test_questions_out_of_bounds_are_refused(network: Network, question: FetchQuestion) -> None:
    node, line = await serve(network, network.member()), await asker(network)
    with pytest.raises(FelloeError) as refused:
        await fetch_piece(line, node, question)
    assert refused.value.code == "invalid_value"


async def test_without_the_node_the_question_fails_at_once(network: Network) -> None:
    line = await asker(network)
    with pytest.raises(FelloeError) as refused:
        await fetch_piece(line, network.member().id, FetchQuestion("/blobs/x", 0, 1))
    assert refused.value.code == "network_unreachable"


async def test_more_than_was_asked_for_is_not_taken(network: Network) -> None:
    async def generous(question: FetchQuestion) -> FetchAnswer:
        return FetchAnswer(len(CONTENT), CONTENT[: question.length + 1])

    member = network.member()
    line = await network.connect(member)
    server = FetchServer(line)
    await server.serve(generous)
    await line.flush()
    network.closers.append(server.close)
    with pytest.raises(FelloeError) as refused:
        await fetch_piece(await asker(network), member.id, FetchQuestion("/blobs/x", 0, 100))
    assert refused.value.code == "source_failed"


async def test_one_asker_has_four_questions_at_work_and_others_are_served_meanwhile(network: Network) -> None:
    gate, at_work = asyncio.Event(), 0

    async def slow(question: FetchQuestion) -> FetchAnswer:
        nonlocal at_work
        at_work += 1
        if question.path == "/slow":
            await gate.wait()
        return FetchAnswer(1, b"x")

    member = network.member()
    line = await network.connect(member)
    server = FetchServer(line)
    await server.serve(slow)
    await line.flush()
    network.closers.append(server.close)
    greedy = await asker(network)
    held = [asyncio.create_task(fetch_piece(greedy, member.id, FetchQuestion("/slow", 0, 1))) for _ in range(4)]
    await until(lambda: at_work == 4)
    with pytest.raises(FelloeError) as refused:
        await fetch_piece(greedy, member.id, FetchQuestion("/slow", 0, 1))
    assert refused.value.code == "overloaded"
    assert (await fetch_piece(await asker(network), member.id, FetchQuestion("/fast", 0, 1))).piece == b"x"
    gate.set()
    assert len(await asyncio.gather(*held)) == 4


async def test_nobody_listens_to_what_others_are_asked(network: Network) -> None:
    """A spoke may ask anybody, and take questions for itself alone."""
    heard: list[bytes] = []
    spoke = await network.connect(network.member())
    victim = network.member()
    await spoke.subscribe(fetch(victim.id), lambda message: heard.append(message.data))
    node, line = await serve(network, victim), await asker(network)
    await fetch_piece(line, node, FetchQuestion("/blobs/x", 0, 1))
    await spoke.flush()
    assert heard == []
