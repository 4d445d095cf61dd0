"""One line at the bottom of a terminal that is written over, and log records that stay above it."""

from __future__ import annotations

import logging
import shutil
import sys

_CLEAR = "\r\x1b[K"


class LiveLine:
    """Writes to standard error, while it is open."""

    def __init__(self) -> None:
        self._text = ""
        root = logging.getLogger()
        known = logging.root.manager.loggerDict.values()
        # Loggers that print by themselves, as that of transformers does.
        apart = [each for each in known if isinstance(each, logging.Logger) and not each.propagate]
        self._handlers = [
            (logger, _AboveTheLine(self, prints=logger is root and not root.handlers))
            for logger in (root, *apart)
            if logger is root or logger.handlers
        ]
        for logger, handler in self._handlers:
            logger.handlers.insert(0, handler)

    def show(self, parts: list[str]) -> None:
        """As many of the parts, from the first on, as the terminal is wide."""
        width = shutil.get_terminal_size().columns - 1
        text = parts[0]
        for part in parts[1:]:
            if len(text) + 2 + len(part) <= width:
                text += f"  {part}"
        self._text = text[:width]
        self.draw()

    def draw(self) -> None:
        sys.stderr.write(_CLEAR + self._text)
        sys.stderr.flush()

    def clear(self) -> None:
        sys.stderr.write(_CLEAR)
        sys.stderr.flush()

    def close(self) -> None:
        """Leaves the last text where it is."""
        for logger, handler in self._handlers:
            logger.removeHandler(handler)
        if self._text:
            sys.stderr.write("\n")
            sys.stderr.flush()


class _AboveTheLine(logging.Handler):
    """Clears the line before another handler prints a record, or prints it where none would."""

    def __init__(self, line: LiveLine, *, prints: bool) -> None:
        super().__init__(logging.WARNING if prints else logging.NOTSET)
        self._line, self._prints = line, prints

    def emit(self, record: logging.LogRecord) -> None:
        self._line.clear()
        if self._prints:
            sys.stderr.write(f"{self.format(record)}\n")
            self._line.draw()
