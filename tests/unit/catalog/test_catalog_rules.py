import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felloe.catalog.rules import (
    Candidate,
    abilities_of,
    check_is_model,
    check_is_whole,
    choose_name,
    choose_victims,
)
from felloe.domain.errors import FelloeError
from felloe.domain.gguf import GgufHeader, GgufPart, read_header
from felloe.domain.ids import ModelDigest, ModelName
from gguf_bytes import STRING, UINT32, tiny_model


def header(**changes: tuple[int, object] | None) -> GgufHeader:
    return read_header(io.BytesIO(bytes(tiny_model(**changes))).read, file="m.gguf")


def test_a_decoder_with_a_template_chats_and_completes() -> None:
    assert abilities_of(header(), has_projector=False) == ("chat", "completion", "tools", "json_schema")


def test_a_decoder_without_a_template_only_completes() -> None:
    assert abilities_of(header(tokenizer__chat_template=None), has_projector=False) == ("completion",)


def test_a_pooled_model_embeds() -> None:
    assert abilities_of(header(llama__pooling_type=(UINT32, 1)), has_projector=False) == ("embedding",)


def test_a_reranker_reranks() -> None:
    assert abilities_of(header(llama__pooling_type=(UINT32, 4)), has_projector=False) == ("rerank",)


def test_a_decoder_with_a_projector_sees() -> None:
    assert "vision" in abilities_of(header(), has_projector=True)


def test_an_encoder_embeds() -> None:
    bert = header(general__architecture=(STRING, "nomic-bert"))
    assert abilities_of(bert, has_projector=False) == ("embedding",)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"general__type": (STRING, "adapter")}, "general.type"),
        ({"split__no": (UINT32, 1), "split__count": (UINT32, 3)}, "split.no"),
        ({"llama__block_count": None, "llama__attention__head_count_kv": None}, "llama.block_count"),
        ({"tokenizer__ggml__model": None}, "tokenizer.ggml.model"),
        ({"tokenizer__ggml__model": (STRING, "no_vocab")}, "tokenizer.ggml.model"),
    ],
)
def test_what_is_no_whole_model_is_refused_by_field(changes: dict[str, tuple[int, object] | None], field: str) -> None:
    with pytest.raises(FelloeError) as caught:
        check_is_model(header(**changes), "m.gguf")
    assert caught.value.code == "bad_model_file"
    assert caught.value.detail.startswith(f"m.gguf: {field}: ")


@pytest.mark.parametrize(
    ("given", "stem", "expected"),
    [
        ("Tiny Thing", "x", "tiny-thing"),
        ("Meta-Llama 3.1 (8B)", "x", "meta-llama-3.1-8b"),
        ("../../etc/passwd", "x", "etc-passwd"),
        ("模型", "Qwen2.5-7B.Q4_K_M", "qwen2.5-7b.q4_k_m"),
        ("", "..", "model"),
        ("x" * 500, "x", "x" * 100),
    ],
)
def test_a_name_is_made_from_what_the_file_says_of_itself(given: str, stem: str, expected: str) -> None:
    assert choose_name(None, header(general__name=(STRING, given)), stem) == expected


def test_a_name_that_is_asked_for_is_taken_as_it_is() -> None:
    assert choose_name("Org/Tiny:q8", header(), "x") == "Org/Tiny:q8"


@pytest.mark.parametrize("asked", ["", "../x", "a b", "x" * 129, "-x", "a//b"])
def test_a_name_that_cannot_be_one_is_refused(asked: str) -> None:
    with pytest.raises(FelloeError) as caught:
        choose_name(asked, header(), "x")
    assert (caught.value.code, caught.value.param) == ("invalid_value", "name")


def part(number: int, **changes: int) -> GgufPart:
    values = {"split_number": number, "split_count": 3, "split_tensors": 6, "tensor_count": 2} | changes
    return GgufPart(**values, parameters=1, tensor_bytes=1)


SHARDED = {"split__no": (UINT32, 0), "split__count": (UINT32, 3), "split__tensors__count": (UINT32, 6)}
FIRST, SECOND, THIRD = (f"a/m-{number:05d}-of-00003.gguf" for number in (1, 2, 3))


def test_all_parts_under_their_names_are_a_whole_model() -> None:
    check_is_whole(header(**SHARDED), FIRST, {SECOND: part(1), THIRD: part(2)})
    check_is_whole(header(), "any name.gguf", {})


@pytest.mark.parametrize(
    ("first", "parts"),
    [
        (FIRST, {}),
        (FIRST, {SECOND: part(1)}),
        (FIRST, {SECOND: part(1), THIRD: part(1)}),
        (FIRST, {SECOND: part(2), THIRD: part(1)}),
        (FIRST, {SECOND: part(1), "m-00003-of-00003.gguf": part(2)}),
        (FIRST, {SECOND: part(1), THIRD: part(2, split_count=4)}),
        (FIRST, {SECOND: part(1), THIRD: part(2, split_tensors=7)}),
        (FIRST, {SECOND: part(1), THIRD: part(2, tensor_count=3)}),
        ("a/m.gguf", {SECOND: part(1), THIRD: part(2)}),
        (SECOND, {FIRST: part(1), THIRD: part(2)}),
    ],
)
def test_what_is_not_all_parts_of_one_model_is_refused(first: str, parts: dict[str, GgufPart]) -> None:
    with pytest.raises(FelloeError) as caught:
        check_is_whole(header(**SHARDED), first, parts)
    assert caught.value.code == "bad_model_file"


def test_a_part_beside_a_model_that_has_none_is_refused() -> None:
    with pytest.raises(FelloeError, match=r"split\.count"):
        check_is_whole(header(), "m.gguf", {SECOND: part(1)})


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        name=st.integers(0, 9).map(lambda number: ModelName(f"m{number}")),
        used_at=st.floats(0, 100),
        is_spared=st.booleans(),
        blobs=st.frozensets(st.sampled_from([ModelDigest(each) for each in "abcdef"]), min_size=1),
    ),
    unique_by=lambda each: each.name,
    max_size=7,
)
SIZES = {ModelDigest(each): 2**number for number, each in enumerate("abcdef")}


def freed_by(victims: tuple[ModelName, ...], candidates: list[Candidate]) -> int:
    kept = {blob for each in candidates if each.name not in victims for blob in each.blobs}
    gone = {blob for each in candidates if each.name in victims for blob in each.blobs} - kept
    return sum(SIZES[blob] for blob in gone)


@given(candidates=CANDIDATES, missing=st.integers(-5, 70))
def test_clean_up_frees_enough_spares_what_it_must_and_takes_nobody_in_vain(
    candidates: list[Candidate], missing: int
) -> None:
    victims = choose_victims(candidates, SIZES, missing)
    every = tuple(each.name for each in candidates if not each.is_spared)
    if victims is None:
        assert freed_by(every, candidates) < missing
        return
    assert set(victims) <= set(every)
    assert freed_by(victims, candidates) >= missing
    for victim in victims:
        assert freed_by(tuple(each for each in victims if each != victim), candidates) < missing


def test_the_least_recently_used_goes_first() -> None:
    old, new = (
        Candidate(ModelName(name), used, False, frozenset({ModelDigest(name)}))
        for name, used in (("a", 1.0), ("b", 2.0))
    )
    assert choose_victims([new, old], {ModelDigest("a"): 1, ModelDigest("b"): 1}, 1) == ("a",)
