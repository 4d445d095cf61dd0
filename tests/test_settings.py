"""A dataclass field that is also a flag: how it is read, checked and named in messages."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from crossalign.settings import (
    SettingError,
    add_flags,
    check_settings,
    flag_name,
    from_arguments,
    names_of,
    required,
    setting,
)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One setting of each kind."""

    source: Path = required("where from", metavar="FILE")
    batch_size: int = setting(8, "rows at once, 100 % of them", lowest=2)
    rate: float | None = setting(None, "speed; None = full", group="speed", above=0)
    layer: int | tuple[int, ...] = setting(1, "which", group="speed")
    names: tuple[str, ...] = setting((), "who", choices=("ann", "bob"))
    fast: bool = setting(True, "quickly", group="speed")
    dry: bool = setting(False, "do nothing", switch=True)

    def __post_init__(self) -> None:
        check_settings(self)


def read(*flags: str, **options: Any) -> Example:
    parser = argparse.ArgumentParser()
    add_flags(parser, Example, **options)
    return from_arguments(Example, parser.parse_args([*flags]))


def test_flags_give_the_values_of_their_types() -> None:
    assert read("--source", "a") == Example(source=Path("a"))
    several = ("--layer", "1", "2", "--names", "bob", "--no-fast", "--dry", "--rate", "0.5")
    assert read("--source", "a", *several) == Example(
        source=Path("a"), layer=(1, 2), names=("bob",), fast=False, dry=True, rate=0.5
    )
    assert read("--source", "a", "--layer", "3").layer == 3
    assert names_of(Example)[:2] == ("source", "batch_size")
    assert flag_name("batch_size") == "--batch-size"


def test_what_is_required_is_asked_for_unless_a_file_may_give_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        read()
    assert "--source" in capsys.readouterr().err
    parser = argparse.ArgumentParser()
    add_flags(parser, Example, check_required=False)
    assert not hasattr(parser.parse_args([]), "source")


def test_one_of_several_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in [("--source", "a", "--rate", "1"), ()]:
        with pytest.raises(SystemExit):
            read(*flags, exclusive=("source", "rate"), check_required=False)
    error = capsys.readouterr().err
    assert "not allowed with argument" in error
    assert "one of the arguments --source --rate is required" in error


def test_headings_and_percent_signs_reach_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    text = capsys.readouterr().out
    assert "100 % of them" in text
    assert text.index("speed:") < text.rindex("--no-fast")


@pytest.mark.parametrize(
    ("given", "message", "in_flags"),
    [
        ({"batch_size": 1}, "batch_size must be at least 2, got 1", "--batch-size must be"),
        ({"rate": 0.0}, "rate must be above 0, got 0.0", "--rate must be above"),
        ({"rate": float("nan")}, "rate must be finite, got nan", "--rate must be finite"),
        ({"names": ("eve",)}, "names must be one of ann, bob, got 'eve'", "--names must be"),
        ({"layer": (1, 1)}, "layer must name each value once, got 1 1", "--layer must name"),
    ],
)
def test_messages_name_settings_in_python_and_flags_on_the_command_line(
    given: dict[str, Any], message: str, in_flags: str
) -> None:
    with pytest.raises(SettingError) as caught:
        Example(source=Path("a"), **given)
    assert str(caught.value) == message
    assert caught.value.in_flags().startswith(in_flags)


def test_a_message_about_two_settings_names_both_flags() -> None:
    error = SettingError("rate needs batch_size, not a batch_sizes", "rate", "batch_size")
    assert error.in_flags() == "--rate needs --batch-size, not a batch_sizes"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 2.0}, "batch_size must be int, got 2.0"),
        ({"batch_size": True}, "batch_size must be int, got True"),
        ({"source": "a"}, "source must be Path, got 'a'"),
        ({"names": "ann"}, "names must be a tuple, got 'ann'"),
        ({"fast": 1}, "fast must be bool, got 1"),
    ],
)
def test_wrong_type_is_an_error(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Example(**({"source": Path("a")} | given))
