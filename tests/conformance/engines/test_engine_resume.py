"""A broken answer goes on so that the client cannot tell: by token ids, or by a replay of the same bytes."""

import json
from typing import Any

import pytest

from felloe.domain.errors import FelloeError
from felloe.domain.requests import ReplayResume, TokenResume

GREEDY: dict[str, Any] = {"max_tokens": 60, "repeat_penalty": 1.3}
EMOJI = {"type": "json_schema", "json_schema": {"name": "word", "schema": {"const": "é😀日本 x"}}}


async def _check_every_cut(llama: Any, kind: str, tokens_a_character: int = 1, **body: Any) -> None:
    """Break the answer after some of its tokens, as often as its pieces may end there, and go on from their ids."""
    whole = await llama.ask(kind, **body)
    count = len(whole.ids)
    assert count > 20
    places = {1, 2, count // 4, count // 2, count - 8, count - 2}
    for cut in sorted({place - place % tokens_a_character for place in places} - {0}):
        rest = await llama.ask(kind, resume=TokenResume(whole.ids[:cut]), **body)
        assert whole.ids[:cut] + rest.ids == whole.ids, f"cut after {cut} tokens"
        assert whole.frames.endswith(rest.frames), f"cut after {cut} tokens"
        assert len(rest.text) < len(whole.text)
        assert rest.pieces[-1].number == whole.pieces[-1].number
        assert (rest.usage.prompt, rest.usage.completion) == (whole.usage.prompt, whole.usage.completion)
        assert rest.finish_reason == whole.finish_reason


async def _check_every_piece(llama: Any, kind: str, **body: Any) -> None:
    """Break the answer after each of its pieces."""
    whole = await llama.ask(kind, **body)
    for cut in range(1, len(whole.pieces)):
        before = whole.pieces[:cut]
        ids = tuple(each for piece in before for each in piece.ids)
        assert before[-1].number == len(ids)
        rest = await llama.ask(kind, resume=TokenResume(ids), **body)
        assert b"".join(piece.frames for piece in before) + rest.frames == whole.frames, f"cut after {cut} pieces"


async def test_a_greedy_chat_goes_on_exactly(llama: Any) -> None:
    await _check_every_cut(llama, "chat", **GREEDY)


async def test_a_long_greedy_chat_goes_on_exactly_wherever_it_broke(llama: Any) -> None:
    body = {"max_tokens": 600, "logit_bias": {"1": -100}}
    whole = await llama.ask("chat", **body)
    assert len(whole.ids) == 600
    for cut in range(7, 600, 74):
        rest = await llama.ask("chat", resume=TokenResume(whole.ids[:cut]), **body)
        assert whole.ids[:cut] + rest.ids == whole.ids, f"cut after {cut} tokens"


async def test_a_greedy_completion_goes_on_exactly(llama: Any) -> None:
    await _check_every_cut(llama, "completion", prompt="import os\n\ndef ", **GREEDY)


async def test_an_answer_to_token_ids_goes_on_exactly(llama: Any) -> None:
    await _check_every_cut(llama, "completion", prompt=[320, 355, 379, 68], **GREEDY)


async def test_an_answer_that_holds_text_back_for_a_stop_string_goes_on_exactly(llama: Any) -> None:
    plain = await llama.ask("completion", prompt="import os\n\ndef ", **GREEDY)
    # Each stop string begins like a part of the answer and then differs, so text is held back and let go again.
    stops = [plain.text[at : at + 6] + "\x00" for at in (4, 15, 30, 50)]
    held = await llama.ask("completion", prompt="import os\n\ndef ", stop=stops, **GREEDY)
    assert held.text == plain.text
    assert len(held.choices) < len(plain.choices)
    assert held.ids == plain.ids
    await _check_every_piece(llama, "completion", prompt="import os\n\ndef ", stop=stops, **GREEDY)


async def test_logprobs_go_on_with_the_right_offsets(llama: Any) -> None:
    body = {"prompt": "import os\n\ndef ", "logprobs": 2, **GREEDY}
    whole = await llama.ask("completion", **body)
    ids = whole.ids[:9]
    rest = await llama.ask("completion", resume=TokenResume(ids), **body)
    offsets = [offset for choice in whole.choices for offset in (choice["logprobs"] or {}).get("text_offset", [])]
    resumed = [offset for choice in rest.choices for offset in (choice["logprobs"] or {}).get("text_offset", [])]
    assert resumed == offsets[len(ids) :]


async def test_characters_of_several_tokens_go_on_exactly(llama: Any) -> None:
    """The bytes of the emoji are four tokens, of which the engine tells only the last; the others are found."""
    bias = {str(each): 12 for each in (178, 259, 252, 228)}
    body = {"prompt": "😀" * 20, "max_tokens": 40, "logit_bias": bias, "repeat_penalty": 1.5, "repeat_last_n": 3}
    whole = await llama.ask("completion", ignore_eos=True, **body)
    assert whole.text == "😀" * 10
    assert whole.ids == (178, 259, 252, 228) * 10
    await _check_every_cut(llama, "completion", tokens_a_character=4, ignore_eos=True, **body)
    await _check_every_piece(llama, "completion", ignore_eos=True, **body)


async def test_ids_that_cannot_be_found_are_not_guessed(llama: Any) -> None:
    bias = {str(each): 12 for each in (178, 259, 252, 228)}
    body = {"prompt": "😀" * 20, "max_tokens": 40, "logit_bias": bias, "repeat_penalty": 3.0, "repeat_last_n": 2}
    answer = await llama.ask("completion", ignore_eos=True, **body)
    assert "\ufffd" in answer.text
    assert answer.pieces[-1].ids == ()
    assert answer.pieces[-1].number == 40


async def test_an_answer_that_had_reached_max_tokens_only_ends(llama: Any) -> None:
    whole = await llama.ask("completion", prompt="import os\n", max_tokens=10, ignore_eos=True)
    rest = await llama.ask(
        "completion", prompt="import os\n", max_tokens=10, ignore_eos=True, resume=TokenResume(whole.ids)
    )
    assert rest.text == ""
    assert rest.finish_reason == "length"
    assert rest.usage.completion == 10


async def test_an_answer_that_had_filled_the_context_only_ends(llama: Any) -> None:
    prompt = [320] * 1000
    whole = await llama.ask("completion", prompt=prompt, ignore_eos=True)
    assert whole.finish_reason == "length"
    assert whole.usage.completion == 24
    rest = await llama.ask("completion", prompt=prompt, ignore_eos=True, resume=TokenResume(whole.ids))
    assert (rest.text, rest.finish_reason) == ("", "length")


async def test_a_sampled_answer_without_a_seed_is_drawn_alike_on_every_replica(llama: Any) -> None:
    body = {"temperature": 1.2, "max_tokens": 30}
    assert (await llama.ask(**body)).frames == (await llama.ask(**body)).frames
    other = await llama.ask(id="chatcmpl-" + "2" * 32, **body)
    assert other.text != (await llama.ask(**body)).text


@pytest.mark.parametrize("temperature", [0, 1.0])
async def test_a_replayed_json_answer_is_the_same_to_the_byte(llama: Any, temperature: float) -> None:
    body = {"max_tokens": 80, "response_format": EMOJI, "temperature": temperature}
    whole = await llama.ask(**body)
    again = await llama.ask(resume=ReplayResume(10, b"x" * 32), **body)
    assert again.frames == whole.frames
    assert json.loads(whole.text) == "é😀日本 x"


async def test_an_answer_shaped_by_a_grammar_does_not_go_on_from_ids(subject: Any) -> None:
    with pytest.raises(FelloeError) as caught:
        await subject.ask(max_tokens=9, response_format={"type": "json_object"}, resume=TokenResume((1, 2)))
    assert caught.value.code == "resume_diverged"
