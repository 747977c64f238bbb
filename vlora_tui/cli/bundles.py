"""Options that go together: the fields of a dataclass, which a command takes as one parameter."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_type_hints

Command = TypeVar("Command", bound=Callable[..., Any])


class Bundle:
    """Base of the dataclasses that `unbundle` takes apart.

    Attributes:
        comes_last: Its options stand behind all others in the help, wherever the parameter is.
        section: The heading of its options in the help; without one they are among all others.
    """

    comes_last: ClassVar[bool] = False
    section: ClassVar[str | None] = None

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """Its options: by default its fields."""
        assert is_dataclass(cls)  # noqa: S101  (every Bundle is one, or says its options itself)
        hints = get_type_hints(cls, include_extras=True)
        return [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_default(field),
                annotation=_below(hints[field.name], cls.section),
            )
            for field in fields(cls)
        ]

    @classmethod
    def taken(cls, values: dict[str, Any]) -> Bundle:
        """The bundle of what its options were given."""
        return cls(**values)


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
            (last if kind.comes_last else parameters).extend(kind.parameters())
        else:
            parameters.append(
                parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY)
            )

    parameters += last
    names = {name: [p.name for p in kind.parameters()] for name, kind in bundles.items()}

    @functools.wraps(command)
    def call(**given: Any) -> Any:
        for name, options in names.items():
            given[name] = bundles[name].taken({option: given.pop(option) for option in options})
        return command(**given)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call  # type: ignore[return-value]


def _below(annotation: Any, section: str | None) -> Any:
    """An option's annotation, its line in the help below a heading."""
    if section is None:
        return annotation
    kind, info = get_args(annotation)
    placed = copy.copy(info)
    placed.rich_help_panel = section
    return Annotated[kind, placed]


def _default(field: Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default
