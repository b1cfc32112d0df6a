"""The group of commands `kullback lm`."""

import typer

from .cache.command import cache
from .distill.command import distill

lm = typer.Typer(no_args_is_help=True, help="Language models: distil one, keep what a teacher says.")
lm.command()(distill)
lm.command()(cache)
