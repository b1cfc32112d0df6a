"""What a run of llama.cpp's perplexity tool with `--kl-divergence` printed: its three blocks, and its line a chunk."""

import re
from dataclasses import dataclass
from pathlib import Path

from kullback._errors import BadInput

from .statistics import DIVERGENCE, PERPLEXITY, PROBABILITY

TITLES = (PERPLEXITY, DIVERGENCE, PROBABILITY)
_NUMBER = r"([-+]?(?:nan|inf|\d+(?:\.\d+)?(?:e[-+]?\d+)?))"
_ERROR = rf"(?:\s*\S{{1,4}}\s+{_NUMBER})?"  # "±", in whatever encoding the terminal left it
_TITLE = re.compile(r"=+ (.+? statistics) =+\s*$")
_LINE = re.compile(
    rf"((?:Mean|Cor|Maximum|Median|Minimum|RMS|Same|\d+\.\d%).*?)\s*:\s*{_NUMBER}{_ERROR}\s*(%?)\s*$", re.I
)
_HEADING = re.compile(r"chunk\s+PPL\s+ln\(PPL\(Q\)/PPL\(base\)\)")
_CHUNK = re.compile(r"(\d+)" + rf"\s+{_NUMBER}{_ERROR}" * 3 + rf"\s+{_NUMBER}{_ERROR}\s*%" * 2 + r"\s*$", re.I)
CHUNK = ("Mean PPL(Q)", "Mean ln(PPL(Q)/PPL(base))", "Mean KLD", "RMS Δp", "Same top p")


@dataclass(frozen=True)
class Printed:
    """A number, its ± as if tokens were independent (None where none is printed), and its unit, "%" or nothing."""

    value: float
    error: float | None
    unit: str


@dataclass(frozen=True)
class LlamaLog:
    """What was printed.

    Args:
        blocks: title -> name -> number, by the names of `statistics`: blocks["KL divergence statistics"]["Mean KLD"].
        chunks: after each chunk, over all until then, by the names in `CHUNK`.
    """

    blocks: dict[str, dict[str, Printed]]
    chunks: tuple[dict[str, Printed], ...]

    def __getitem__(self, name: str) -> Printed:
        """By its name, in whatever block."""
        for block in self.blocks.values():
            if name in block:
                return block[name]
        raise KeyError(name)

    def __contains__(self, name: str) -> bool:
        return any(name in block for block in self.blocks.values())


def read(path: Path) -> LlamaLog:
    """The log in a file, in whatever encoding. Raises: BadInput, as `parse`, or no such file."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"  # PowerShell's > writes UTF-16
    return parse(raw.decode(encoding, errors="replace"), str(path))


def parse(text: str, whose: str = "the log") -> LlamaLog:
    """The blocks of one run.

    Raises: BadInput: a block is missing, twice there, or without the number that it is named for.
    """
    blocks: dict[str, dict[str, Printed]] = {}
    chunks: list[dict[str, Printed]] = []
    block: dict[str, Printed] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        title = _TITLE.search(line)
        if title:
            block = None
            if title[1] in TITLES:
                if title[1] in blocks:
                    raise BadInput(f"{whose}: line {number} begins a second {title[1]!r}; give the log of one run")
                block = blocks[title[1]] = {}
        elif block is not None and (found := _LINE.search(line)):
            block[_name(found[1], block is blocks.get(PROBABILITY))] = _printed(found[2], found[3], found[4])
        elif found := _CHUNK.search(line):
            numbers = found.groups()[1:]
            units = ("", "", "", "%", "%")
            chunks.append(
                {name: _printed(numbers[2 * k], numbers[2 * k + 1], units[k]) for k, name in enumerate(CHUNK)}
            )
    _refuse_missing(blocks, chunks, bool(_HEADING.search(text)), whose)
    return LlamaLog(blocks, tuple(chunks))


def _refuse_missing(
    blocks: dict[str, dict[str, Printed]], chunks: list[dict[str, Printed]], ran: bool, whose: str
) -> None:
    wanted = dict(zip(TITLES, ("Mean PPL(Q)", "Mean KLD", "Mean Δp"), strict=True))
    missing = [title for title in TITLES if wanted[title] not in blocks.get(title, {})]
    if not missing:
        return
    if not blocks and (chunks or ran):
        raise BadInput(
            f"{whose}: has {len(chunks)} lines of chunks but no statistics. llama.cpp prints them at the end of a run, "
            "and only for 100 scored tokens or more"
        )
    raise BadInput(
        f"{whose}: has no {missing[0]!r} of llama.cpp. It is what its perplexity tool prints with --kl-divergence "
        "--kl-divergence-base FILE"
    )


def _name(written: str, of_probability: bool) -> str:
    name = " ".join(written.split())
    return re.sub(r" \S{1,4}p$", " Δp", name) if of_probability and not name.startswith("Same") else name


def _printed(value: str, error: str | None, unit: str) -> Printed:
    return Printed(float(value), None if error is None else float(error), unit)
