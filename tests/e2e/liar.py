"""A node that lies, for the tests: every tenth chunk that it serves has a wrong byte. Honest nodes check each."""

from collections.abc import Callable

from felloe.catalog.gathering import Gathering
from felloe.catalog.incoming import Blob
from felloe.catalog.transfer import serving
from felloe.cli import main


def lying(
    read: Callable[[Blob | Gathering, int], bytes | None],
) -> Callable[[Blob | Gathering, int], bytes | None]:
    def lie(source: Blob | Gathering, chunk: int) -> bytes | None:
        data = read(source, chunk)
        return data if data is None or chunk % 10 != 3 else bytes([data[0] ^ 1]) + data[1:]

    return lie


serving._read = lying(serving._read)  # pyright: ignore[reportPrivateUsage]

if __name__ == "__main__":
    main()
