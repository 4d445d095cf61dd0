"""Reading and writing: lines of text by number, outputs that appear whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossalign.files.indexed_lines import IndexedLines
    from crossalign.files.output import (
        atomic_directory,
        check_is_no_input,
        check_output_directory,
        check_output_file,
        write_json_lines,
        write_whole,
    )
    from crossalign.files.text import DataError, read_json_objects, read_lines
else:
    from crossalign import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "DataError": "text",
            "IndexedLines": "indexed_lines",
            "atomic_directory": "output",
            "check_is_no_input": "output",
            "check_output_directory": "output",
            "check_output_file": "output",
            "read_json_objects": "text",
            "read_lines": "text",
            "write_json_lines": "output",
            "write_whole": "output",
        },
    )

__all__ = [
    "DataError",
    "IndexedLines",
    "atomic_directory",
    "check_is_no_input",
    "check_output_directory",
    "check_output_file",
    "read_json_objects",
    "read_lines",
    "write_json_lines",
    "write_whole",
]
