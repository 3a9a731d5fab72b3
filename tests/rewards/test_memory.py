"""Where memory runs out: what says so, and batches that halve, lose nothing and stay halved."""

from collections.abc import Sequence

import pytest

from rewards.memory import Batches, is_out_of_memory


def raised(function: object, *args: object) -> Exception:
    with pytest.raises(Exception) as caught:
        function(*args)  # type: ignore[operator]
    return caught.value


def test_what_says_that_memory_ran_out() -> None:
    import torch

    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    allocator = raised(torch.empty, 2**50)  # the CPU's: a RuntimeError
    assert "DefaultCPUAllocator: can't allocate memory" in str(allocator) and is_out_of_memory(allocator)
    assert is_out_of_memory(raised(bytearray, 2**60))  # Python's own
    cublas = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    assert is_out_of_memory(RuntimeError(cublas))


def test_what_does_not() -> None:
    mismatch = RuntimeError("The size of tensor a (165) must match the size of tensor b (169)")
    for error in (mismatch, KeyError("out of memory"), ValueError("CUDA out of memory, said a user's text")):
        assert not is_out_of_memory(error)


class Engine:
    """Doubles numbers, as many at once as it has room for, and keeps how many it was given."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.given: list[int] = []

    def __call__(self, batch: Sequence[int]) -> list[int]:
        self.given.append(len(batch))
        if len(batch) > self.room:
            raise MemoryError
        return [2 * number for number in batch]


def test_batches_halve_twice_and_stay_so() -> None:
    engine, batches = Engine(room=2), Batches(8)
    assert batches.run(engine, range(11)) == [2 * number for number in range(11)]
    assert engine.given == [8, 4, 2, 2, 2, 2, 2, 1]
    assert batches.run(engine, [7, 8, 9]) == [14, 16, 18]
    assert engine.given[8:] == [2, 1]


def test_a_bound_holds_for_one_call() -> None:
    engine, batches = Engine(room=8), Batches(8)
    assert batches.run(engine, range(5), 2) == [0, 2, 4, 6, 8]
    batches.run(engine, range(8))
    assert engine.given == [2, 2, 1, 8]
    assert Batches(4).run(engine, []) == []


def test_a_row_that_does_not_fit_and_a_bug_are_raised() -> None:
    engine = Engine(room=0)
    with pytest.raises(MemoryError):
        Batches(4).run(engine, range(4))
    assert engine.given == [4, 2, 1]

    def buggy(batch: Sequence[int]) -> list[int]:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        Batches(4).run(buggy, range(4))
    with pytest.raises(ValueError, match="a batch of 3 rows gave 1 results"):
        Batches(4).run(lambda batch: [1], range(3))
