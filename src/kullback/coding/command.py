"""The sub-command `kullback code`: options, printing."""

import math
from typing import Annotated, cast

import typer

from kullback._errors import BadInput
from kullback.kit.ending import ending
from kullback.kit.files import dump_json
from kullback.kit.terminal import pairs, show_table

from .bill import Bill, bill
from .coder import Method
from .sources import alphabet, data, model


def code(
    p: Annotated[
        str,
        typer.Argument(
            help="The reference: a file whose bytes are counted, python:license, python:this or python:topics, "
            "probabilities such as 0.5,0.3,0.2, or kt, which learns as it goes.",
            metavar="P",
        ),
    ],
    q: Annotated[str, typer.Argument(help="What is taken for it, written as P.", metavar="Q")],
    text: Annotated[
        str,
        typer.Argument(
            help="What is encoded: a file, python:NAME, or draw:N symbols from P. Beside probabilities a file holds "
            "whole numbers from 0.",
            metavar="DATA",
        ),
    ],
    coder: Annotated[str, typer.Option(help="range or ans.", metavar="NAME")] = "range",
    prior: Annotated[
        float, typer.Option(help="Added to each count of a text, unless it is DATA itself.", metavar="NUMBER")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Of draw:N.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Pay for KL in real bits: encode DATA with the codes of P and of Q, decode it, and compare with n·KL(P‖Q)."""
    with ending("kullback code"):
        if coder not in ("range", "ans"):
            raise BadInput(f"--coder {coder!r} is unknown; write range or ans")
        if not 0.0 <= prior < math.inf:
            raise BadInput(f"--prior is {prior:g}; write 0 or more")
        size = alphabet(p, q)
        own, other = (model(each, size, 0.0 if each == text else prior) for each in (p, q))
        found = bill(own, other, data(text, size, own, seed), cast(Method, coder))
        if as_json:
            print(dump_json(document(found)))
        else:
            _show(found)
    raise SystemExit(0 if found.same else 1)


def document(found: Bill) -> dict[str, object]:
    """For programs."""
    costs = {
        name: {"bits": cost.bits, "ideal": cost.ideal, "overhead": cost.overhead}
        for name, cost in (("p", found.p), ("q", found.q))
    }
    return {
        "symbols": found.number,
        "alphabet": found.size,
        "coder": found.method,
        **costs,
        "extra_bits": found.extra,
        "n_kl_bits": found.predicted,
        "exact_extra_bits": found.exact,
        "decoded_back": found.same,
    }


def _show(found: Bill) -> None:
    rows = [
        (f"code of {name}", f"{cost.bits:,}", f"{cost.ideal:,.1f}", f"{cost.overhead:+,.1f}")
        for name, cost in (("P", found.p), ("Q", found.q))
    ]
    rows.append(("the difference", f"{found.extra:,}", f"{found.exact:,.1f}", f"{found.extra - found.exact:+,.1f}"))
    show_table(("", "bits", "ideal", "coder's overhead"), rows, of="code", width=90)
    known = "-" if found.predicted is None else f"{found.predicted:,.1f} bits"
    print()
    print(
        pairs(
            [
                ("n·KL(P‖Q)", known),
                ("symbols", f"{found.number:,} of an alphabet of {found.size}, {found.method} coder"),
                ("decoded", "both to the same data" if found.same else "NOT to the same data"),
            ]
        )
    )
