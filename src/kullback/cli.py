"""The command `kullback`: gathers the sub-commands, each of which lives beside the work it starts."""

from typing import TYPE_CHECKING

from kullback.kit.ending import ending, fail
from kullback.kit.extras import install
from kullback.kit.terminal import spell_out

if TYPE_CHECKING:
    import typer


def app() -> "typer.Typer":
    """The command line; made on call, because it needs packages that `import kullback` does not."""
    import typer

    from .compare.command import kl
    from .data.command import drift
    from .distill.command import distill
    from .recipes.command import register as register_recipes

    commands = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    commands.command()(distill)
    commands.command()(kl)
    commands.add_typer(drift, name="drift")
    register_recipes(commands)

    @commands.callback()
    def kullback() -> None:
        """The Kullback-Leibler divergence and its relatives: to measure with, to train with, to trust."""

    return commands


def main() -> None:
    """Entry point. Bad input ends with one line and exit code 2, Ctrl-C with 130."""
    spell_out()
    with ending("kullback"):
        try:
            commands = app()
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "kullback":
                raise
            fail("kullback", f"the package {error.name!r} is not installed; write: {install('distill')}")
        commands()


if __name__ == "__main__":
    main()
