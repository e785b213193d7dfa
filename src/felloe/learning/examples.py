"""From documents to the windows of token ids that training and evaluation read."""

import random
from collections.abc import Iterator, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from felloe.learning.chat import BEGIN, END, render, render_tool_call
from felloe.learning.conversations import conversations
from felloe.learning.corpus import Document
from felloe.learning.tokenizer import token_id
from felloe.learning.tool_calls import tool_calls

TokenIds = list[int]


def encode_documents(documents: Sequence[Document], tokenizer: Tokenizer) -> list[TokenIds]:
    """Token ids of each document, between a begin and an end token."""
    begin, end = token_id(tokenizer, BEGIN), token_id(tokenizer, END)
    encoded = tokenizer.encode_batch([document.text for document in documents])
    return [[begin, *encoding.ids, end] for encoding in encoded]


def encode_conversations(documents: Sequence[Document], tokenizer: Tokenizer) -> list[TokenIds]:
    """Token ids of every conversation that the documents give; each starts with a begin token."""
    chats = [render(chat) for document in documents for chat in conversations(document)]
    chats += [render_tool_call(called) for document in documents for called in tool_calls(document)]
    begin = token_id(tokenizer, BEGIN)
    return [[begin, *encoding.ids] for encoding in tokenizer.encode_batch(chats)]


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
