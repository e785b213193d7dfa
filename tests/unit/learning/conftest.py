"""A small recipe that is right, for tests to spoil or to build, and a llama.cpp to ask."""

import json
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

_TABLES: dict[str, dict[str, Any]] = {
    "model": {"name": "minute", "description": "For tests.", "license": "Apache-2.0"},
    "corpus": {"exclude": ["test", "asyncio/"], "minimum_characters": 10, "held_out_one_in": 5},
    "network": {
        "vocabulary": 320,
        "width": 32,
        "layers": 2,
        "heads": 4,
        "key_value_heads": 2,
        "feed_forward": 64,
        "context": 512,
        "rope_base": 10000.0,
        "norm_epsilon": 1e-5,
    },
    "training": {
        "seed": 1,
        "threads": 1,
        "steps": 3,
        "batch": 2,
        "window": 32,
        "peak_rate": 0.01,
        "warmup_steps": 1,
        "decay_fraction": 0.5,
        "weight_decay": 0.0,
        "gradient_clip": 1.0,
    },
    "export": {"quantization": "f16"},
}


@pytest.fixture
def tables() -> dict[str, Any]:
    """A fresh copy of the tables of a valid recipe."""
    return deepcopy(_TABLES)


@pytest.fixture
def ask_llama() -> Callable[[Path, list[tuple[str, dict[str, Any]]]], list[Any]]:
    """Loads a model in llama.cpp, sends it (path, body) requests and returns the answers."""
    pytest.importorskip("xllamacpp", reason="answers come from llama.cpp")
    return _ask_llama


def _ask_llama(model: Path, requests: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    job = json.dumps({"model": str(model), "requests": requests})
    child = [sys.executable, str(Path(__file__).with_name("llama_child.py"))]
    done = subprocess.run(child, input=job, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
