"""Reads what a model is from the front of its files, wherever they are: a few MB of a file of many GB."""

import asyncio
import ssl
from collections.abc import Mapping
from pathlib import Path

import httpx

from felloe.catalog.sources.file import open_file, plan_file
from felloe.catalog.sources.plan import RemoteFile
from felloe.catalog.sources.planning import address_rules, plan_reference
from felloe.catalog.sources.reference import FileReference, parse_reference
from felloe.catalog.sources.retry_rules import Interrupted
from felloe.catalog.sources.settings import Limits, SourceSettings
from felloe.catalog.sources.web import Credentials, Web, pieces
from felloe.domain.errors import FelloeError
from felloe.domain.gguf_fields import MAX_HEADER_BYTES
from felloe.domain.gguf_layout import GgufLayout, join_layouts, read_layout

_FIRST_BYTES = 2**20


class _TooShortError(Exception):
    """What came so far ends within the header."""


async def layout_of(
    text: str,
    settings: SourceSettings,
    *,
    agent: str,
    environment: Mapping[str, str],
    limits: Limits | None = None,
    tls: ssl.SSLContext | None = None,
) -> GgufLayout:
    """The layout of the model that the reference `text` names, from its files' headers alone.

    `agent` is the User-Agent that servers see, `environment` holds the secrets. Of a remote file no more is read than
    up to the first step (1, 2, 4 ... 64 MiB) that holds its header. A projector beside the model is not read.
    Raises `invalid_value` for a reference that cannot be read, `bad_model_file`, and what sources raise.
    """
    reference = parse_reference(text)
    context = tls or await asyncio.to_thread(httpx.create_ssl_context)
    web = Web(address_rules(settings), limits or Limits(), agent=agent, tls=context)
    try:
        plan, credentials = await plan_reference(reference, web, settings, environment)
        files = [file for file in plan.files if file.role in ("model", "part")]
        layouts = [await _layout(file, web, credentials) for file in files]
    finally:
        await web.close()
    if not layouts:
        raise FelloeError("source_not_found", f"{text}: it holds no model file")
    return join_layouts(layouts[0], layouts[1:])


async def layout_of_file(path: Path) -> GgufLayout:
    """The layout of the model at a path, with the further parts of a sharded one beside it."""
    plan = await plan_file(FileReference(str(path)))
    files = [file for file in plan.files if file.role in ("model", "part")]
    layouts = await asyncio.to_thread(lambda: [_local(file) for file in files])
    return join_layouts(layouts[0], layouts[1:])


async def _layout(file: RemoteFile, web: Web, credentials: Credentials) -> GgufLayout:
    if file.local:
        return await asyncio.to_thread(_local, file)
    patience = web.patience()
    while True:
        try:
            return await _remote(file, web, credentials)
        except Interrupted as failure:
            await patience.bear(failure)


def _local(file: RemoteFile) -> GgufLayout:
    with open_file(Path(file.local)) as stream:
        return read_layout(stream.read, file=file.local, file_size=file.size)


async def _remote(file: RemoteFile, web: Web, credentials: Credentials) -> GgufLayout:
    wanted, front = _FIRST_BYTES, bytearray()
    asked = {"Range": f"bytes=0-{MAX_HEADER_BYTES - 1}", "Accept": "*/*"}
    async with web.open(file.url, credentials, asked) as answer:
        async for piece in pieces(answer):
            front += piece
            if len(front) < wanted:
                continue
            wanted *= 2
            layout = await asyncio.to_thread(_parsed, bytes(front), file, whole=False)
            if layout is not None:
                return layout
            if len(front) >= MAX_HEADER_BYTES:
                break
    layout = await asyncio.to_thread(_parsed, bytes(front), file, whole=True)
    if layout is None:
        raise FelloeError("bad_model_file", f"{file.path}: its header cannot be read")
    return layout


def _parsed(front: bytes, file: RemoteFile, *, whole: bool) -> GgufLayout | None:
    """None while the front ends within the header and more may come."""
    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        data = front[at : at + size]
        at += len(data)
        if not data and not whole:
            raise _TooShortError
        return data

    try:
        return read_layout(read, file=file.path, file_size=file.size)
    except _TooShortError:
        return None
