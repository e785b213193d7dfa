"""From documents to the windows of token ids that training and evaluation read."""

import random
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from tokenizers import Tokenizer
from torch import Tensor

from felloe.learning.chat import BEGIN, END, render
from felloe.learning.conversations import conversations
from felloe.learning.corpus import Document

TokenIds = list[int]


def encode_documents(documents: Sequence[Document], tokenizer: Tokenizer) -> list[TokenIds]:
    """Token ids of each document, between a begin and an end token."""
    begin, end = tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END)
    encoded = tokenizer.encode_batch([document.text for document in documents])
    return [[begin, *encoding.ids, end] for encoding in encoded]


def encode_conversations(documents: Sequence[Document], tokenizer: Tokenizer) -> list[TokenIds]:
    """Token ids of every conversation that the documents give; each starts with a begin token."""
    chats = chain.from_iterable(conversations(document) for document in documents)
    encoded = tokenizer.encode_batch([render(chat) for chat in chats])
    return [[tokenizer.token_to_id(BEGIN), *encoding.ids] for encoding in encoded]


def batches(examples: Sequence[TokenIds], batch: int, window: int, seed: int) -> Iterator[Tensor]:
    """Yield batches [batch, window + 1] without end: examples in a new order each pass, packed."""
    windows = _windows(examples, window, random.Random(seed))  # noqa: S311 - an order, not a secret
    while True:
        yield torch.tensor([next(windows) for _ in range(batch)])


def _windows(examples: Sequence[TokenIds], window: int, order: random.Random) -> Iterator[TokenIds]:
    waiting: TokenIds = []
    while True:
        for example in order.sample(examples, len(examples)):
            waiting += example
            while len(waiting) > window:
                yield waiting[: window + 1]
                # The last token of a window is predicted there and is the first input of the next.
                waiting = waiting[window:]
