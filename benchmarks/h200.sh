#!/usr/bin/env bash
# Tests and benchmarks on a machine with one NVIDIA GPU, in one call of under nine minutes.
#
# Needs python3 with torch, triton, transformers, pytest, pytest-benchmark and pytest-xdist; installs
# nothing for good and reaches no network. Results and the log go to $OUT (default:
# benchmarks/results).
#   BENCHMARK_COMMIT=abc1234   the commit of this tree, where its history did not come along;
#                              append -dirty if the tree differs from it
#   PYTHON=python3             the interpreter
# Peers are measured if their wheels lie in .whl/. On a machine with a network:
#   python3 -m pip download --no-deps --only-binary=:all: --dest .whl \
#       inf-cl==1.2.1 cut-cross-entropy==25.1.1 siglip-kernel==0.1.2 liger-kernel==0.8.5
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
export OUT=${OUT:-$PWD/benchmarks/results} PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
limit=530 # seconds for everything

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "h200.sh: $python finds no NVIDIA GPU here; nothing was measured" >&2
    exit 1
fi

mkdir -p "$OUT"
exec > >(tee "$OUT/h200.log") 2>&1
failed=()

# step NAME SECONDS COMMAND...: a step that fails or takes too long does not keep others from running
step() {
    local name=$1 seconds=$2 code=0
    shift 2
    echo "== $name, at most $seconds s, after $SECONDS s"
    timeout --kill-after=10 "$seconds" "$@" || code=$?
    if ((code)); then
        failed+=("$name")
        echo "== $name failed: exit status $code (124: out of time)"
    fi
}

nvidia-smi
if compgen -G '.whl/*.whl' >/dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    step peers 60 "$python" -m pip install --quiet --no-index --no-deps --target "$site" .whl/*.whl
    PYTHONPATH=$PYTHONPATH:$site
fi
if [[ -f csrc/build_extension.py ]]; then
    step extension 90 env CROSSALIGN_BUILD_EXTENSION=1 \
        "$python" -c 'from setuptools import setup; setup()' --quiet build_ext --inplace
fi
step tests 180 "$python" -m pytest -m cuda -n 4 --quiet -p no:cacheprovider
step pooling 60 "$python" -m benchmarks.bench_pooling --preset h200 --seconds 0.3
step gather 40 "$python" -m benchmarks.bench_gather --ranks 2 --device cuda --repeats 20
# Needs transformers. Both sides of a case come before its parts, which the budget may leave out.
step train_step 80 "$python" -m benchmarks.bench_train_step --preset gpu --seconds 0.5 \
    --budget-seconds 55
# The last step gets what is left; it starts no measurement in its last 50 seconds.
left=$((limit - SECONDS))
step contrastive "$left" "$python" -m benchmarks.bench_contrastive --preset h200 --seconds 0.4 \
    --budget-seconds $((left - 50))

echo "== results in $OUT, after $SECONDS s"
if ((${#failed[@]})); then
    echo "== failed: ${failed[*]}"
    exit 1
fi
