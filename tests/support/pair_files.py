"""Files of pairs with every fault, and the message each gives."""

from __future__ import annotations

import gzip
from pathlib import Path


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


DAMAGES = ("cut off", "not gzip", "flipped")  # of a gzip file


def damaged_gzip(path: Path, damage: str) -> Path:
    """A file of pairs that cannot be unpacked."""
    whole = write(path, "a\tb\n" * 1000).read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "cut off": whole[:middle],
            "not gzip": b"a\tb\n",
            "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        }[damage]
    )
    return path


FAULTS: dict[str, tuple[str, str | bytes, str]] = {
    "no TAB": ("p.tsv", "a\tb\nonly one column\n", r"p\.tsv:2: no TAB"),
    "blank line": ("p.tsv", "a\tb\n\nc\td\n", r"p\.tsv:2: no TAB"),
    "empty source": ("p.tsv", "a\tb\n \td\n", r"p\.tsv:2: the source is empty"),
    "empty target": ("p.tsv", "a\tb\nc\t\tnote\n", r"p\.tsv:2: the target is empty"),
    "invisible source": (
        "p.tsv",
        "a\tb\n\u200b\ufeff\td\n",
        r"p\.tsv:2: the source holds invisible characters only",
    ),
    "blank letters": (
        "p.tsv",
        "a\tb\nc\t\u3164\u2800 \ufe0f\n",
        r"p\.tsv:2: the target holds invisible characters only",
    ),
    "UTF-16": ("p.tsv", "a\tb\nc\td\n".encode("utf-16"), r"p\.tsv: is not UTF-8 but UTF-16"),
    "UTF-16 without a mark": (
        "p.tsv",
        "a\tb\nc\td\n".encode("utf-16-le"),
        r"p\.tsv: is not UTF-8 but UTF-16",
    ),
    "CR only": ("p.tsv", "a\tb\rc\td\r", r"p\.tsv: its lines end in CR only, not in LF"),
    "not UTF-8": ("p.tsv", b"a\tb\nc\t\xff\n", r"p\.tsv:2: not valid UTF-8"),
    "empty file": ("p.tsv", "", r"p\.tsv: the file is empty"),
    "bad JSON": (
        "p.jsonl",
        '{"source": "a", "target": "b"}\n{"source"\n',
        r"p\.jsonl:2: not valid J",
    ),
    "deep JSON": ("p.jsonl", "[" * 100_000, r"p\.jsonl:1: not usable JSON"),
    "JSON list": ("p.jsonl", '["a", "b"]\n', r"p\.jsonl:1: not a JSON object but list"),
    "no key": ("p.jsonl", '{"source": "a"}\n', r'p\.jsonl:1: the key "target" is missing'),
    "number": (
        "p.jsonl",
        '{"source": "a", "target": 3}\n',
        r'p\.jsonl:1: "target" must be text, g',
    ),
    "empty value": ("p.jsonl", '{"source": "a", "target": ""}\n', r'p\.jsonl:1: "target" is empty'),
    "half a pair": (
        "p.jsonl",
        '{"source": "a", "target": "\\ud83d"}\n',
        r'p\.jsonl:1: "target" holds half of a surrogate',
    ),
    "language": (
        "p.jsonl",
        '{"source": "a", "target": "b", "source_language": 7}\n',
        r'p\.jsonl:1: "source_language" must be text',
    ),
}
