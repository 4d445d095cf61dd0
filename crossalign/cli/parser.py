"""The parser of the commands: its help shows defaults, its errors are one line that names flags."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from crossalign.settings import SettingError


class Parser(argparse.ArgumentParser):
    """Shows defaults in its help, and says what is wrong in one line."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", HelpFormatter)
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        message = message.replace("the following arguments are required: ", "missing: ")
        if one_of := re.fullmatch("one of the arguments (.+) is required", message):
            message = f"missing: {' or '.join(one_of[1].split())}"
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")

    @contextlib.contextmanager
    def argument_errors(self) -> Iterator[None]:
        """A ValueError of the body is that of an argument: one line, exit status 2."""
        try:
            yield
        except SettingError as error:
            self.error(error.in_flags())
        except ValueError as error:
            self.error(str(error))


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Names the default of a flag that has one to speak of; says "required" where it must be
    given."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if action.required:
            return f"{text} (required)"
        default = action.default
        if isinstance(default, (tuple, list)):
            shown = " ".join(map(str, default)).replace("%", "%%")
            return f"{text} (default: {shown})" if default else text
        if action.nargs == 0 and not isinstance(action, argparse.BooleanOptionalAction):
            return text  # a switch is off
        if default == "" or (default is None and "None" not in text):
            return text
        return super()._get_help_string(action)


def one_line(message: str) -> str:
    return " ".join(message.split())
