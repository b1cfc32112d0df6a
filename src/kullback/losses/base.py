"""What every loss is as a module: a call that type checkers see, arguments by name, settings that print."""

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from torch import Tensor, nn

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


class _Forward(Protocol[P, R_co]):
    def forward(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class _Whole(Protocol):
    @property
    def loss(self) -> Tensor: ...


class _Parts(Protocol[P]):
    def parts(self, *args: P.args, **kwargs: P.kwargs) -> _Whole: ...


def _by_name(method: Callable[..., Any]) -> Callable[..., Any]:
    """`method` with an error that names the keywords where arguments come without them."""
    parameters = list(inspect.signature(method).parameters.values())[1:]
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    first = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if not names or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return method
    example = ", ".join([*first, *(f"{name}=..." for name in names)])

    @functools.wraps(method)
    def checked(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if len(args) > len(first):
            raise TypeError(
                f"{type(self).__name__}: {len(args)} positional arguments, but it takes {len(first) or 'none'}: names "
                f"say which is which. Write loss({example}), leaving out what you do not have."
            )
        return method(self, *args, **kwargs)

    return checked


class Loss(nn.Module):
    """A loss. Every parameter of `__init__` is an attribute of the same name; tensors are given by name.

    Arguments that a public method takes by name only are asked for by their names when they come without: a call
    whose order decided what is the student and what the teacher could be wrong without a word.
    """

    if TYPE_CHECKING:

        def __call__(self: _Forward[P, R_co], *args: P.args, **kwargs: P.kwargs) -> R_co:
            """`forward`, with the hooks of `nn.Module`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, method in list(vars(cls).items()):
            if inspect.isfunction(method) and not name.startswith("_"):
                setattr(cls, name, _by_name(method))

    def extra_repr(self) -> str:
        """The settings, for `print(module)`; a setting that is a module is printed below them."""
        named = (p for p in inspect.signature(type(self)).parameters.values() if p.kind is not p.VAR_POSITIONAL)
        settings = {p.name: getattr(self, p.name) for p in named if p.kind is not p.VAR_KEYWORD}
        return ", ".join(f"{name}={shown(x)}" for name, x in settings.items() if not isinstance(x, nn.Module))


class LossOfParts(Loss):
    """A loss of several terms: `parts(...)` returns them by name, the call returns the loss alone."""

    if TYPE_CHECKING:

        def __call__(self: _Parts[P], *args: P.args, **kwargs: P.kwargs) -> Tensor:
            """The loss; the arguments are those of `parts`."""

    def forward(self: _Parts[P], *args: P.args, **kwargs: P.kwargs) -> Tensor:
        """The loss; the arguments are those of `parts`."""
        return self.parts(*args, **kwargs).loss


def shown(setting: object) -> str:
    """A setting as it would be written: 2 for 2.0, js(weight=0.1) for a partial of it.

    >>> import functools, kullback
    >>> shown(2.0), shown("mean"), shown(functools.partial(kullback.js, weight=0.1))
    ('2', "'mean'", 'js(weight=0.1)')
    """
    if isinstance(setting, float):
        return f"{setting:g}"
    if isinstance(setting, functools.partial):
        given = [*map(shown, setting.args), *(f"{name}={shown(x)}" for name, x in setting.keywords.items())]
        return f"{shown(setting.func)}({', '.join(given)})"
    return getattr(setting, "__name__", None) or repr(setting)
