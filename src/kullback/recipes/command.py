"""`kullback recipes`: list the recipes, or run one. `register` hooks them into the command line."""

import difflib
import importlib
import inspect
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kullback._errors import BadInput
from kullback.kit.ending import ending

from . import NAMES
from .shared import Result, one_thread, show


def register(app: typer.Typer) -> None:
    """Add `recipes` to the commands of `app`."""
    app.add_typer(recipes, name="recipes")


recipes = typer.Typer(
    help="Small training scripts, one for every use of KL, each beside its baseline.",
    add_completion=False,
    rich_markup_mode=None,
)


def describe() -> dict[str, str]:
    """Name to one line, the first of the recipe's own docstring."""
    return {name: (inspect.getdoc(_module(name)) or "").splitlines()[0] for name in NAMES}


def run_recipe(name: str, *, seeds: int | None = None, steps: int | None = None, out: Path | None = None) -> Result:
    """Run one recipe by name; what is None is the recipe's own default.

    Raises: BadInput for an unknown name or a setting that cannot be used, MissingExtra for a missing package.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise BadInput(f"there is no recipe {name!r}; {guess}Recipes: {', '.join(NAMES)}")
    given = {key: value for key, value in (("seeds", seeds), ("steps", steps)) if value is not None}
    with one_thread():
        result: Result = _module(name).run(**given, out=out)
    return result


@recipes.callback(invoke_without_command=True)
def listing(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the recipes."""
    if context.invoked_subcommand is not None:
        return
    with ending("kullback recipes"):
        lines = describe()
        if as_json:
            print(json.dumps(lines, indent=2, ensure_ascii=False))
            return
        width = max(map(len, lines))
        for name, line in lines.items():
            print(f"{name:<{width}}  {line}")
        print("\nRun one with: kullback recipes run NAME")


@recipes.command("run")
def run_command(
    name: Annotated[str, typer.Argument(help="A name from `kullback recipes`.")],
    steps: Annotated[int | None, typer.Option(help="Training steps (or what the recipe counts instead).")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds.")] = None,
    out: Annotated[Path | None, typer.Option(help="Picture file, .svg, .png or .pdf; NAME.svg unless given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run one recipe: train, compare with the baseline, print a table, write a picture."""
    with ending("kullback recipes"):
        target = Path(f"{name}.svg") if out is None and name in NAMES else out
        result = run_recipe(name, seeds=seeds, steps=steps, out=target)
        if as_json:
            print(json.dumps({**result.to_json(), "picture": str(target)}, indent=2, ensure_ascii=False))
            return
        show(result)
        print(f"Picture: {target}")


def _module(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}")
