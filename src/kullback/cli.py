"""The command `kullback`: gathers the sub-commands, each of which lives beside the work it starts."""

import sys
from typing import TYPE_CHECKING, Any

from kullback.kit.ending import STOPPED, ending, fail
from kullback.kit.terminal import spell_out

if TYPE_CHECKING:
    import typer


def app() -> "typer.Typer":
    """The command line; made on call, because `import kullback` does without the packages it needs."""
    import typer
    from typer.core import TyperGroup

    from .check.command import check
    from .coding.command import code
    from .data.command import drift
    from .distill.command import distill
    from .kl_command.command import kl
    from .lm.command import lm
    from .models.command import compare
    from .recipes.command import register as register_recipes

    usage_error: Any = typer.BadParameter.__mro__[1]

    class Commands(TyperGroup):
        """Says what is wrong with options in one line, as the commands do with what the options say."""

        def main(self, *args: Any, **options: Any) -> Any:
            try:
                code = super().main(*args, **{**options, "prog_name": "kullback", "standalone_mode": False})
            except usage_error as error:
                if type(error).__name__ == "NoArgsIsHelpError":
                    error.show()
                    sys.exit(error.exit_code)
                fail(error.ctx.command_path if error.ctx else "kullback", error.format_message())
            except typer.Abort:
                fail("kullback", "interrupted", STOPPED)
            sys.exit(code if isinstance(code, int) else 0)

    commands = typer.Typer(
        cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    commands.command()(kl)
    commands.command()(compare)
    commands.command()(distill)
    commands.add_typer(lm, name="lm")
    commands.add_typer(drift, name="drift")
    commands.command()(code)
    commands.command()(check)
    register_recipes(commands)

    def show_version(asked: bool) -> None:
        if asked:
            import kullback as package

            print(f"kullback {package.__version__}")
            raise typer.Exit

    @commands.callback()
    def kullback(
        version: bool = typer.Option(
            False, "--version", callback=show_version, is_eager=True, help="Print the version."
        ),
    ) -> None:
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
            fail("kullback", f"the package {error.name!r} is not installed; write: pip install {error.name}")
        commands()


if __name__ == "__main__":
    main()
