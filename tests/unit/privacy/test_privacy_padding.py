"""Padding makes sizes tell little."""

import pytest

from felloe.privacy.padding import CHUNK, LARGEST_REQUEST, answer_bucket, request_bucket


def test_answers_take_one_of_six_sizes() -> None:
    assert {answer_bucket(length) for length in range(CHUNK + 1)} == {512, 1024, 2048, 4096, 8192, 16384}


@pytest.mark.parametrize(("length", "bucket"), [(0, 512), (512, 512), (513, 1024), (8193, 16384), (16384, 16384)])
def test_an_answer_takes_the_next_power_of_two(length: int, bucket: int) -> None:
    assert answer_bucket(length) == bucket


@pytest.mark.parametrize(
    ("length", "bucket"),
    [
        (0, 1024),
        (1, 1024),
        (1024, 1024),
        (1025, 2048),
        (1 << 20, 1 << 20),
        ((8 << 20) + 1, LARGEST_REQUEST),
        (LARGEST_REQUEST, LARGEST_REQUEST),
    ],
)
def test_a_request_takes_the_next_power_of_two_up_to_the_largest(length: int, bucket: int) -> None:
    assert request_bucket(length) == bucket


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk"):
        answer_bucket(CHUNK + 1)
    with pytest.raises(ValueError, match="too large"):
        request_bucket(LARGEST_REQUEST + 1)
