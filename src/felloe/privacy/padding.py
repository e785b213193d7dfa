"""How large a plaintext is made before it is sealed, so that its size tells little: pure arithmetic.

An observer of sizes learns the bucket only. Buckets are powers of two, so a bucket names at most the length's
magnitude; the smallest for an answer is larger than the event of one token, so short and long tokens look alike.
"""

CHUNK = 1 << 14
"""The largest plaintext of one OHTTP chunk, in bytes: what every receiver of chunked OHTTP accepts."""

SMALLEST_ANSWER = 512
SMALLEST_REQUEST = 1024
LARGEST_REQUEST = (8 << 20) + CHUNK
"""Room for a body of 8 MiB and what surrounds it."""


def answer_bucket(length: int) -> int:
    """The padded length of an answer's chunk whose content takes `length` bytes; `ValueError` beyond `CHUNK`."""
    if length <= SMALLEST_ANSWER:
        return SMALLEST_ANSWER
    if length > CHUNK:
        raise ValueError("the content does not fit a chunk")
    return 1 << (length - 1).bit_length()


def request_bucket(length: int) -> int:
    """The padded length of a request that takes `length` bytes; `ValueError` beyond `LARGEST_REQUEST`."""
    if length > LARGEST_REQUEST:
        raise ValueError("the request is too large")
    return min(max(SMALLEST_REQUEST, 1 << (length - 1).bit_length()), LARGEST_REQUEST)
