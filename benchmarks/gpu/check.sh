#!/usr/bin/env bash
# All that is to be known of a GPU, as one command of at most twelve minutes; see benchmarks/README.md.
#
#   benchmarks/gpu/check.sh DATA OUT     on a GPU; DATA is a folder with CIFAR-10 as Parquet
#   benchmarks/gpu/check.sh --dry OUT    the same stages in small, on the CPU
#
# PYTHON names the interpreter. Wheels in benchmarks/gpu/wheels are installed beside it, without a
# network. A stage that fails or hangs costs its limit and nothing else; results come as they are
# made, and the exit status is the number of stages that failed. PATIENCE multiplies the limits, for
# a machine that is busy with other work.
set -u
cd "$(dirname "$0")/../.." || exit 9
data=${1:?DATA or --dry}
out=${2:?OUT}
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(realpath "$out")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONUNBUFFERED=1 FLWR_TELEMETRY_ENABLED=0 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
if compgen -G "benchmarks/gpu/wheels/*.whl" >/dev/null; then
    $python -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
        --target "$work/site" benchmarks/gpu/wheels/*.whl || exit 9
fi
export PYTHONPATH=$PWD:$PWD/benchmarks:$work/site
if [ "$data" = --dry ]; then
    device=cpu
    steps=(--clients 2 --batch-size 4 --warm-up 1 --times 1 --calls 1)
    ways=(--data digits --samples 300 --clients 3 --local-epochs 1 --batch-size 16 --rounds 1)
    paper=(dataset=digits max-train-samples=300 num-clients=3 model=resnet8 alpha=1.0 rounds=1
        local-epochs=1 batch-size=16 client-batching=always)
else
    device=cuda
    data=$(realpath "$data")
    steps=()
    ways=(--data "$data" --rounds 2)
    paper=(dataset="$data" num-clients=10 model=resnet8 alpha=0.1 rounds=100 local-epochs=5
        batch-size=128)
fi
failed=0
begin=$SECONDS
stage() { # name limit command...
    local name=$1 limit=$2
    shift 2
    timeout -k 5 $((limit * ${PATIENCE:-1})) "$@" >"$out/$name.log" 2>&1
    local status=$?
    [ $status = 0 ] || failed=$((failed + 1))
    echo "$name: status $status, $((SECONDS - begin)) s since the beginning" | tee -a "$out/stages.log"
}
paper_run() { # strategy
    $python -m ahfal_app run "${paper[@]}" device=$device strategy="$1" seed=0 \
        data-dir="$work/data" output-dir="$work/runs" name="$1"
}
papers() { # the one whose time counts alone, then the others beside each other
    local status=0 strategy pids=()
    paper_run ahfal >"$out/ahfal.log" 2>&1 || status=1
    for strategy in entropy random; do
        paper_run $strategy >"$out/$strategy.log" 2>&1 &
        pids+=($!)
    done
    for strategy in "${pids[@]}"; do wait "$strategy" || status=1; done
    return $status
}
export -f paper_run papers
export python device work out
stage import 60 $python -c '
import sys, torch, ahfal_app.engine.local
print(sys.version, torch.__version__, torch.cuda.device_count())'
AHFAL_TEST_DEVICE=$device stage tests 120 $python -m pytest -p no:cacheprovider -q \
    -o addopts= -o filterwarnings= tests/training/test_client_batching.py \
    -k "as_alone and (resnet8 or small) or half_precision"
stage steps 60 $python benchmarks/gpu/steps.py --device $device "${steps[@]}" \
    --output "$out/steps.json"
stage ways 100 $python benchmarks/client_batching.py --device $device "${ways[@]}" \
    --data-dir "$work/data" --output "$out/ways.json"
# Arrays cannot be exported.
stage paper 360 bash -c "paper=(${paper[*]@Q}); papers"
# What was cut off still tells how far it came.
for strategy in ahfal entropy random; do
    for file in metrics.jsonl summary.json environment.json; do
        folder=$work/runs/$strategy
        [ -f "$folder/$file" ] && cp "$folder/$file" "$out/$strategy-$file"
    done
done
exit $failed
