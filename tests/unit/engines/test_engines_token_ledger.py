"""Ids and text of a stream: together again whatever the engine held back."""

from felloe.engines.logprobs import Probability
from felloe.engines.token_ledger import Chunk, Release, TokenLedger, fill_unknown


def _run(*chunks: tuple[str, int | None, int], base: int = 0) -> tuple[list[Release], Release | None, TokenLedger]:
    """Feed (text, id, tokens predicted so far); gives what went out, and what the end gave."""
    ledger = TokenLedger(base)
    out: list[Release] = []
    for text, token, predicted in chunks:
        chunk = Chunk(content=text, tokens=() if token is None else (token,), tokens_predicted=predicted)
        release = ledger.add(chunk)
        if release is not None:
            out.append(release)
    return out, ledger.finish(), ledger


def test_one_token_one_text() -> None:
    out, rest, ledger = _run(("a", 1, 1), ("b", 2, 2))
    assert [(each.text, each.ids) for each in out] == [("a", (1,)), ("b", (2,))]
    assert rest is None
    assert ledger.number == 2


def test_a_resumed_answer_counts_on() -> None:
    _, _, ledger = _run(("a", 1, 1), base=10)
    assert ledger.number == 11


def test_ids_without_text_wait_for_it_and_one_chunk_more() -> None:
    out, rest, ledger = _run(("a", 1, 1), ("", 2, 2), ("", 3, 3), ("bcd", 4, 4), ("e", 5, 5))
    assert [(each.text, each.ids) for each in out] == [("a", (1,)), ("bcde", (2, 3, 4, 5))]
    assert rest is None
    assert ledger.number == 5


def test_the_end_token_never_goes_out_before_the_end() -> None:
    """Held text that comes out with the end token: going on after that token would be wrong."""
    out, rest, _ = _run(("a", 1, 1), ("", 2, 2), ("b", 99, 3))
    assert [each.ids for each in out] == [(1,)]
    assert rest is not None
    assert (rest.text, rest.ids) == ("b", (2, 99))


def test_an_end_token_alone_leaves_nothing() -> None:
    out, rest, ledger = _run(("a", 1, 1), ("", 99, 2))
    assert len(out) == 1
    assert rest is None
    assert ledger.number == 1


def test_ids_that_the_engine_did_not_tell_are_marked() -> None:
    out, _, ledger = _run(("a", 1, 1), ("😀", 4, 5), ("b", 6, 6))
    assert out[1] == Release("😀b", (None, None, None, 4, 6))
    assert ledger.number == 6


def test_a_gap_inside_held_text_is_marked_in_its_place() -> None:
    out, _, _ = _run(("", 1, 1), ("x😀", 5, 5), ("b", 6, 6))
    assert out == [Release("x😀b", (1, None, None, None, 5, 6))]


def test_held_probabilities_come_with_their_text() -> None:
    ledger = TokenLedger(0)
    first = Probability(token="a", logprob=-1.0)
    second = Probability(token="b", logprob=-2.0)
    third = Probability(token="c", logprob=-3.0)
    ledger.add(Chunk("", (1,), False, 1, completion_probabilities=[first]))
    ledger.add(Chunk("ab", (2,), False, 2, completion_probabilities=[second]))
    release = ledger.add(Chunk("c", (3,), False, 3, completion_probabilities=[third]))
    assert release is not None
    assert release.probabilities == (first, second, third)


def test_a_candidate_must_agree_with_all_that_is_known() -> None:
    assert fill_unknown((None, None, 3), [1, 2, 3]) == (1, 2, 3)
    assert fill_unknown((1, None, 3), [1, 2, 3]) == (1, 2, 3)
    assert fill_unknown((None, None, 4), [1, 2, 3]) is None
    assert fill_unknown((9, None, 3), [1, 2, 3]) is None
    assert fill_unknown((None, 3), [1, 2, 3]) is None
