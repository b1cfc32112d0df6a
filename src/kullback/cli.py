"""The command `kullback`: gathers the sub-commands, each of which lives beside the work it starts."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def app() -> "typer.Typer":
    """The command line; made on call, because it needs packages that `import kullback` does not."""
    import typer

    from .compare.command import kl
    from .distill.command import distill
    from .recipes.command import register as register_recipes

    commands = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    commands.command()(distill)
    commands.command()(kl)
    register_recipes(commands)

    @commands.callback()
    def kullback() -> None:
        """The Kullback-Leibler divergence and its relatives: to measure with, to train with, to trust."""

    return commands


def main() -> None:
    """Entry point. Bad input ends with one line and exit code 2, Ctrl-C with 130."""
    try:
        commands = app()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "kullback":
            raise
        print(
            f"kullback: the package {error.name!r} is not installed; write: pip install 'kullback[distill]'",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    commands()


if __name__ == "__main__":
    main()
