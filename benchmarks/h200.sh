#!/usr/bin/env bash
# The first minutes on a machine with one NVIDIA GPU: is it right, how fast is it, which tiles are best;
# then tests and the other benchmarks. Arguments: the stages to run, by name; none: all, in the order
# below, with what is left for the last ones. Thirty minutes in three calls of under ten each:
#   h200.sh environment check headline peers-install peers tile-sweep counters
#   h200.sh tests memcheck racecheck
#   h200.sh sizes pooling extension gather train_step
#
# Needs python3 with torch, triton, transformers, pytest, pytest-benchmark and pytest-xdist; installs
# nothing for good and reaches no network. Results and the log go to $OUT (default:
# benchmarks/results), each written as it comes: a call that is cut off keeps what it measured.
#   BENCHMARK_COMMIT=abc1234   the commit of this tree, where its history did not come along;
#                              append -dirty if the tree differs from it
#   PYTHON=python3             the interpreter
#   LIMIT_SECONDS=565          of the whole call
# Peers are measured if their wheels lie in .whl/. On a machine with a network:
#   python3 -m pip download --no-deps --only-binary=:all: --dest .whl memeff==0.3.1 \
#       inf-cl==1.2.1 cut-cross-entropy==25.1.1 siglip-kernel==0.1.2 liger-kernel==0.8.5
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
export OUT=${OUT:-$PWD/benchmarks/results} PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8
limit=${LIMIT_SECONDS:-565}
shortest=15 # seconds; a stage that would get less is left out

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "h200.sh: $python finds no NVIDIA GPU here; nothing was measured" >&2
    exit 1
fi

known=" environment check headline peers-install peers tile-sweep counters memcheck racecheck sizes tests"
known+=" pooling extension gather train_step "
for name in "$@"; do
    if [[ $known != *" $name "* ]]; then
        echo "h200.sh: no stage is called $name; the stages are:$known" >&2
        exit 2
    fi
done
chosen=" $* "

mkdir -p "$OUT"
exec > >(tee -a "$OUT/h200.log") 2>&1
failed=()

# stage NAME SECONDS COMMAND...: never longer than what is left of the whole, and never without a limit
# (`timeout 0` is none). It ends with SIGINT, at which Python still says what it knows. A stage that
# fails or takes too long does not keep others from running.
stage() {
    local name=$1 seconds=$2 left=$((limit - SECONDS)) code=0
    shift 2
    if [[ $chosen != "  " && $chosen != *" $name "* ]]; then return; fi
    if ((left < shortest)); then
        echo "== $name is left out: $left s are left"
        return
    fi
    if ((seconds > left)); then seconds=$left; fi
    echo "== $name, at most $seconds s, after $SECONDS s"
    timeout --signal=INT --kill-after=8 "$seconds" "$@" || code=$?
    if ((code)); then
        failed+=("$name")
        echo "== $name failed: exit status $code (124: out of time)"
    fi
}

# contrastive GROUP... : ours and plain PyTorch in every case first, peers second
contrastive() {
    "$python" -m benchmarks.bench_contrastive --preset h200 --seconds 0.3 --row-seconds 40 --group "$@"
}
export -f contrastive
export python

nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit --format=csv
stage environment 40 "$python" -c 'import sys, torch, triton
print(sys.version, torch.__version__, triton.__version__, torch.cuda.get_device_name())'
stage check 150 bash -c 'set -o pipefail; "$python" -m crossalign check --json | tee "$OUT/check.json"'
stage headline 60 bash -c 'contrastive headline --budget-seconds 45'
if compgen -G '.whl/*.whl' >/dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    stage peers-install 30 "$python" -m pip install --quiet --no-index --no-deps --target "$site" .whl/*.whl
    PYTHONPATH=$PYTHONPATH:$site
    stage peers 80 bash -c 'contrastive headline peers sigmoid --budget-seconds 65'
fi
stage tile-sweep 150 "$python" -m benchmarks.sweep_tiles --seconds 140
if command -v ncu >/dev/null; then
    stage counters 45 ncu --clock-control none --section SpeedOfLight --section WarpStateStats \
        --section MemoryWorkloadAnalysis --section ComputeWorkloadAnalysis \
        -k 'regex:_contrastive_(fwd|bwd)_kernel' --launch-skip 2 --launch-count 2 \
        "$python" -m benchmarks.sweep_tiles --steps 3
fi
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        stage "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 3 \
            "$python" -m benchmarks.sweep_tiles --steps 1 --rows 700 --width 200
    done
fi
stage sizes 60 bash -c 'contrastive size width options dtype --budget-seconds 50'
stage tests 300 "$python" -m pytest -m cuda -n 8 --quiet -W default -p no:cacheprovider \
    --continue-on-collection-errors tests/kernels tests/contrastive tests/pooling tests/distributed
stage pooling 60 "$python" -m benchmarks.bench_pooling --preset h200 --seconds 0.3 --row-seconds 20
if [[ -f csrc/build_extension.py ]]; then
    stage extension 90 env CROSSALIGN_BUILD_EXTENSION=1 TORCH_CUDA_ARCH_LIST=9.0 \
        "$python" -c 'from setuptools import setup; setup()' --quiet build_ext --inplace
fi
stage gather 40 "$python" -m benchmarks.bench_gather --ranks 2 --device cuda --repeats 20
# Needs transformers. Both sides of a case come before its parts, which the budget may leave out.
stage train_step 80 "$python" -m benchmarks.bench_train_step --preset gpu --seconds 0.5 \
    --budget-seconds 55

echo "== results in $OUT, after $SECONDS s"
if ((${#failed[@]})); then
    echo "== failed: ${failed[*]}"
    exit 1
fi
