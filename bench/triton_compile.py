"""Compile the Triton kernels ahead of time, without a GPU, and say what they take: registers, spills, shared memory.

    python bench/triton_compile.py                 every generator, sm_80 and sm_90, and gfx942
    python bench/triton_compile.py --quick         KL alone, bfloat16
    python bench/triton_compile.py --markdown      the table of docs/performance-gpu.md

It proves that the kernels compile and fit, not that they are right (the interpreter's tests do that) nor that they are
fast (`bench/gpu.py` does, on a GPU). TRITON_INTERPRET must not be set.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kullback.core.readings import LabelsReading, LogitsReading, LogProbsReading, ProbsReading, Reading
from kullback.core.reduction import GeneratorSum, LogAffinity, Sum
from kullback.divergences import TABLE
from kullback.engines.triton import kernels, launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTER = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
LONG_ROW = 128_256
PTXAS = Path(triton.backends.nvidia.__file__).parent / "bin" / "ptxas"


@dataclass(frozen=True)
class Taken:
    """What one compiled kernel takes; registers are per thread, spills and shared memory in bytes."""

    target: str
    kernel: str
    formula: str
    readings: str
    dtype: str
    rows: int
    columns: int
    warps: int
    registers: int
    spills: int
    shared: int


def variants(quick: bool) -> Iterator[tuple[str, Sum, Reading, Reading, torch.dtype]]:
    """Every generator on logits, and every reading under KL."""
    logits = LogitsReading()
    seen = []
    for divergence in TABLE:
        for total in divergence.sums:
            if total not in seen:
                seen.append(total)
                yield _name(total), total, logits, logits, torch.bfloat16
                if quick:
                    return
    kl = seen[0]
    yield "kl", kl, logits, logits, torch.float32
    yield "kl", kl, logits, logits, torch.float64
    yield "kl", kl, LogitsReading(2.0), LogitsReading(3.0), torch.bfloat16
    yield "kl", kl, LogProbsReading(), logits, torch.float32
    yield "kl", kl, ProbsReading(), ProbsReading(), torch.float32
    yield "kl", kl, LabelsReading(LONG_ROW, 0.1), logits, torch.bfloat16


def _name(total: Sum) -> str:
    if isinstance(total, LogAffinity):
        return f"log_affinity({total.order:g})"
    assert isinstance(total, GeneratorSum)
    generator = total.generator
    number = getattr(generator, "order", getattr(generator, "weight", None))
    name = getattr(generator, "__name__", type(generator).__name__)
    return name if number is None else f"{name}({number:g})"


def compile_one(
    kernel: str, target: str, total: Sum, left: Reading, right: Reading, dtype: torch.dtype, columns: int = LONG_ROW
) -> tuple[Any, launch.Tile]:
    """The kernel as `launch` would ask for it on aligned rows."""
    setting = launch.settings(total, left, right, dtype, dtype, columns)
    size = launch.tile(columns, setting, dtype, dtype)
    constants: dict[str, Any] = {"ROWS": size.rows, "BLOCK": size.columns}
    if kernel == "forward":
        constants |= {name: setting[name] for name in launch.FORWARD} | {"KEEP": True}
    else:
        wanted = not isinstance(left, LabelsReading), not isinstance(right, LabelsReading)
        constants |= {name: setting[name] for name in launch.BACKWARD}
        constants |= {"TO_X": wanted[0], "TO_Y": wanted[1], "SPAN": size.span}
    sides = ("i64" if isinstance(side, LabelsReading) else POINTER[dtype] for side in (left, right))
    pointers = dict(zip(("x_ptr", "y_ptr"), sides, strict=True)) | {
        "values_ptr": "fp64",
        "stats_ptr": "fp64",
        "upstream_ptr": "fp64",
        "to_x_ptr": POINTER[dtype],
        "to_y_ptr": POINTER[dtype],
    }
    function = getattr(kernels, kernel)
    signature, aligned = {}, {}
    for i, parameter in enumerate(function.params):
        if parameter.name in constants:
            signature[parameter.name] = "constexpr"
            continue
        signature[parameter.name] = "*" + pointers[parameter.name] if parameter.name in pointers else (
            parameter.annotation_type or "i32"
        )  # fmt: skip
        if parameter.name in pointers or parameter.name in ("V", "x_stride", "y_stride"):
            aligned[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constants, aligned)
    options = {"num_warps": size.warps} if target.startswith("gfx") else size.options
    return triton.compile(source, target=TARGETS[target], options=options), size


def taken(kernel: str, target: str, formula: str, *what: Any) -> Taken:
    """Compile, and read the registers and spills off the assembler."""
    compiled, size = compile_one(kernel, target, *what)
    _, left, right, dtype = what
    registers, spills = (
        _amd(compiled.asm["amdgcn"]) if target.startswith("gfx") else _ptxas(compiled.asm["ptx"], target)
    )
    readings = "/".join(type(side).__name__.removesuffix("Reading") for side in (left, right))
    if getattr(left, "temperature", 1.0) != 1.0:
        readings += ", tempered"
    return Taken(
        target, kernel, formula, readings, str(dtype).removeprefix("torch."), *size[:2], size.warps, registers, spills,
        compiled.metadata.shared,
    )  # fmt: skip


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
    head = ["formula", "readings", "dtype", "tile", *targets]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    variants = dict.fromkeys((t.formula, t.readings, t.dtype, f"{t.rows} x {t.columns}") for t in found)
    for variant in variants:
        cells = []
        for target in targets:
            both = [
                t for t in found if t.target == target and (t.formula, t.readings, t.dtype) == variant[:3]
            ]  # forward, backward
            cells.append(" / ".join(str(t.registers) for t in both) + f", {sum(t.spills for t in both)}")
        lines.append("| " + " | ".join([*variant, *cells]) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    options = parser.parse_args()
    found = [
        taken(kernel, target, *variant)
        for target in options.targets
        for variant in variants(options.quick)
        for kernel in ("forward", "backward")
    ]
    if options.markdown:
        print(table(found))
    else:
        print(json.dumps({"triton": triton.__version__, "kernels": [asdict(t) for t in found]}, indent=1))
    return 1 if any(t.spills for t in found) else 0


if __name__ == "__main__":
    sys.exit(main())
