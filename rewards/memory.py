"""Where memory runs out: how it shows, and batches that halve until they fit. One answer for whatever reads or writes
with a model."""

import gc
import sys
from collections.abc import Callable, Sequence
from typing import Any

# What the CPU's allocator, cuBLAS and CUDA raise as a plain RuntimeError.
WORDS = (
    "can't allocate memory",  # DefaultCPUAllocator
    "DefaultCPUAllocator: not enough memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the card's or the machine's memory ran out (torch need not be imported to ask)."""
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)  # torch's, also of torch.cuda
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)
    return isinstance(error, MemoryError) or named or told


class Batches:
    """Work in batches of at most `size` rows, which halve where memory runs out and stay so.

    No row is left out and none is done twice. Whether the results are those of the whole batches is up to the work,
    whose rows must not depend on what they are read with.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def run(
        self, work: Callable[[Sequence[Any]], Sequence[Any]], rows: Sequence[Any], at_most: int | None = None
    ) -> list[Any]:
        """What `work(batch)` returns, one result for each row, in their order; `at_most` so many at once, this time.

        Raises what `work` raises, and the error of memory where a single row does not fit.
        """
        done: list[Any] = []
        while len(done) < len(rows):
            batch = rows[len(done) : len(done) + min(self.size, at_most or self.size)]
            try:
                found = work(batch)
            except Exception as error:
                if len(batch) == 1 or not is_out_of_memory(error):
                    raise
                found = None
            if found is None:  # out of the handler, whose traceback holds what the batch had allocated
                self.size = len(batch) // 2
                _free()
                continue
            if len(found) != len(batch):
                raise ValueError(f"a batch of {len(batch)} rows gave {len(found)} results, expected one for each")
            done += found
        return done


def _free() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
