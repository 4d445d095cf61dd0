"""The schema of an operator, derived from the records of its arguments and results."""

from __future__ import annotations

from collections.abc import Sequence

# A record is a named tuple type; with a prefix, its fields are named "<prefix><field>".
Record = type | tuple[str, type]

_TYPES = {
    **{"Tensor": "Tensor", "Tensor | None": "Tensor?", "int": "SymInt", "bool": "bool"},
    **{"float": "float", "float | None": "float?", "str": "str"},
}


def build_schema(arguments: Sequence[Record], results: type | None) -> str:
    """Such as (Tensor query, ..., bool flag) -> (Tensor, ...); results None: one tensor."""
    names = [f"{_TYPES[kind]} {name}" for record in arguments for name, kind in _fields(record)]
    if results is None:
        return f"({', '.join(names)}) -> Tensor"
    return f"({', '.join(names)}) -> ({', '.join(_TYPES[kind] for _, kind in _fields(results))})"


def _fields(record: Record) -> list[tuple[str, str]]:
    """(name, type as it is written) of every field."""
    prefix, kind = record if isinstance(record, tuple) else ("", record)
    types = kind.__annotations__.items()
    return [(f"{prefix}{name}", str(each.__forward_arg__)) for name, each in types]
