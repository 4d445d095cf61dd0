"""Which extra brings a module that may be missing."""

from __future__ import annotations

_EXTRAS = {
    "deepspeed": ("deepspeed",),
    "evaluate": ("lm_eval", "sacrebleu"),
    "hub": ("datasets",),
    "liger": ("liger_kernel",),
    "train": (
        *("accelerate", "jinja2", "matplotlib", "numpy", "peft", "safetensors", "tokenizers"),
        *("tqdm", "transformers", "yaml"),
    ),
    "triton": ("triton",),
}
EXTRA_OF = {module: extra for extra, modules in _EXTRAS.items() for module in modules}


def named_extra(error: ModuleNotFoundError, needed_by: str) -> ModuleNotFoundError | None:
    """The error in words, with the extra that brings the module; None for any other module."""
    extra = EXTRA_OF.get((error.name or "").partition(".")[0])
    if extra is None:
        return None
    return ModuleNotFoundError(
        f"{needed_by} needs {error.name}: pip install 'crossalign[{extra}]'", name=error.name
    )
