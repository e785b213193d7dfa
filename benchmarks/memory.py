"""What Felloe says a model will take, against what the engine says it took; and what rules of thumb say.

`PYTHONPATH=tests python benchmarks/memory.py [--only TEXT] [--json FILE]`. Models of many architectures are written
(nothing but zeros, right in every length), each is loaded by the engine child's own parameters in several settings,
and the sizes that llama.cpp logs while it loads are compared with `placement.price` from the header alone.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import machine
from memory_models import Model, write

from felloe.domain.batches import PROMPT_CACHE_BYTES
from felloe.domain.fleet import RAM, Device
from felloe.domain.gguf_layout import read_layout
from felloe.domain.plan import KvType, Need
from felloe.placement.memory import Share, price
from felloe.placement.settings import Settings
from felloe.placement.shape import Shape, shape_of

_RAM = Device(id=RAM, kind="cpu", memory=0)
_MOST_SECONDS = 120
_BUFFER = re.compile(r" (\S+) +(model|KV|RS|compute|output) buffer size = +([\d.]+) MiB")


class Case(NamedTuple):
    """One model in one setting."""

    name: str
    model: Model
    settings: Settings


class Took(NamedTuple):
    """What the engine's log says; `copied` are weights that it rearranged into memory of its own."""

    weights: int
    kv: int
    compute: int
    copied: int


class Row(NamedTuple):
    """Bytes by part: what was said before, and what the engine took; `private` is the process's own memory."""

    case: Case
    shape: Shape
    said: Need
    took: Took
    private: int
    file: int


LLAMA = Model("llama")
SMALL = Model("llama", layers=16, width=2048, heads=32, kv_heads=8, feed_forward=8192, vocabulary=128256)
EIGHT = replace(SMALL, layers=4, width=4096, head=128, feed_forward=14336, type="Q4_K")
MIXED = Model("qwen3moe", layers=8, width=1024, heads=16, kv_heads=4, experts=32, used=8, expert_length=768)
LATENT = Model(
    "deepseek2",
    kv_heads=1,
    head=512 + 64,
    width=1024,
    heads=16,
    experts=16,
    used=4,
    expert_length=512,
    extra={
        "attention.q_lora_rank": 512,
        "attention.kv_lora_rank": 512,
        "rope.dimension_count": 64,
        "attention.key_length_mla": 192,
        "attention.value_length_mla": 128,
        "leading_dense_block_count": 1,
        "expert_shared_count": 1,
        "expert_gating_func": 1,
    },
)
MAMBA = Model(
    "mamba", extra={"ssm.inner_size": 1024, "ssm.state_size": 16, "ssm.time_step_rank": 32, "ssm.conv_kernel": 4}
)
MODELS = {
    "llama tiny": LLAMA,
    "llama 1B": SMALL,
    "llama 8B, 4 layers": EIGHT,
    "llama wide words": replace(LLAMA, vocabulary=200000, tied=True),
    "llama f16": replace(LLAMA, type="F16", layers=8, width=1024, heads=16, kv_heads=16, feed_forward=2816),
    "llama experts": replace(LLAMA, experts=8, used=2, expert_length=1536),
    "qwen2 0.5B": Model("qwen2", layers=24, width=896, heads=14, feed_forward=4864, vocabulary=151936, tied=True),
    "qwen2 1.5B": Model(
        "qwen2", layers=28, width=1536, heads=12, head=128, feed_forward=8960, vocabulary=151936, tied=True
    ),
    "qwen3": Model("qwen3", layers=8, width=1024, heads=16, kv_heads=8, head=128, feed_forward=3072),
    "qwen3moe": MIXED,
    "gemma2": Model(
        "gemma2", layers=6, width=1152, heads=8, kv_heads=4, head=256, window=4096, vocabulary=256000, tied=True
    ),
    "gemma3 1B": Model(
        "gemma3",
        layers=26,
        width=1152,
        heads=4,
        kv_heads=1,
        head=256,
        feed_forward=6912,
        window=512,
        vocabulary=262144,
        tied=True,
    ),
    "cohere2": Model("cohere2", layers=8, width=1024, heads=16, kv_heads=4, window=1024, tied=True),
    "phi3": Model("phi3", layers=8, width=1024, heads=16, kv_heads=16),
    "gpt-oss": Model(
        "gpt-oss",
        layers=6,
        width=1440,
        heads=24,
        kv_heads=4,
        window=128,
        experts=16,
        used=4,
        expert_length=1440,
        vocabulary=201088,
    ),
    "deepseek2": LATENT,
    "mamba": MAMBA,
    "lfm2": Model("lfm2", layers=8, width=1024, heads=16, tied=True, extra={"shortconv.l_cache": 3}),
    "llama wide heads": replace(LLAMA, feed_forward=256, heads=32, kv_heads=4),
    "gemma3 wide heads": Model(
        "gemma3", layers=6, feed_forward=256, heads=16, kv_heads=4, head=256, window=512, tied=True
    ),
    "deepseek2 wide heads": replace(LATENT, heads=32),
    "mamba wide": replace(
        MAMBA,
        width=1024,
        feed_forward=0,
        extra={"ssm.inner_size": 2048, "ssm.state_size": 16, "ssm.time_step_rank": 64, "ssm.conv_kernel": 4},
    ),
    "bert": Model("bert", layers=6, kv_heads=8, context=2048),
}


def cases() -> list[Case]:
    """Every model as `felloe load` would load it, and some with other settings."""
    found = [
        Case(name, model, Settings(context=512 if name == "bert" else 4096, embedding=name == "bert"))
        for name, model in MODELS.items()
    ]
    found += [_case(name, context=16384, slots=2) for name in MODELS if name != "bert"]
    found += [_case("llama 1B", context=32768, slots=1), _case("llama tiny", context=1000, slots=3)]
    found += [_case("llama tiny", context=2048, slots=16), _case("llama 8B, 4 layers", context=8192, slots=8)]
    kinds: tuple[KvType, ...] = ("q8_0", "q4_0")
    found += [_case(name, kv_type=kind) for name in ("llama 1B", "gemma3 1B", "deepseek2") for kind in kinds]
    found += [_case("qwen3", embedding=True, context=2048), _case("bert", embedding=True, context=2048, slots=1)]
    return found


def _case(name: str, context: int = 4096, slots: int = 4, kv_type: KvType = "f16", embedding: bool = False) -> Case:
    return Case(name, MODELS[name], Settings(context=context, slots=slots, kv_type=kv_type, embedding=embedding))


def measure(case: Case, path: Path) -> Row:
    """Loads the model once."""
    with path.open("rb") as stream:
        shape = shape_of(read_layout(stream.read, file=path.name, file_size=path.stat().st_size))
    settings = case.settings
    options = {
        "model": str(path),
        "context": settings.context * settings.slots,
        "slots": settings.slots,
        "threads": 2,
        "gpu_layers": 0,
        "kv_type": settings.kv_type,
        "embedding": settings.embedding,
    }
    child = [sys.executable, __file__, "--child", json.dumps(options)]
    ran = subprocess.run(child, capture_output=True, text=True, timeout=_MOST_SECONDS, check=False)
    if ran.returncode:
        raise SystemExit(f"{case.name}: {ran.stderr[-2000:]}")
    (said,) = price(shape, settings, [Share(device=_RAM, layers=shape.units)])
    took = _took(ran.stderr, path.stat().st_size)
    return Row(case, shape, said, took, int(ran.stdout), path.stat().st_size)


def _took(log: str, file: int) -> Took:
    """What is mapped and what is a rearranged copy of it never count for more than the file: one replaces the other."""
    sums: dict[str, float] = {}
    for buffer, use, mib in _BUFFER.findall(log):
        name = "copied" if use == "model" and "REPACK" in buffer else use
        sums[name] = sums.get(name, 0) + float(mib) * 2**20
    kept = sums.get("KV", 0) + sums.get("RS", 0)
    busy = sums["compute"] + sums["output"]
    copied = sums.get("copied", 0)
    weights = min(sums["model"] + copied, file) if copied else sums["model"]
    return Took(round(weights), round(kept), round(busy), round(copied))


def child(options: str) -> None:
    """Loads a model as an engine child does, lets llama.cpp tell everything, and prints its own private memory."""
    import msgspec

    from felloe.engines import llama_child
    from felloe.engines.options import ChildOptions

    wanted = msgspec.json.decode(options, type=ChildOptions)
    server = llama_child.xllamacpp.Server(llama_child._parameters(wanted, 4))
    time.sleep(0.2)  # the log is written in a thread of its own
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon")), flush=True)
    os._exit(0 if server else 1)


def _localai(row: Row) -> float:
    """LocalAI's pkg/vram/estimate.go: the file, a cache by width and heads, and a twenty-fifth and 150 MB more."""
    model, settings = row.case.model, row.case.settings
    cell_bytes = {"f16": 2, "q8_0": 1, "q4_0": 4}[settings.kv_type]
    cache = cell_bytes * model.width * model.kv_heads * settings.context * settings.slots
    return row.file + cache + 0.04 * row.file + 0.15e9


PARTS = ("weights", "kv", "compute")
RULES = {
    "weights x 1.2 (GPUStack's fallback)": lambda row: 1.2 * row.file,
    "weights x 1.1 (mesh-llm)": lambda row: 1.1 * row.file,
    "file size (exo)": lambda row: row.file,
    "LocalAI": _localai,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child")
    chosen = parser.parse_args()
    if chosen.child:
        child(chosen.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = [_run(case, Path(folder)) for case in cases() if chosen.only in case.name]
    _show(rows)
    if chosen.json:
        chosen.json.write_text(json.dumps([_plain(row) for row in rows], indent=1))


def _run(case: Case, folder: Path) -> Row:
    path = folder / f"{case.name.replace(' ', '-')}.gguf"
    if not path.exists():
        write(case.model, path)
    row = measure(case, path)
    print(_line(row), flush=True)
    return row


def _line(row: Row) -> str:
    settings = row.case.settings
    head = f"| {row.case.name} | {settings.context:,} x {settings.slots} | {settings.kv_type} |"
    parts = " | ".join(_pair(getattr(row.said, name), getattr(row.took, name)) for name in PARTS)
    return f"{head} {parts} |"


def _pair(said: int, took: int) -> str:
    return f"{took / 2**20:,.2f} ({_error(said, took):+.1%})"


def _error(said: float, took: float) -> float:
    return (said - took) / took if took else 0.0


def _plain(row: Row) -> dict[str, object]:
    settings = row.case.settings
    return {
        "model": row.case.name,
        "architecture": row.case.model.architecture,
        "context": settings.context,
        "slots": settings.slots,
        "kv_type": settings.kv_type,
        "embedding": settings.embedding,
        "file": row.file,
        "said": {name: getattr(row.said, name) for name in (*PARTS, "overhead")},
        "took": row.took._asdict(),
        "private": row.private,
        "rules": {name: round(rule(row)) for name, rule in RULES.items()},
    }


def _show(rows: Sequence[Row]) -> None:
    print(f"\n{len(rows)} configurations on {machine.describe()}\n")
    print("| part | median error | most above | most below |\n|---|---|---|---|")
    for name in PARTS:
        _show_errors(name, [_error(getattr(row.said, name), getattr(row.took, name)) for row in rows])
    used = [row.private / (row.said.total - row.said.weights - PROMPT_CACHE_BYTES + row.took.copied) for row in rows]
    print(
        f"\nThe process's own memory once it is ready is {min(used):.0%} to {max(used):.0%} of what is reckoned for it."
    )
    for name, chosen in (("all", list(rows)), ("files above 500 MB", [row for row in rows if row.file > 5e8])):
        print(f"\n| together, {name} ({len(chosen)}) | median error | most above | most below |")
        print("|---|---|---|---|")
        _show_errors("Felloe", [_error(sum(getattr(row.said, part) for part in PARTS), _sum(row)) for row in chosen])
        for rule_name, rule in RULES.items():
            _show_errors(rule_name, [_error(rule(row), _sum(row)) for row in chosen])


def _show_errors(name: str, errors: list[float]) -> None:
    print(f"| {name} | {median(abs(error) for error in errors):.1%} | {max(errors):+.1%} | {min(errors):+.1%} |")


def _sum(row: Row) -> int:
    return row.took.weights + row.took.kv + row.took.compute


if __name__ == "__main__":
    main()
