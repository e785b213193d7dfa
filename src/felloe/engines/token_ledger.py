"""Which token ids produced exactly which text: llama.cpp's chunks in, (text, ids) pairs out.

Theory of operation. A chunk carries at most one id, but its text may belong to several tokens:

- While the end of the text could begin a stop string, chunks come with an id and empty text; a later chunk brings all.
- While the text ends inside a UTF-8 character, no chunk comes at all; the next one has the character, only its own id,
  and a `tokens_predicted` that grew by more than one. The ids in between are unknown (None) until somebody finds them.
- The end-of-text token comes as an id without text, or, when text was held back for a stop string, with that text.

So ids wait for their text. A text that belongs to several tokens waits for the next chunk as well, because only then
it is known that the last of its ids does not end the answer: continuing after such an id would be wrong.
"""

from typing import NamedTuple

from msgspec import Struct

from felloe.engines.logprobs import Probability


class Chunk(Struct, gc=False):
    """One event of llama.cpp's /completion stream, as far as it is read here."""

    content: str = ""
    tokens: tuple[int, ...] = ()
    stop: bool = False
    tokens_predicted: int = 0
    completion_probabilities: list[Probability] | None = None


class Release(NamedTuple):
    """Text that may go out, with its ids; None stands for an id that the engine did not tell."""

    text: str
    ids: tuple[int | None, ...]
    probabilities: tuple[Probability, ...] = ()


class TokenLedger:
    """`number` counts the tokens whose text is out; it starts at `base` in a resumed answer."""

    def __init__(self, base: int) -> None:
        self.number = base
        self._seen = 0
        self._text = ""
        self._ids: list[int | None] = []
        self._probabilities: list[Probability] = []
        self._deferred: Release | None = None

    def add(self, chunk: Chunk) -> Release | None:
        """What may go out now that `chunk` has come."""
        grown = chunk.tokens_predicted - self._seen
        self._seen = chunk.tokens_predicted
        if grown == 1 and chunk.content and not self._ids and self._deferred is None and len(chunk.tokens) == 1:
            self.number += 1
            return Release(chunk.content, chunk.tokens, tuple(chunk.completion_probabilities or ()))
        return self._add_slowly(chunk, grown)

    def _add_slowly(self, chunk: Chunk, grown: int) -> Release | None:
        out = self._take_deferred()
        self._ids.extend([None] * max(0, grown - len(chunk.tokens)))
        self._ids.extend(chunk.tokens)
        self._text += chunk.content
        self._probabilities.extend(chunk.completion_probabilities or ())
        if chunk.content:
            release = self._take_held()
            if len(release.ids) == 1:
                out = _merge(out, release)
            else:
                self._deferred = release
        if out is not None:
            self.number += len(out.ids)
        return out

    def finish(self) -> Release | None:
        """What is still held when the engine has said that the answer ends."""
        out = self._take_deferred()
        if self._text or self._ids:
            out = _merge(out, self._take_held())
        if out is None or not out.text:
            return None
        self.number += len(out.ids)
        return out

    def _take_deferred(self) -> Release | None:
        deferred, self._deferred = self._deferred, None
        return deferred

    def _take_held(self) -> Release:
        release = Release(self._text, tuple(self._ids), tuple(self._probabilities))
        self._text, self._ids, self._probabilities = "", [], []
        return release


def _merge(first: Release | None, second: Release) -> Release:
    if first is None:
        return second
    return Release(first.text + second.text, first.ids + second.ids, first.probabilities + second.probabilities)


def fill_unknown(ids: tuple[int | None, ...], candidate: list[int]) -> tuple[int, ...] | None:
    """`candidate`, if it agrees with every id that is known and with their count; else None.

    `candidate` is how the tokenizer writes the same text; a model may have chosen other tokens for it.
    """
    if len(ids) != len(candidate):
        return None
    if any(known is not None and known != guess for known, guess in zip(ids, candidate, strict=True)):
        return None
    return tuple(candidate)
