"""Do the tests of the host libraries pass with one changed import?

python -m benchmarks.drop_ins.host_tests --sources DIR [--only NAME] [--output FILE.json]

DIR holds clones by the name of the repository, whose tests run against the library of the clone.
Each runs twice, with the library's own losses and with the drop-ins; what fails with its own (it
downloads something, say) does not apply.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.provenance import provenance


class Host(NamedTuple):
    """A library: its repository, what pip calls it, where its package is in the repository, and
    its tests of losses that have a drop-in."""

    repository: str
    package: str
    folder: str
    tests: tuple[str, ...]


HOSTS = {
    "sentence_transformers": Host(
        "sentence-transformers",
        "sentence-transformers",
        ".",
        tuple(
            f"sentence_transformer/losses/test_{name}.py"
            for name in (
                *("cached_gist_embed", "cached_mnsrl", "cmnrl", "gist_embed", "gradcache"),
                *("matryoshka", "merged_forward", "adaptive_layer"),
            )
        ),
    ),
    "open_clip": Host(
        "open_clip",
        "open_clip_torch",
        "src",
        ("test_loss.py", "test_siglip_chunked_loss.py", "test_factory_task.py"),
    ),
    "lightly": Host(
        "lightly",
        "lightly",
        ".",
        ("loss/test_ntx_ent_loss.py", "utils/test_dist__gather__losses.py"),
    ),
    "pytorch_metric_learning": Host(
        "pytorch-metric-learning",
        "pytorch-metric-learning",
        "src",
        tuple(
            f"losses/test_{name}.py"
            for name in (
                *("ntxent_loss", "cross_batch_memory"),
                *("losses_without_labels", "self_supervised_loss"),
            )
        ),
    ),
}
ROOT = Path(__file__).parents[2]


def run_tests(name: str, sources: Path, whose: str) -> dict[str, str]:
    """Outcome by test, of a copy of the tests: "passed", "skipped" or the message of a failure."""
    host = HOSTS[name]
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(sources / host.repository / "tests", Path(copy) / "tests")
        report = Path(copy) / "report.xml"
        paths = [str(ROOT), str((sources / host.repository / host.folder).resolve())]
        paths += filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        environment = {
            **os.environ,
            **{"DROP_IN": name, "DROP_IN_WHOSE": whose, "TEST_DEVICE": "cpu"},
            **{"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"},
        }
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}"]
        command += ["-p", "benchmarks.drop_ins.changed_import", "-p", "no:cacheprovider"]
        there = [f"tests/{each}" for each in host.tests if (Path(copy) / "tests" / each).exists()]
        command += ["--continue-on-collection-errors", *there]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        if not report.exists():
            raise RuntimeError(f"pytest did not run in {host.repository}: {done.stdout[-2000:]}")
        return dict(map(_outcome, ElementTree.parse(report).iter("testcase")))


def _outcome(case: ElementTree.Element) -> tuple[str, str]:
    test = f"{case.get('classname')}::{case.get('name')}"
    for kind in ("failure", "error"):
        found = case.find(kind)
        if found is not None:
            return test, (found.get("message") or kind).splitlines()[0][:200]
    return test, "skipped" if case.find("skipped") is not None else "passed"


def compare(name: str, sources: Path) -> dict[str, Any]:
    """How many tests pass with the host's own losses, and which of those do not with ours."""
    host = HOSTS[name]
    if importlib.util.find_spec(name) is None:
        return {"skipped": f"{host.package} is not installed"}
    if not (sources / host.repository / "tests").exists():
        return {"skipped": f"no {sources / host.repository / 'tests'}"}
    theirs, ours = (run_tests(name, sources, whose) for whose in ("host", "crossalign"))
    applies = sorted(test for test, outcome in theirs.items() if outcome == "passed")
    if not applies:
        first = next(iter(theirs.items()), "no test was found")
        raise RuntimeError(f"no test of {host.repository} passes with its own losses: {first}")
    return {
        "commit": _commit(sources / host.repository),
        "tests": len(theirs),
        "pass_with_the_host": len(applies),
        "pass_with_the_drop_in": sum(ours.get(test) == "passed" for test in applies),
        "do_not_pass": {
            test: ours.get(test, "missing") for test in applies if ours.get(test) != "passed"
        },
        "do_not_apply": {
            test: outcome for test, outcome in sorted(theirs.items()) if outcome != "passed"
        },
    }


def _commit(clone: Path) -> str:
    words = ["git", "-C", str(clone), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip() or "unknown"


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sources", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=HOSTS, default=list(HOSTS))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(words)
    found = {name: compare(name, arguments.sources) for name in arguments.only}
    for name, result in found.items():
        if "skipped" in result:
            print(f"{name}: skipped, {result['skipped']}")
            continue
        passed, applies = result["pass_with_the_drop_in"], result["pass_with_the_host"]
        print(f"{name} {result['commit']}: {passed} of {applies} pass with the drop-ins")
        for test, message in result["do_not_pass"].items():
            print(f"  {test}: {message}")
    if arguments.output is not None:
        run = provenance(torch.device("cpu"))
        known = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
        hosts = known.get("hosts", {}) | {
            name: {**result, "run": run} for name, result in found.items()
        }
        arguments.output.write_text(json.dumps({"hosts": hosts}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
