import io

import pytest

from felloe.catalog.rules import capabilities_of, check_is_model, choose_name
from felloe.domain.errors import FelloeError
from felloe.domain.gguf import GgufHeader, read_header
from gguf_bytes import STRING, UINT32, tiny_model


def header(**changes: tuple[int, object] | None) -> GgufHeader:
    return read_header(io.BytesIO(bytes(tiny_model(**changes))).read, file="m.gguf")


def test_a_decoder_with_a_template_chats_and_completes() -> None:
    assert capabilities_of(header()) == ("chat", "completion", "tools", "json_schema")


def test_a_decoder_without_a_template_only_completes() -> None:
    assert capabilities_of(header(tokenizer__chat_template=None)) == ("completion",)


def test_a_pooled_model_embeds() -> None:
    assert capabilities_of(header(llama__pooling_type=(UINT32, 1))) == ("embedding",)


def test_a_reranker_offers_nothing_that_felloe_serves() -> None:
    assert capabilities_of(header(llama__pooling_type=(UINT32, 4))) == ()


def test_an_encoder_embeds() -> None:
    bert = header(general__architecture=(STRING, "nomic-bert"))
    assert capabilities_of(bert) == ("embedding",)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"general__type": (STRING, "adapter")}, "general.type"),
        ({"split__count": (UINT32, 3)}, "split.count"),
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
