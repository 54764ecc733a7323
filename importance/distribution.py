"""A piece of work is always computed alone and in one thread, so that it gives the same bits wherever it runs."""

from collections.abc import Callable
from typing import TypeVar

import torch

Shared = TypeVar("Shared")
Piece = TypeVar("Piece")
Result = TypeVar("Result")


def in_one_thread(function: Callable[[Shared, Piece], Result], shared: Shared, piece: Piece) -> Result:
    """function(shared, piece) while torch has one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(shared, piece)
    finally:
        torch.set_num_threads(threads)
