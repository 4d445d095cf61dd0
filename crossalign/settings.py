"""A dataclass field that is also a command-line flag: its help, its group and its checks, once.

    @dataclass(frozen=True, kw_only=True)
    class Settings:
        pairs: Path = required("file of pairs", metavar="FILE")   # --pairs
        batch_size: int = setting(64, "pairs per step", lowest=2)  # --batch-size

        def __post_init__(self) -> None:
            check_settings(self)

`add_flags` makes the flags of such a class, `from_arguments` an instance of what they gave. The
types of fields decide how a flag is read: bool makes --flag and --no-flag, tuple[X, ...] takes one
value or more, X | tuple[X, ...] keeps a single value as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

Settings = TypeVar("Settings")
_METAVARS = {int: "N", float: "X", Path: "PATH"}


class _Flag(NamedTuple):
    """What a field's metadata says of its flag."""

    text: str
    group: str
    choices: tuple[str, ...] | None
    metavar: str | None
    lowest: float | None
    above: float | None
    switch: bool


class SettingError(ValueError):
    """A setting that cannot be used. The text names settings as Python does, in_flags() as flags.

    Args:
        message: holds each of `names` as a word.
        names: the settings it speaks of.
    """

    def __init__(self, message: str, *names: str) -> None:
        super().__init__(message)
        self.names = names

    def in_flags(self) -> str:
        if not self.names:
            return str(self)
        words = rf"\b({'|'.join(self.names)})\b"
        return re.sub(words, lambda found: flag_name(found[0]), str(self))


def setting(
    default: Any,
    text: str,
    *,
    group: str = "",
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    lowest: float | None = None,
    above: float | None = None,
    switch: bool = False,
) -> Any:
    """A dataclass field that is also a flag.

    Args:
        default: a plain value.
        text: the help of the flag.
        group: heading of the flag in the help.
        choices: the values that it takes; several: each of them. A field typed Literal["a", "b"]
            needs none.
        metavar: what stands for its value in the help; None: by its type.
        lowest, above: the value must be at least, or greater than this (each of several must).
        switch: of a bool: only --flag exists, without --no-flag.
    """
    known = None if choices is None else tuple(choices)
    flag = _Flag(text, group, known, metavar, lowest, above, switch)
    return dataclasses.field(default=default, metadata={"flag": flag})


def required(text: str, **options: Any) -> Any:
    """A setting without a default; the options are those of `setting`."""
    return setting(dataclasses.MISSING, text, **options)


def device_setting(group: str) -> Any:
    """--device, as all commands that run a model take it."""
    text = "auto (a GPU if there is one), cpu, cuda, cuda:1, ..."
    return setting("auto", text, group=group, metavar="DEVICE")


def dtype_setting(group: str) -> Any:
    """--dtype of the commands that only run models."""
    dtypes = ("float32", "bfloat16", "float16")
    text = "dtype in which the models run, whatever their files hold"
    return setting("float32", text, group=group, choices=dtypes)


def overwrite_setting(group: str = "") -> Any:
    """--overwrite, as all commands that write a file or a directory of results take it."""
    text = "replace what an earlier call wrote to --output"
    return setting(False, text, group=group, switch=True)


def flag_name(name: str) -> str:
    """batch_size -> --batch-size"""
    return f"--{name.replace('_', '-')}"


def names_of(settings: type) -> tuple[str, ...]:
    """The names of the settings of a class, in their order."""
    return tuple(each.name for each in dataclasses.fields(settings))


def add_flags(
    parser: argparse.ArgumentParser,
    settings: type,
    *,
    check_required: bool = True,
    exclusive: Sequence[str] = (),
) -> None:
    """One flag per setting, in the order of the dataclass, under the headings of their groups.

    check_required: let argparse ask for what has no default. Without, an absent value is absent
        from the namespace, because a configuration file may give it.
    exclusive: settings of which exactly one must be given.
    """
    hints = typing.get_type_hints(settings)
    groups: dict[str, Any] = {str(each.title): each for each in parser._action_groups}
    groups[""] = parser
    one_of: Any = None
    for each in dataclasses.fields(settings):
        flag: _Flag = each.metadata["flag"]
        if flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group)
        target = groups[flag.group]
        if each.name in exclusive:
            if one_of is None:
                one_of = target.add_mutually_exclusive_group(required=True)
            target = one_of
        options = _argparse_options(hints[each.name], flag)
        if each.default is not dataclasses.MISSING:
            options["default"] = each.default
        elif check_required:
            options["required"] = True
        else:
            options["default"] = argparse.SUPPRESS
        target.add_argument(flag_name(each.name), help=flag.text.replace("%", "%%"), **options)


def from_arguments(settings: type[Settings], arguments: argparse.Namespace) -> Settings:
    """The settings that the flags gave; raises SettingError where one cannot be used."""
    return settings(**{name: getattr(arguments, name) for name in names_of(settings)})


def check_settings(settings: Any) -> None:
    """Checks every field by its declared type and by what `setting` says of it.

    Raises:
        TypeError: a setting of the wrong type.
        SettingError: a ValueError; a setting out of its range, or of several one twice.
    """
    hints = typing.get_type_hints(type(settings))
    for each in dataclasses.fields(settings):
        value, flag = getattr(settings, each.name), each.metadata["flag"]
        _check_type(each.name, value, hints[each.name])
        if isinstance(value, tuple) and len(set(value)) < len(value):
            shown = " ".join(map(str, value))
            raise SettingError(f"{each.name} must name each value once, got {shown}", each.name)
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None:
                _check_value(each.name, one, flag, _choices(hints[each.name], flag))


def _check_value(name: str, value: Any, flag: _Flag, choices: tuple[str, ...] | None) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingError(f"{name} must be finite, got {value}", name)
    if choices is not None and value not in choices:
        known = ", ".join(choices)
        raise SettingError(f"{name} must be one of {known}, got {value!r}", name)
    if flag.lowest is not None and value < flag.lowest:
        raise SettingError(f"{name} must be at least {flag.lowest:g}, got {value}", name)
    if flag.above is not None and not value > flag.above:
        raise SettingError(f"{name} must be above {flag.above:g}, got {value}", name)


def _check_type(name: str, value: Any, hint: Any) -> None:
    kinds = _alternatives(hint)
    if value is None and type(None) in kinds:
        return
    takes_several = any(typing.get_origin(kind) is tuple for kind in kinds)
    if not takes_several and isinstance(value, tuple):
        raise TypeError(f"{name} must be one value, got {value!r}")
    if all(typing.get_origin(kind) is tuple for kind in kinds) and not isinstance(value, tuple):
        raise TypeError(f"{name} must be a tuple, got {value!r}")
    kind = value_type(hint)
    for each in value if isinstance(value, tuple) else (value,):
        fits = isinstance(each, (int, float) if kind is float else kind)
        if not fits or (isinstance(each, bool) and kind is not bool):
            raise TypeError(f"{name} must be {kind.__name__}, got {each!r}")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union; `Literal[...] | None` makes one of typing's, the others of types'."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def value_type(hint: Any) -> type:
    """int for int, int | None, tuple[int, ...] and int | tuple[int, ...]; str for Literal["a"]."""
    if typing.get_origin(hint) is typing.Literal:
        return type(typing.get_args(hint)[0])
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return value_type(kinds[0]) if kinds else typing.cast(type, hint)


def _choices(hint: Any, flag: _Flag) -> tuple[str, ...] | None:
    """What the field's type or its `setting` allows; None: anything of the type."""
    for kind in (hint, *typing.get_args(hint)):
        if typing.get_origin(kind) is typing.Literal:
            return typing.get_args(kind)
    return flag.choices


def _argparse_options(hint: Any, flag: _Flag) -> dict[str, Any]:
    kind = value_type(hint)
    if kind is bool:
        return {"action": "store_true" if flag.switch else argparse.BooleanOptionalAction}
    choices = _choices(hint, flag)
    options: dict[str, Any] = {"type": kind, "choices": choices}
    options["metavar"] = flag.metavar or (None if choices else _METAVARS.get(kind))
    kinds = _alternatives(hint)
    if any(typing.get_origin(each) is tuple for each in kinds):
        options["nargs"] = "+"
        options["action"] = _Several if typing.get_origin(kinds[0]) is tuple else _OneOrSeveral
    return options


class _OneOrSeveral(argparse.Action):
    """A single value stays single, several become a tuple."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else tuple(values))


class _Several(argparse.Action):
    """A tuple of one or more."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, tuple(values))
