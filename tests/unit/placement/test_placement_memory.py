"""What a model takes: the figures that the engine itself logs, and what must hold for any split."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from felloe.domain.gguf_layout import read_layout
from felloe.domain.plan import KvType, Need
from felloe.placement.cache import cache_bytes
from felloe.placement.corrections import Correction, Corrections
from felloe.placement.memory import Share, price
from felloe.placement.paper import Lengths, shape_from_parameters
from felloe.placement.settings import Settings
from felloe.placement.shape import LayerShape, Shape, shape_of
from placement_shapes import GIB, eight, gpu, ram

MIB = 2**20
SHIPPED = Path(__file__).parents[3] / "models/tiny-python/tiny-python-q8_0.gguf"


def shipped() -> Shape:
    with SHIPPED.open("rb") as stream:
        return shape_of(read_layout(stream.read, file=SHIPPED.name))


def alone(shape: Shape, settings: Settings) -> Need:
    (need,) = price(shape, settings, [Share(device=ram()[0], layers=shape.units)])
    return need


def test_the_shipped_model_takes_what_the_engine_logged() -> None:
    need = alone(shipped(), Settings(context=2048, slots=4))
    assert need.kv == 16 * MIB
    assert need.weights == shipped().weights
    assert need.compute == pytest.approx((9.02 + 0.03) * MIB, rel=0.01)


@pytest.mark.parametrize(("kind", "mib"), [("f16", 512.0), ("q8_0", 272.0), ("q4_0", 144.0)])
def test_a_quantised_cache_takes_less(kind: KvType, mib: float) -> None:
    lengths = Lengths(layers=16, width=2048, heads=32, kv_heads=8, feed_forward=8192, vocabulary=128256)
    shape = shape_from_parameters(lengths, quantisation="Q8_0")
    assert alone(shape, Settings(context=4096, slots=4, kv_type=kind)).kv == mib * MIB


def test_each_slots_context_is_rounded_up_by_itself() -> None:
    shape = shipped()
    assert alone(shape, Settings(context=1000, slots=3)).kv == alone(shape, Settings(context=1024, slots=3)).kv
    assert alone(shape, Settings(context=1025, slots=3)).kv == alone(shape, Settings(context=1280, slots=3)).kv


def test_a_windowed_layer_keeps_its_window_and_a_batch() -> None:
    layer = LayerShape(weights=1, key=256, value=256, windowed=True)
    shape = replace(shipped(), layers=(layer,), window=512)
    assert cache_bytes(shape, Settings(context=8192, slots=1), layer) == 1024 * 2 * 512
    assert cache_bytes(shape, Settings(context=768, slots=1), layer) == 768 * 2 * 512


def test_a_state_is_kept_for_each_slot_whatever_the_context() -> None:
    layer = LayerShape(weights=1, state=77_824)
    shape = replace(shipped(), layers=(layer,))
    for context in (512, 65_536):
        assert cache_bytes(shape, Settings(context=context, slots=4), layer) == 4 * 77_824


def test_experts_make_buffers_by_those_that_a_token_passes() -> None:
    plain = Lengths(layers=8, width=1024, heads=16, kv_heads=4, feed_forward=1536, vocabulary=8192, head_length=64)
    mixed = shape_from_parameters(replace(plain, experts=32, experts_used=8, expert_length=768))
    settings = Settings(context=4096, slots=4)
    assert alone(mixed, settings).compute == pytest.approx(50.14 * MIB, rel=0.01)
    assert alone(mixed, settings).compute > alone(shape_from_parameters(plain), settings).compute


def test_gpus_pay_for_their_context_and_ram_for_the_process() -> None:
    shape = eight()
    split = [Share(device=ram()[0], layers=0), Share(device=gpu(0, 12)[0], layers=33)]
    host, card = price(shape, Settings(context=8192), split)
    assert host.weights == shape.input_bytes
    assert (host.kv, host.overhead > 256 * MIB) == (0, True)
    assert card.weights == shape.weights - shape.input_bytes
    assert (card.kv, card.overhead) == (4 * GIB, 450 * MIB)


def test_a_projector_lies_whole_in_memory() -> None:
    shape = eight()
    seeing = replace(shape, projector_bytes=500 * MIB)
    settings = Settings(context=4096)
    assert alone(seeing, settings).weights - alone(shape, settings).weights == 500 * MIB


def test_corrections_change_what_was_only_estimated() -> None:
    known = Corrections(kinds={"cuda": Correction(compute=1.5, overhead=100 * MIB)})
    split = [Share(device=ram()[0], layers=0), Share(device=gpu(0, 12)[0], layers=33)]
    settings = Settings(context=8192)
    before = price(eight(), settings, split)
    after = price(eight(), settings, split, corrections=known)
    assert after[0] == before[0]
    assert (after[1].weights, after[1].kv) == (before[1].weights, before[1].kv)
    assert after[1].compute == pytest.approx(1.5 * before[1].compute, abs=1)
    assert after[1].overhead == before[1].overhead + 100 * MIB


@given(cuts=st.lists(st.integers(0, 33), min_size=3, max_size=3), context=st.integers(1, 131_072))
def test_no_split_loses_or_makes_weights_or_cache(cuts: list[int], context: int) -> None:
    shape, settings = eight(), Settings(context=context)
    low, middle, high = sorted(cuts)
    counts = (low, middle - low, high - middle, 33 - high)
    devices = (ram()[0], *(gpu(number, 12)[0] for number in range(3)))
    needs = price(
        shape, settings, [Share(device=each, layers=count) for each, count in zip(devices, counts, strict=True)]
    )
    whole = alone(shape, settings)
    assert sum(need.kv for need in needs) == whole.kv
    assert sum(need.weights for need in needs) == whole.weights
    assert all(need == Need() for need, count in zip(needs[1:], counts[1:], strict=True) if not count)


@settings(deadline=None, max_examples=50)
@given(context=st.integers(1, 65_536), slots=st.sampled_from((1, 2, 4, 8, 16, 32)))
def test_more_context_or_slots_never_take_less(context: int, slots: int) -> None:
    shape = shipped()
    need = alone(shape, Settings(context=context, slots=slots))
    assert alone(shape, Settings(context=context + 300, slots=slots)).total >= need.total
    assert alone(shape, Settings(context=context, slots=2 * slots)).total >= need.total
