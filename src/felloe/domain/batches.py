"""How many tokens our engine takes in one step, and what it keeps beside the model: what it is told, and priced at."""

PROMPT_CACHE_BYTES = 256 * 2**20
"""What one engine may keep of earlier prompts in the machine's memory."""

CELLS = 256
"""llama.cpp rounds every slot's context up to a multiple of this."""

_CHAT_TOKENS = 512
_EMBEDDING_TOKENS = 2048


def batch_tokens(context: int, slots: int, *, embedding: bool) -> int:
    """The engine's batch; `context` is one slot's, in tokens.

    Small batches: a cancelled prompt is given up between two of them, and only then is any progress told. A text to
    embed has to fit in one. A batch that the slots do not divide evenly aborts the engine when it pools embeddings.
    """
    batch = min(_EMBEDDING_TOKENS, context) if embedding else _CHAT_TOKENS
    return -(-max(batch, _CHAT_TOKENS) // slots) * slots
