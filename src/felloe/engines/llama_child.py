"""One model in one process: `python -m felloe.engines.llama_child`.

Reads one line of JSON (`ChildOptions`) on standard input, starts llama.cpp's HTTP server, prints one line of JSON
(`ChildReply`), and exits when standard input ends, which it does when the parent ends, however that happens.
Options come by standard input because arguments are visible to every user of the machine.
"""

import ctypes
import importlib
import mmap
import os
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec

from felloe.domain.batches import PROMPT_CACHE_BYTES, batch_tokens
from felloe.domain.gguf import read_header
from felloe.engines.options import ChildOptions, ChildReply

_ERRORS_ONLY, _EVERYTHING = 1, 4
_MOST_GPUS = 128
_METADATA_LIMIT = 16 * 1024 * 1024
_UINT32 = 4

xllamacpp: Any = importlib.import_module("xllamacpp")  # carries no types


def usable_cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def main() -> None:
    os.umask(0o077)
    _forbid_core_dumps()
    options = msgspec.json.decode(_read_line(), type=ChildOptions)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    # C++ writes to descriptor 1 in some error cases; only the reply may go there.
    reply_descriptor = os.dup(1)
    os.dup2(2, 1)
    loudness = _loudness()
    try:
        server = xllamacpp.Server(_parameters(options, _ERRORS_ONLY if loudness is None else _EVERYTHING))
    except Exception as error:
        _reply(reply_descriptor, ChildReply(error=f"{type(error).__name__}: {error}"))
        # An orderly exit, because llama.cpp writes its log, and with it the reason, in a thread of its own.
        sys.exit(3)
    if loudness is not None:
        loudness.value = _ERRORS_ONLY
    _reply(reply_descriptor, ChildReply(address=server.listening_address, tells_memory=loudness is not None))
    threading.Event().wait()


def _loudness() -> ctypes.c_int | None:
    """llama.cpp's own variable for how much it logs; None where it cannot be reached.

    While it loads it tells what it takes up on each device, and nothing of that later or otherwise. Afterwards it would
    only tell of each request.
    """
    try:
        return ctypes.c_int.in_dll(ctypes.CDLL(xllamacpp.xllamacpp.__file__), "common_log_verbosity_thold")
    except (AttributeError, OSError, ValueError):
        return None


def _forbid_core_dumps() -> None:
    """A crash must not write prompts to the disk. One byte, not zero: that stops dumps into a pipe as well."""
    if sys.platform != "win32":
        resource = importlib.import_module("resource")
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def _reply(descriptor: int, reply: ChildReply) -> None:
    os.write(descriptor, msgspec.json.encode(reply) + b"\n")


def _read_line() -> bytes:
    # Unbuffered, so that the watching thread holds no lock of a stream object while this process ends.
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 1)
        if not piece:
            break
        line += piece
    return line


def _exit_with_parent() -> None:
    while os.read(0, 4096):
        pass
    # Not sys.exit: deleting a busy server can hang.
    os._exit(0)


def _parameters(options: ChildOptions, verbosity: int) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = options.model
    parameters.model_alias = {options.alias}
    if options.template and options.template != _own_template(Path(options.model)):
        parameters.chat_template = options.template
    parameters.n_ctx = options.context
    parameters.n_parallel = options.slots
    batch = batch_tokens(options.context // options.slots, options.slots, embedding=options.embedding)
    parameters.n_batch = parameters.n_ubatch = batch
    parameters.n_gpu_layers = options.gpu_layers
    parameters.fit_params = options.gpu_layers < 0
    if options.split:
        parameters.tensor_split = [*map(float, options.split), *[0.0] * (_MOST_GPUS - len(options.split))]
    threads = max(1, min(options.threads or usable_cores(), usable_cores()))
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    # Every open stream holds one HTTP thread; the rest is for tokenizing, templates and probes.
    parameters.n_threads_http = options.slots * 2 + 6
    kv_type = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{options.kv_type.upper()}")
    parameters.cache_type_k = parameters.cache_type_v = kv_type
    parameters.cache_ram_mib = PROMPT_CACHE_BYTES >> 20
    parameters.ctx_shift = False
    if options.embedding:
        parameters.embedding = True
        if not _has_pooling(Path(options.model)):
            parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    parameters.hostnames = [options.socket or "127.0.0.1"]
    parameters.port = 0
    parameters.api_keys = [options.api_key] if options.api_key else []
    parameters.verbosity = verbosity
    parameters.ui = False
    parameters.cors_origins = "http://localhost.invalid"
    parameters.endpoint_slots = False  # it would show prompts
    parameters.endpoint_metrics = True  # counts batches, so it tells whether anything is decoded
    return parameters


def _own_template(model: Path) -> str | None:
    with model.open("rb") as stream:
        return read_header(stream.read, file=model.name).chat_template


def _has_pooling(model: Path) -> bool:
    """Whether the file names how to pool embeddings; looks for `<architecture>.pooling_type` in its metadata."""
    with model.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        name = b".pooling_type"
        at = data.find(name, 0, min(len(data), _METADATA_LIMIT))
        value_at = at + len(name)
        if at < 0 or int.from_bytes(data[value_at : value_at + 4], "little") != _UINT32:
            return False
        return int.from_bytes(data[value_at + 4 : value_at + 8], "little") != 0


if __name__ == "__main__":
    main()
