"""A run's checkpoints: checkpoints/step-N, each a Hugging Face checkpoint with the training state.

A checkpoint is written aside, flushed to the disk with a manifest of its files, and renamed as one
directory, so one that has its name is complete, whenever the run was killed. Before a run goes on
from one, every file is compared with the manifest. The model files in the run's own directory are
links to (or copies of) those of one checkpoint.

    DIR/checkpoints/step-500: config.json, model.safetensors, tokenizer.json, training_state.pt,
        content.json, config.yaml, metrics.jsonl, evaluations.jsonl, manifest.json
    DIR: config.json, model.safetensors, tokenizer.json, ...
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from crossalign.alignment.content import (
    CONTENT_FILE,
    check_content,
    content_of,
)
from crossalign.alignment.finite import NotFiniteError, check_finite_weights
from crossalign.alignment.records import EVALUATIONS_FILE, METRICS_FILE
from crossalign.alignment.run_config import SETTINGS_FILE
from crossalign.alignment.train import AlignmentRun
from crossalign.files.manifest import (
    MANIFEST_FILE,
    DamagedFileError,
    check_manifest,
    write_manifest,
)
from crossalign.files.output import (
    directory_aside,
    let_others_read,
    path_of_full_disk,
    put_in_place,
    remove_directory,
)
from crossalign.files.text import DataError

FOLDER = "checkpoints"
STATE_FILE = "training_state.pt"
OPTIMIZER_FOLDER = "optimizer"  # of sharded moments, one file a rank
ASIDE = ".saving."
_COPIED = (SETTINGS_FILE, METRICS_FILE, EVALUATIONS_FILE)  # should those of the run be damaged
_NOT_PUBLISHED = (STATE_FILE, MANIFEST_FILE, CONTENT_FILE, *_COPIED)

logger = logging.getLogger("crossalign")


class Checkpoints:
    """The checkpoints in the directory of one run.

    is_main: whether this rank writes; the others only read.
    content: SHA-256 of what the run reads beside its training data, by content.py's names.
    """

    def __init__(
        self, directory: Path, *, is_main: bool = True, content: Mapping[str, str] | None = None
    ) -> None:
        self.directory, self.is_main = directory, is_main
        self.content = dict(content or {})
        self._intact: set[int] = set()  # steps whose files were written or checked here

    def steps(self) -> list[int]:
        """Of the complete checkpoints, in ascending order."""
        folder = self.directory / FOLDER
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        found = [re.fullmatch(r"step-(\d+)", name) for name in names]
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        return self.directory / FOLDER / f"step-{step}"

    def last(self) -> int | None:
        """The newest step whose files are as they were written; None: the run has saved none yet.

        A damaged checkpoint gets another name, and one line says which file it is.

        Raises:
            DataError: every checkpoint is damaged, or one is of an earlier version.
        """
        reason = ""
        for step in reversed(self.steps()):
            reason = self._damage(step)
            self._check_version(step, reason)
            if not reason:
                return step
            earlier = [each for each in self.steps() if each < step]
            if earlier:
                self._set_aside(step, f"{reason}; the run goes on from step {earlier[-1]}")
        if reason:
            raise DataError(
                f"{reason}; no earlier checkpoint is left, so start a new run in another "
                "--output, or bring the file back from a copy"
            )
        return None

    def best(self, scores: dict[int, float]) -> int:
        """The step of the highest score, of equals the earliest; without scores the newest one.
        Damaged checkpoints do not count."""
        for step in sorted(scores, key=lambda step: (-scores[step], step)):
            if reason := self._damage(step):
                self._set_aside(step, f"{reason}; it was the best by --best-metric")
            else:
                return step
        return self.steps()[-1]

    def save(self, run: AlignmentRun) -> None:
        """Writes the checkpoint of this step. All ranks must call it; the main one writes the
        model, and each its part of moments that are sharded.

        Raises:
            OSError: it could not be written (a full disk, say); every earlier one is as it was.
            NotFiniteError: weights are NaN or infinite.
        """
        engine = run.engine
        state = run.state(with_weights=False)
        weights = engine.weights(run.language_model)
        self._on_main(run, lambda: check_finite_weights(run.language_model, weights))
        aside = self._on_main(run, self._aside_to_write)
        if engine.shards_optimizer:
            folder = Path(engine.all_gather_object(aside)[0]) / OPTIMIZER_FOLDER
            self._on_ranks(run, lambda: self._write_shards(run, folder))
        self._on_main(run, lambda: self._write(run, Path(aside), state, weights))
        self._intact.add(run.step)

    def load(self, run: AlignmentRun, step: int) -> None:
        """Takes a run to a checkpoint, whose weights (or adapters) its model must have.

        Raises:
            DataError: no usable state, or the state of a run on other data.
        """
        self.check_content(step, content_of(run))
        path = self.path(step) / STATE_FILE
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load fails in many ways on a damaged file
            raise DataError(
                f"{path}: not a usable training state: {error}; without {path.parent} the run goes "
                "on from the checkpoint before"
            ) from error
        shards = self.path(step) / OPTIMIZER_FOLDER
        run.load_state(state, shards if shards.is_dir() else None)

    def check_content(self, step: int, found: Mapping[str, str] | None = None) -> None:
        """Whether a checkpoint is of a run that read this, and `content`.

        Raises:
            DataError: something is not as it was.
        """
        check_content(self.path(step) / CONTENT_FILE, {**(found or {}), **self.content})

    def publish(self, step: int) -> None:
        """Makes the model of a checkpoint that of the directory, file by file."""
        with directory_aside(self.directory, ASIDE) as aside:
            for source in sorted(self.path(step).iterdir()):
                if source.is_file() and source.name not in _NOT_PUBLISHED:
                    with path_of_full_disk(self.directory / source.name):
                        _link_or_copy(source, aside / source.name)
                        put_in_place(aside / source.name, self.directory / source.name)

    def prune(self, keep: Iterable[int]) -> None:
        """Removes the checkpoints of other steps."""
        for step in set(self.steps()) - set(keep):
            remove_directory(self.path(step), self._make_aside())

    def remove_abandoned(self) -> None:
        """What a run left that was killed while it saved."""
        for parent in (self.directory, self.directory / FOLDER):
            for abandoned in parent.glob(f"{ASIDE}*"):
                shutil.rmtree(abandoned, ignore_errors=True)

    def _make_aside(self) -> Path:
        folder = self.directory / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=folder, prefix=ASIDE))

    def _aside_to_write(self) -> Path:
        with _named(FOLDER):
            return self._make_aside()

    def _write(self, run: AlignmentRun, aside: Path, state: dict[str, Any], weights: Any) -> None:
        with _named("the files of the model"):
            # Embeddings are none of the adapters' business; "auto" would ask the Hub about them.
            options = {} if run.config.lora_rank is None else {"save_embedding_layers": False}
            run.language_model.save_pretrained(aside, state_dict=weights, **options)
        with _named("the files of the tokenizer"):
            run.tokenizer.save_pretrained(aside)
        # Of an open file, whose own errors say why, unlike a path's.
        with _named(STATE_FILE), open(aside / STATE_FILE, "wb") as file:
            torch.save(state, file)
        for name in _COPIED:
            with _named(name), contextlib.suppress(FileNotFoundError):
                shutil.copyfile(self.directory / name, aside / name)
        with _named(CONTENT_FILE):
            content = json.dumps({**content_of(run), **self.content}, indent=1)
            (aside / CONTENT_FILE).write_text(content + "\n", encoding="utf-8")
        with _named(MANIFEST_FILE):
            let_others_read(aside)
            aside.chmod(self.directory.stat().st_mode)  # mkdtemp's are private
            write_manifest(aside)
        # The name may be taken: by a run that went on from an earlier step, or saved here before.
        with _named(aside.name):
            put_in_place(aside, self.path(run.step), flushed=True)
        self.remove_abandoned()

    def _write_shards(self, run: AlignmentRun, folder: Path) -> None:
        with _named("the optimizer's moments"):
            run.engine.save_shards(run.alignment, run.optimizer, folder)

    def _on_main(self, run: AlignmentRun, function: Callable[[], Any]) -> Any:
        return self._on_ranks(run, function if run.engine.is_main else lambda: None)

    def _on_ranks(self, run: AlignmentRun, function: Callable[[], Any]) -> Any:
        """Where it fails on one rank, it fails on all, and what was begun is removed."""
        result, error = None, None
        try:
            result = function()
        except Exception as caught:  # of many kinds, and the other ranks must not wait
            error = caught
        if not run.engine.any(error is not None):
            return result
        if run.engine.is_main:
            self.remove_abandoned()
        steps = self.steps()
        if isinstance(error, NotFiniteError):
            good = self.path(steps[-1]) if steps else "none yet"
            raise NotFiniteError(
                f"step {run.step} is not saved: {error}; last good checkpoint: {good}"
            ) from error
        last = f"the last complete one is {self.path(steps[-1])}" if steps else "none is there yet"
        raise OSError(
            f"{self.directory}: the checkpoint of step {run.step} cannot be written: "
            f"{error or 'another rank failed'}; {last}; make room or mend the cause, then --resume"
        ) from error

    def _damage(self, step: int) -> str:
        """Which file of a checkpoint is not as it was written, and how so; "" if all are."""
        if step not in self._intact:
            try:
                check_manifest(self.path(step))
            except DamagedFileError as error:
                return str(error)
            self._intact.add(step)
        return ""

    def _check_version(self, step: int, reason: str) -> None:
        """Earlier versions did not keep what tells whether files and data are as they were."""
        path = self.path(step)
        is_listed = reason and (path / MANIFEST_FILE).exists()
        if not is_listed and not (path / CONTENT_FILE).exists():
            raise DataError(
                f"{path}: is a checkpoint of an earlier version of crossalign, which this one "
                f"cannot check; go on with that version, or start a new run: --model {path} "
                "--output another directory"
            )

    def _set_aside(self, step: int, reason: str) -> None:
        if not self.is_main:
            return
        logger.warning("%s", reason)
        name = f"damaged-step-{step}"
        taken = len(list((self.directory / FOLDER).glob(f"{name}*")))
        with contextlib.suppress(OSError):
            self.path(step).rename(self.path(step).parent / (f"{name}.{taken}" if taken else name))


@contextlib.contextmanager
def _named(written: str) -> Iterator[None]:
    """An error of the body says what of a checkpoint could not be written, and why: `written` where
    it names no file. PyTorch's writer hides the reason behind an error of its own."""
    try:
        yield
    except Exception as error:  # of many kinds
        found: BaseException | None = error
        while found is not None and not (isinstance(found, OSError) and found.errno):
            found = found.__cause__ or found.__context__
        if not isinstance(found, OSError):
            raise OSError(f"{written}: {error}") from error
        name = found.filename2 or found.filename
        raise OSError(f"{Path(name).name if name else written}: {found.strerror}") from error


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
