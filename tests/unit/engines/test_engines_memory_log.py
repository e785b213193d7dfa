"""What an engine's log says of its memory, line by line, and what an engine is told of the devices that it may use."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felloe.domain.fleet import RAM
from felloe.domain.plan import Need, Part
from felloe.engines.memory_log import (
    Buffers,
    MemoryLog,
    environment_for,
    kind_of_buffer,
    layers_on_gpus,
    real_parts,
    shortage,
)
from felloe.engines.options import EngineDevice
from felloe.engines.rules import is_chatter

MIB = 2**20
GPUS = tuple(EngineDevice(f"gpu{number}", "cuda", f"GPU-{number}") for number in range(3))
MACHINE = (EngineDevice(RAM, "cpu"), *GPUS)
SPLIT = (
    Part(device=RAM, layers=0, need=Need(weights=1, overhead=9 * MIB)),
    Part(device="gpu2", layers=20, need=Need(weights=100 * MIB, kv=10 * MIB, compute=5 * MIB, overhead=300 * MIB)),
    Part(device="gpu0", layers=13, need=Need(weights=80 * MIB, overhead=300 * MIB)),
)
LOG = """\
0.00.006.638 I llama_model_loader: loaded meta data with 27 key-value pairs and 38 tensors from m.gguf (version GGUF V3)
0.00.016.456 I load_tensors: offloaded 33/33 layers to GPU
0.00.016.456 I load_tensors:   CPU_Mapped model buffer size =    70.50 MiB
0.00.016.456 I load_tensors:        CUDA0 model buffer size =   120.00 MiB
0.00.016.456 I load_tensors:        CUDA1 model buffer size =    80.00 MiB
0.00.016.818 I llama_context:  CUDA_Host  output buffer size =     0.50 MiB
0.00.016.888 I llama_kv_cache:      CUDA0 KV buffer size =     4.00 MiB
0.00.016.888 I llama_kv_cache:      CUDA0 KV buffer size =     6.00 MiB
0.00.016.888 I llama_memory_recurrent:      CUDA1 RS buffer size =     2.00 MiB
0.00.021.268 I sched_reserve:      CUDA0 compute buffer size =   900.00 MiB
0.00.021.268 I sched_reserve:      CUDA0 compute buffer size =     8.00 MiB
0.00.021.268 I sched_reserve:  CUDA_Host compute buffer size =     1.00 MiB
0.00.033.941 I srv          init: model loaded
""".splitlines()


def read(lines: Sequence[str], devices: tuple[EngineDevice, ...] = (GPUS[2], GPUS[0])) -> MemoryLog:
    log = MemoryLog(devices)
    for line in lines:
        log.read(line)
    return log


def test_each_device_gets_what_the_log_gives_to_the_number_that_the_engine_sees() -> None:
    log = read(LOG)
    assert log.complete
    found = log.buffers()
    assert found["gpu2"] == Buffers(weights=120 * MIB, kv=10 * MIB, compute=8 * MIB)
    assert found["gpu0"] == Buffers(weights=80 * MIB, kv=2 * MIB)
    assert found[RAM] == Buffers(weights=int(70.5 * MIB), compute=MIB, output=MIB // 2)


def test_a_copy_in_another_order_is_not_counted_on_top_of_the_mapped_file() -> None:
    lines = [
        "0 I load_tensors:   CPU_Mapped model buffer size =   100.00 MiB",
        "0 I load_tensors:   CPU_REPACK model buffer size =    90.00 MiB",
    ]
    assert read(lines).buffers()[RAM].weights == 100 * MIB


def test_a_trial_of_what_fits_does_not_count() -> None:
    assert read([*LOG, *LOG]).buffers() == read(LOG).buffers()


def test_a_ready_engine_is_told_by_its_own_figures_and_keeps_the_planned_overhead() -> None:
    ram, first, second = real_parts(SPLIT, read(LOG), private=77 * MIB)
    assert (first.device, first.layers) == ("gpu2", 20)
    assert first.need == Need(weights=120 * MIB, kv=10 * MIB, compute=8 * MIB, overhead=300 * MIB)
    assert (second.device, second.need.weights) == ("gpu0", 80 * MIB)
    assert ram.need.overhead == 9 * MIB


def test_what_an_owner_loads_counts_what_its_process_holds() -> None:
    ram, *others = real_parts((), read(LOG, GPUS), private=77 * MIB)
    assert ram.device == RAM
    assert ram.need.overhead == (77 + 256) * MIB
    assert [part.device for part in others] == ["gpu0", "gpu1"]


def test_an_engine_that_says_nothing_takes_what_was_planned() -> None:
    assert real_parts(SPLIT, read([]), private=1) == SPLIT


@pytest.mark.parametrize(
    ("line", "device", "short"),
    [
        (
            "0.00.010.195 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 120.00 MiB on device 0:"
            " cudaMalloc failed: out of memory",
            "gpu2",
            5 * MIB,
        ),
        ("0.00.010.195 E alloc_tensor_range: failed to allocate CUDA1 buffer of size 104857600", "gpu0", 20 * MIB),
        (
            "0.00.010.195 E ggml_aligned_malloc: insufficient memory (attempted to allocate  50.00 MB)",
            RAM,
            50 * MIB - 1,
        ),
    ],
)
def test_what_a_device_refused_is_learned(line: str, device: str, short: int) -> None:
    assert shortage(SPLIT, read([line]).buffers()) == {device: short}


def test_a_refusal_of_no_more_than_planned_says_that_somebody_else_holds_the_memory() -> None:
    line = "E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 12.00 MiB on device 0: cudaMalloc failed: x"
    assert shortage(SPLIT, read([line]).buffers()) == {"gpu2": 0}


def test_an_engine_sees_its_devices_in_the_order_of_its_layers_and_no_others() -> None:
    assert environment_for(SPLIT, MACHINE) == {
        "CUDA_VISIBLE_DEVICES": "GPU-2,GPU-0",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "ROCR_VISIBLE_DEVICES": "",
        "GGML_VK_VISIBLE_DEVICES": "",
    }
    assert layers_on_gpus(SPLIT) == (20, 13)


def test_an_engine_in_the_machines_memory_sees_no_gpu_and_one_without_a_plan_all() -> None:
    in_ram = (Part(device=RAM, layers=33, need=Need()),)
    assert environment_for(in_ram, MACHINE)["CUDA_VISIBLE_DEVICES"] == "-1"
    assert layers_on_gpus(in_ram) == ()
    assert environment_for((), MACHINE) == {}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("CUDA0", "cuda"),
        ("ROCm12", "rocm"),
        ("Vulkan1", "vulkan"),
        ("MTL0", "metal"),
        ("CPU", None),
        ("CUDA_Host", None),
    ],
)
def test_devices_are_known_by_their_names(name: str, kind: str | None) -> None:
    assert kind_of_buffer(name) == kind


def test_only_errors_are_kept_of_an_engine_that_starts() -> None:
    lines = [
        ("0.00.033.593 I srv          init: chat template, example_format: '<|system|>", True),
        ("You are a helpful assistant<|end|>", True),
        ("/w/llama-model.cpp:13: GGML_ASSERT(hparams.n_layer > 0) failed", False),
        ("0.00.010.195 E ggml_cuda: out of memory", False),
        ("more about it", False),
        ("0.00.008.226 W srv          init: security", True),
    ]
    before = False
    for line, chatter in lines:
        before = is_chatter(line, before)
        assert before is chatter, line


@given(st.lists(st.text(max_size=60).map(lambda end: f"0 I x: CUDA0 {end}") | st.text(max_size=200), max_size=20))
def test_no_line_of_a_log_breaks_the_reading(lines: list[str]) -> None:
    for found in read(lines).buffers().values():
        assert found.total >= 0


def test_figures_beyond_all_machines_are_cut() -> None:
    line = f"0 I x: CUDA0 KV buffer size = {'9' * 12}.00 MiB"
    assert read([line]).buffers()["gpu2"].kv <= 2**53
