"""What the files of a model in a directory say before any of its weights is read."""

from __future__ import annotations

import json
from pathlib import Path

from crossalign.files.text import DataError


def can_only_be_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def is_gguf(name: str) -> bool:
    """Whether the name is that of a file as llama.cpp reads it."""
    return name.lower().endswith(".gguf")


def check_weight_files(name: str, flag: str = "") -> None:
    """Whether the files of weights in a directory are there and, by their heads, as long as they
    were written: known without reading them.

    Raises:
        FileNotFoundError, DataError: naming the file.
    """
    if is_gguf(name):
        return
    for folder in map(Path, filter(None, (name, adapted_model(name)))):
        if folder.is_dir():  # else it is a name on the hub
            _check_weight_files(folder, flag)


def _check_weight_files(folder: Path, flag: str) -> None:
    from safetensors import SafetensorError, safe_open

    files = set(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{flag}{index}: damaged: not the index of a model's files") from None
        files |= {folder / shard for shard in shards}
    if not files and not any(folder.glob("*.bin")):
        raise FileNotFoundError(f"{flag}{folder}: holds no weights (model.safetensors)")
    for path in sorted(files):
        try:
            with safe_open(path, framework="pt"):
                pass
        except FileNotFoundError:
            raise FileNotFoundError(f"{flag}{path}: is not there, but {index} names it") from None
        except (SafetensorError, OSError) as error:
            raise DataError(f"{flag}{path}: damaged: {error}") from error


def adapted_model(name: str) -> str | None:
    """The model that the adapters in a directory belong to; None where there are none."""
    adapters = Path(name) / "adapter_config.json"
    if not adapters.is_file():
        return None
    try:
        base = json.loads(adapters.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise ValueError(
            f"{adapters}: damaged: does not name the model that the adapters belong to "
            "(base_model_name_or_path)"
        )
    if can_only_be_a_path(base) and not Path(base).is_dir():
        raise FileNotFoundError(
            f"{name}: holds adapters of the model {base}, which is not there; put it back, or set "
            f"base_model_name_or_path in {adapters}"
        )
    return str(base)


def find_bad_json(name: str) -> Path | None:
    """The first file of a model's directory whose name ends in .json and that is none."""
    for path in sorted(Path(name).glob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return path
    return None
