"""The tokenizer: byte-level BPE with the special tokens of the chat form.

Source: Sennrich et al. 2016 for BPE; the byte alphabet and the word pattern are those of GPT-2, which
llama.cpp knows as the pre-tokenizer `gpt-2`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from felloe.learning.chat import SPECIAL_TOKENS
from felloe.learning.corpus import CorpusError

PRE_TOKENIZER = "gpt-2"
"""The name under which llama.cpp knows this word pattern."""


@dataclass(frozen=True)
class Vocabulary:
    """What an exporter needs: `tokens[i]` spells token i in the byte alphabet; `merges` go by rank."""

    tokens: tuple[str, ...]
    merges: tuple[str, ...]

    def id_of(self, token: str) -> int:
        """The id of a token that is known to exist."""
        return self.tokens.index(token)


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Learn exactly `size` tokens, the special ones first; raises CorpusError if the text has fewer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (learned := tokenizer.get_vocab_size()) != size:
        raise CorpusError(f"the text yields {learned} tokens, the recipe asks for {size}: ask for fewer")
    return tokenizer


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Take the tokens and merges out of a trained tokenizer."""
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    # Releases of `tokenizers` write a merge as one text or as a pair.
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    return Vocabulary(tuple(tokens), tuple(merges))


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a special token; raises KeyError if this tokenizer was trained without it."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(token)
    return found
