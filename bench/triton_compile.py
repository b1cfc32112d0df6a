"""Compile the Triton kernels ahead of time, without a GPU, and say what they take: registers, spills, shared memory.

    python bench/triton_compile.py                 every generator and reading, for sm_80, sm_90 and gfx942
    python bench/triton_compile.py --quick         KL alone, bfloat16 and float64
    python bench/triton_compile.py --markdown      the table of docs/performance-gpu.md

The kernels are launched as they would be on a GPU, by `launch` and Triton's own launcher, but for a driver that stands
for the target and runs nothing. It proves that they bind, compile and fit, not that they are right (the interpreter's
tests do that) nor that they are fast (`bench/gpu.py` does, on a GPU). TRITON_INTERPRET must not be set.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from kullback.core.readings import LabelsReading, LogitsReading, LogProbsReading, ProbsReading, Reading
from kullback.core.reduction import Sum
from kullback.divergences import TABLE
from kullback.engines.call import Call
from kullback.engines.triton import launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
LONG_ROW = 128_256
PTXAS = Path(triton.backends.nvidia.__file__).parent / "bin" / "ptxas"


@dataclass(frozen=True)
class Taken:
    """What one compiled kernel takes; registers are per thread, spills and shared memory in bytes.

    `float32` counts mentions of that type in the kernel's intermediate code: none where all is float64, or digits are
    lost on the way.
    """

    target: str
    kernel: str
    formula: str
    readings: str
    dtype: str
    num_columns: int
    rows: int
    columns: int
    warps: int
    registers: int
    spills: int
    shared: int
    float32: int


class Variant(NamedTuple):
    total: Sum
    left: Reading
    right: Reading
    dtype: torch.dtype
    num_columns: int = LONG_ROW


def variants(quick: bool) -> Iterator[Variant]:
    """Every generator on logits; under KL, every reading and dtype, and rows of other lengths."""
    logits, tempered = LogitsReading(), LogitsReading(0.7)
    kl = TABLE[0].sums[0]
    yield Variant(kl, logits, logits, torch.bfloat16)
    yield Variant(kl, tempered, logits, torch.float64)
    if quick:
        return
    seen = {("kl", "fp32")}
    for total in (total for divergence in TABLE for total in divergence.sums):
        # another order or weight is another constant, not other code
        width = launch.settings(_call(total, logits, logits, torch.bfloat16, LONG_ROW))["T"].name
        key = str(total).partition("(")[0], width
        if key not in seen:
            seen.add(key)
            yield Variant(total, logits, logits, torch.bfloat16)
            yield Variant(total, tempered, tempered, torch.float64, 33)
    yield Variant(kl, logits, logits, torch.float32)
    yield Variant(kl, logits, logits, torch.float64)
    yield Variant(kl, LogitsReading(2.0), LogitsReading(3.0), torch.bfloat16)
    yield Variant(kl, LogProbsReading(), logits, torch.float32)
    yield Variant(kl, ProbsReading(), ProbsReading(), torch.float32)
    yield Variant(kl, LabelsReading(LONG_ROW, 0.1), logits, torch.bfloat16)
    yield Variant(kl, LabelsReading(1_025, 0.1), logits, torch.float64, 1_025)
    for num_columns in (1, 2, 33, 200, 1_025):
        yield Variant(kl, logits, tempered, torch.float16, num_columns)


def _call(total: Sum, left: Reading, right: Reading, dtype: torch.dtype, num_columns: int) -> Call:
    dtypes = tuple(torch.int64 if isinstance(side, LabelsReading) else dtype for side in (left, right))
    return Call(total, left, right, dtypes, "cuda", num_columns)


class NoDriver:
    """Stands for a GPU that is not there."""

    def __init__(self, target: str) -> None:
        self.target = TARGETS[target]
        self.device = list(TARGETS).index(target)  # Triton keeps compiled kernels by device

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def instead_of_launching(target: str) -> Iterator[dict[str, Any]]:
    """Kernels that are launched inside are compiled, and kept by name, and do not run."""
    compiled: dict[str, Any] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled[self.__name__] = run(self, *args, grid=grid, warmup=True, **kwargs)

    hip = "7.0" if target.startswith("gfx") else None
    driver.set_active(NoDriver(target))
    with mock.patch.object(JITFunction, "run", compile_only), mock.patch.object(torch.version, "hip", hip):
        yield compiled


def taken(target: str, variant: Variant) -> list[Taken]:
    """Compile forward and backward, and read what they take off the assembler."""
    total, left, right, dtype, num_columns = variant
    x, y = (
        torch.zeros(2, dtype=torch.int64)
        if isinstance(side, LabelsReading)
        else torch.zeros(2, num_columns, dtype=dtype)
        for side in (left, right)
    )
    wanted = x.is_floating_point(), y.is_floating_point()
    call = _call(total, left, right, dtype, num_columns)
    with instead_of_launching(target) as compiled:
        values, stats = launch.forward(call, x, y, True)
        upstream = torch.ones_like(values)
        launch.backward(call, x, y, values, stats, upstream, wanted)
    size = launch.tile(num_columns, launch.settings(call), x.dtype, y.dtype)
    readings = "/".join(type(side).__name__.removesuffix("Reading") for side in (left, right))
    if any(getattr(side, "temperature", 1.0) != 1.0 for side in (left, right)):
        readings += ", tempered"
    found = []
    for name, kernel in compiled.items():
        amd = target.startswith("gfx")
        registers, spills = _amd(kernel.asm["amdgcn"]) if amd else _ptxas(kernel.asm["ptx"], target)
        single = len(re.findall(r"\bf32\b|xf32\b", kernel.asm["ttir"]))
        found.append(
            Taken(
                target, name, str(total), readings, str(dtype).removeprefix("torch."), num_columns, size.rows,
                size.columns, size.warps, registers, spills, kernel.metadata.shared, single,
            )
        )  # fmt: skip
    return found


def _ptxas(ptx: str, target: str) -> tuple[int, int]:
    name = "sm_90a" if ".target sm_90a" in ptx else target
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        command = [str(PTXAS), "-v", f"--gpu-name={name}", str(file), "-o", str(file.with_suffix(".cubin"))]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", said))
    return int(re.search(r"Used (\d+) registers", said)[1]), spills


def _amd(code: str) -> tuple[int, int]:
    """Vector registers, and bytes of private memory, which is where spills that count go."""
    return int(re.search(r"\.vgpr_count:\s*(\d+)", code)[1]), int(
        re.search(r"\.private_segment_fixed_size:\s*(\d+)", code)[1]
    )


def table(found: list[Taken]) -> str:
    """One line per variant; under each target the registers of forward and backward, and the bytes spilled by both."""
    targets = list(dict.fromkeys(t.target for t in found))
    head = ["formula", "readings", "dtype", "V", "tile", *targets]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    cells: dict[tuple[str, ...], dict[str, list[Taken]]] = {}
    for t in found:
        variant = (t.formula, t.readings, t.dtype, f"{t.num_columns}", f"{t.rows} x {t.columns}")
        cells.setdefault(variant, {}).setdefault(t.target, []).append(t)
    for variant, by_target in cells.items():
        both = (by_target[target] for target in targets)  # forward, backward
        numbers = [" / ".join(str(t.registers) for t in two) + f", {sum(t.spills for t in two)}" for two in both]
        lines.append("| " + " | ".join([*variant, *numbers]) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    options = parser.parse_args()
    found = [t for target in options.targets for variant in variants(options.quick) for t in taken(target, variant)]
    if options.markdown:
        print(table(found))
    else:
        print(json.dumps({"triton": triton.__version__, "kernels": [asdict(t) for t in found]}, indent=1))
    return 1 if any(t.spills for t in found) else 0


if __name__ == "__main__":
    sys.exit(main())
