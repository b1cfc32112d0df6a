# The C++ extension (csrc/bindings.cpp). Addresses and codes; only engines/cpu.py calls it.
from collections.abc import Sequence

_Side = tuple[int, int, int, Sequence[int], Sequence[float]]
_Sum = tuple[int, bool, Sequence[float]]

def forward(
    sum: _Sum, shape: Sequence[int], columns: int, p: _Side, q: _Side, values: int, stats: int, threads: int
) -> None: ...
def backward(
    sum: _Sum,
    shape: Sequence[int],
    columns: int,
    p: _Side,
    q: _Side,
    values: int,
    stats: int,
    upstream: int,
    upstream_strides: Sequence[int],
    to_p: int,
    to_q: int,
    threads: int,
) -> None: ...
def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def use_instruction_set(name: str) -> None: ...
def apply(which: int, narrow: bool, x: int, out: int, n: int) -> None: ...
