"""Triton's interpreter without work that it repeats: most of its time in these tests."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

INTERPRETER_PARTS = ("_patch_lang", "_LangPatchScope", "_get_np_dtype", "_patch_builtin")
LANGUAGE_PARTS = ("block_type", "pointer_type", "tensor", "constexpr", "_unwrap_if_constexpr")


def quicken() -> None:
    """What is found once is kept, and what nobody reads is not computed; no value changes.

    The interpreter replaces every built-in function of `triton.language` when a kernel starts, and
    goes through all of them again whenever a kernel calls a function of its own, where it finds
    nothing left to replace. It makes a table of all types for each type that it looks up, forms the
    name and the size of a block's type anew for every result, and broadcasts what has one shape.
    It also adds integers in int64 and compares them with the bounds of int32, for an assertion
    that it then leaves out. A Triton that has other parts is left as it is.
    """
    from triton.language import core
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    if not (
        all(hasattr(interpreter, name) for name in INTERPRETER_PARTS)
        and all(hasattr(core, name) for name in LANGUAGE_PARTS)
        and hasattr(TritonSemantic, "broadcast_impl_value")
        and hasattr(interpreter.InterpreterOptions, "sanitize_overflow")
    ):
        return
    _patch_once(interpreter, core)
    _keep_types(interpreter, core)
    _skip_what_is_done(core, TritonSemantic)
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _patch_once(interpreter: Any, core: Any) -> None:
    """Lets a device function's call find the language patched, and a kernel's start its parts."""
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

    @functools.cache
    def builtins_of(package: Any) -> list[tuple[str, Any]]:
        return [each for each in inspect.getmembers(package) if core.is_builtin(each[1])]

    def patch_builtin(package: Any, builder: Any, scope: Any) -> None:
        for name, member in builtins_of(package):
            if core.is_builtin(getattr(package, name)):
                interpreter._patch_attr(package, name, member, builder, scope)

    interpreter._patch_lang = patch_once
    interpreter._patch_builtin = patch_builtin


def _keep_types(interpreter: Any, core: Any) -> None:
    """A type's NumPy type, what a block's type is made of, and the shape of its tensors."""
    known = functools.cache(interpreter._get_np_dtype)

    def numpy_dtype(dtype: Any) -> Any:
        scalar = dtype.scalar  # a block's elements; block and pointer types have no hash
        return np.dtype(np.uint64) if isinstance(scalar, core.pointer_type) else known(scalar)

    interpreter._get_np_dtype = numpy_dtype

    blocks: dict[tuple[Any, ...], dict[str, Any]] = {}
    make_block, constexpr = core.block_type.__init__, core.constexpr

    def block(self: Any, element_ty: Any, shape: Any) -> None:
        element = element_ty
        if isinstance(element_ty, core.pointer_type):
            element = element_ty.element_ty, element_ty.address_space, element_ty.const
        key = (element, *(getattr(size, "value", size) for size in shape))
        parts = blocks.get(key)
        if parts is None:
            make_block(self, element_ty, shape)
            self.of_tensor = core.tuple([constexpr(size) for size in self.shape])
            self.num_elements = constexpr(self.numel)
            blocks[key] = dict(self.__dict__)
        else:
            self.__dict__.update(parts)

    core.block_type.__init__ = block

    empty, one = core.tuple([]), constexpr(1)

    def tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        if type.is_block():
            self.shape, self.numel = type.of_tensor, type.num_elements
        else:
            self.shape, self.numel = empty, one

    core.tensor.__init__ = tensor


def _skip_what_is_done(core: Any, semantic: Any) -> None:
    """No broadcast of two blocks of one shape, and no search for constants in what holds none."""
    broadcast: Callable[..., Any] = semantic.broadcast_impl_value

    def broadcast_once(self: Any, lhs: Any, rhs: Any) -> Any:
        one, other = lhs.type, rhs.type
        if one.is_block() and other.is_block() and one.shape.values == other.shape.values:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    semantic.broadcast_impl_value = broadcast_once

    unwrap, plain = core._unwrap_if_constexpr, (int, float, bool, str, core.tensor)

    def unwrap_once(value: Any) -> Any:
        return value if type(value) in plain else unwrap(value)

    core._unwrap_if_constexpr = unwrap_once
