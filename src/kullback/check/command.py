"""The sub-command `kullback check`: options, printing, exit codes.

Exit codes: 0 nothing found, 1 findings, 2 error.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

import kullback
from kullback._errors import BadInput
from kullback.kit.ending import BAD_INPUT, ending, near
from kullback.kit.files import check_file, dump_json, write_json

from .checking import Checked, check_paths, chosen
from .fixes import fix_files
from .formats import document, explanation, line, sarif, summary
from .rules import RULES, Rule

FOUND = 1


def check(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Python files, and folders of them.", metavar="PATH...")
    ] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(help="Only rules whose codes begin so; commas between, or repeated.", metavar="CODE,..."),
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Leave these rules out.", metavar="CODE,...")] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what is safe, and show the difference.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show what --fix would do; change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    sarif_file: Annotated[
        Path | None, typer.Option("--sarif", help="Write SARIF 2.1.0 to this file as well.", metavar="FILE")
    ] = None,
    explain: Annotated[str | None, typer.Option(help="Say what a rule finds, and why.", metavar="CODE")] = None,
) -> None:
    """Find misuse of KL in Python code, without running it.

    Exit code 0: nothing found; 1: findings; 2: something could not be read. A comment `# noqa: KLB003` excuses a line.
    """
    with ending("kullback check"):
        if explain is not None:
            print(explanation(_rule(explain)))
            return
        if not paths:
            raise BadInput("there is nothing to check; write kullback check PATH, such as kullback check src")
        if fix and diff:
            raise BadInput("--fix changes files, --diff does not; write one of them")
        if as_json and (fix or diff):
            raise BadInput("--json prints one document and --fix or --diff a difference; write one of them")
        if sarif_file is not None:
            check_file("--sarif", sarif_file, (".sarif", ".json"))
        rules = chosen(_codes(select), _codes(ignore))
        checked = check_paths(paths, rules)
        if fix or diff:
            print(fix_files(checked.findings, rules, write=fix), end="")
        if fix:
            checked = check_paths(paths, rules)
        if sarif_file is not None:
            write_json(sarif_file, sarif(checked, kullback.__version__))
        _show(checked, as_json)
    raise SystemExit(BAD_INPUT if checked.errors else FOUND if checked.findings else 0)


def _show(checked: Checked, as_json: bool) -> None:
    if as_json:
        print(dump_json(document(checked, kullback.__version__)))
    else:
        for one in checked.findings:
            print(line(one))
        print(summary(checked))
    for error in checked.errors:
        print(f"kullback check: {' '.join(error.split())}", file=sys.stderr)


def _codes(given: list[str] | None) -> tuple[str, ...]:
    return tuple(code.strip().upper() for each in given or () for code in each.split(","))


def _rule(code: str) -> Rule:
    if code.upper() not in RULES:
        raise BadInput(f"there is no rule {code!r}; nearest: {near(code, list(RULES))}")
    return RULES[code.upper()]
