"""Options that go together: the fields of a dataclass, which a command takes as one parameter."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, ClassVar, TypeVar, get_type_hints

Command = TypeVar("Command", bound=Callable[..., Any])


class Bundle:
    """Base of the dataclasses that `unbundle` takes apart.

    Attributes:
        comes_last: Its options stand behind all others in the help, wherever the parameter is.
    """

    comes_last: ClassVar[bool] = False


def unbundle(command: Command) -> Command:
    """The command with every parameter that is a `Bundle` replaced by options, one a field.

    The bundle's place among the parameters is that of its fields in the help.
    """
    kinds = get_type_hints(command, include_extras=True)
    bundles: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    last: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        kind = kinds[parameter.name]
        if isinstance(kind, type) and issubclass(kind, Bundle):
            bundles[parameter.name] = kind
            (last if kind.comes_last else parameters).extend(_options(kind))
        else:
            parameters.append(
                parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY)
            )

    parameters += last

    @functools.wraps(command)
    def call(**given: Any) -> Any:
        for name, kind in bundles.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        return command(**given)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call  # type: ignore[return-value]


def _options(kind: type[Any]) -> list[inspect.Parameter]:
    assert is_dataclass(kind)  # noqa: S101  (every Bundle is one)
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(field),
            annotation=hints[field.name],
        )
        for field in fields(kind)
    ]


def _default(field: Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default
