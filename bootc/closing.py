# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What holds descriptors or processes until it is closed, as a context manager."""

from __future__ import annotations

from abc import ABC, abstractmethod

# `typing` is not imported when the program runs: start-up time is felt.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class Closing(ABC):
    """A context manager that closes itself at the end of the block, whatever happened in it."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Give back what is held; a second time that does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
