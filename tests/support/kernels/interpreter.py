"""Triton's interpreter without work that it repeats: two thirds of its time in these tests."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import numpy as np


def quicken() -> None:
    """Lets a device function's call find the language patched, and a type's NumPy type known.

    The interpreter replaces every built-in function of `triton.language` when a kernel starts, and
    goes through all of them again whenever a kernel calls a function of its own, where it finds
    nothing left to replace. It also makes a table of all types for each type that it looks up.
    Neither change touches a value. A Triton whose interpreter has other parts is left as it is.
    """
    from triton.language import core
    from triton.runtime import interpreter

    if not all(
        hasattr(interpreter, name) for name in ("_patch_lang", "_LangPatchScope", "_get_np_dtype")
    ):
        return
    patch, language = interpreter._patch_lang, interpreter.tl

    @functools.cache
    def languages(function: Any) -> list[Any]:
        found = [value for value in function.__globals__.values() if inspect.ismodule(value)]
        return [each for each in found if each in (language, core)]

    def patch_once(function: Any) -> Any:
        seen = languages(function)
        originals = (part for each in seen for part in (each.load, each.tensor.__add__))
        if seen and not any(core.is_builtin(original) for original in originals):
            return interpreter._LangPatchScope()  # inside a kernel: nothing to undo either
        return patch(function)

    interpreter._patch_lang = patch_once

    known = functools.cache(interpreter._get_np_dtype)

    def numpy_dtype(dtype: Any) -> Any:
        scalar = dtype.scalar  # a block's elements; block and pointer types have no hash
        return np.dtype(np.uint64) if isinstance(scalar, core.pointer_type) else known(scalar)

    interpreter._get_np_dtype = numpy_dtype
