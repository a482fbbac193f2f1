#!/usr/bin/env bash
# One run on a GPU in at most 8.5 minutes, the most important figures first.
#
#   OUT=/tmp/out bash benchmarks/gpu/gpu_run.sh                          # all
#   ONLY='sweep|profile' OUT=/tmp/out bash benchmarks/gpu/gpu_run.sh     # steps by name
#   TINY=1 OUT=/tmp/out bash benchmarks/gpu/gpu_run.sh                   # a dry run on a CPU
#
# Each step has a time limit and appends its figures to $OUT/results.jsonl at once, so a step that
# fails or hangs loses nothing of the others. Everything printed is in $OUT/log.txt; a table comes
# last, in $OUT/summary.txt too. PY names the Python, BUDGET the seconds, CACHE the folder of
# compiled programs.
set -u
OUT=${OUT:-/tmp/gpu_out}; TINY=${TINY:-}; PY=${PY:-python3}; ONLY=${ONLY:-.}
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 1
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
BUDGET=${BUDGET:-$([ -n "$TINY" ] && echo 1500 || echo 510)}
RESERVE=20  # seconds of the budget kept for the summary
START=$(date +%s)
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
export OUT TINY W PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=2
# Compiled programs of one step serve the next, and a second run on the same machine.
CACHE=${CACHE:-$([ -n "$TINY" ] && echo "$W/cache" || echo /tmp/gpu_cache)}
export JAX_COMPILATION_CACHE_DIR=$CACHE/jax JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export TORCHINDUCTOR_CACHE_DIR=$CACHE/inductor XLA_PYTHON_CLIENT_MEM_FRACTION=0.92

remaining() { echo $((BUDGET - RESERVE - ($(date +%s) - START))); }

skip() {  # skip NAME REASON
  echo "--- $1: skipped, $2" | tee -a "$OUT/log.txt"
  echo "{\"step\":\"$1\",\"skipped\":\"$2\"}" >>"$OUT/results.jsonl"
}

step() {  # step NAME SECONDS COMMAND...
  local name=$1 limit=$2; shift 2
  echo "$name" | grep -qE "$ONLY" || return 0
  [[ $name == torch_* && -z $TORCH ]] && { skip "$name" "PyTorch is not installed"; return 0; }
  [ "$(remaining)" -lt 12 ] && { skip "$name" "no time left"; return 0; }
  [ -n "$TINY" ] && limit=$((3 * limit))  # other work may share the CPU
  [ "$limit" -gt "$(remaining)" ] && limit=$(remaining)
  local began; began=$(date +%s)
  echo "=== $name (limit ${limit} s, at $((began - START)) s)" | tee -a "$OUT/log.txt"
  timeout -k 5 "$limit" "$@" >>"$OUT/log.txt" 2>&1
  local rc=$?
  echo "{\"step\":\"$name\",\"rc\":$rc,\"wall_s\":$(($(date +%s) - began))}" >>"$OUT/results.jsonl"
  [ $rc -ne 0 ] && { echo "!!! $name: exit status $rc"; tail -n 5 "$OUT/log.txt"; }
  return 0
}

bench() {  # bench SECONDS STEP KEY=VALUE...
  local limit=$1; shift
  step "$(echo "$*" | tr ' ' _)" "$limit" "$PY" benchmarks/gpu/gpu_bench.py "$@"
}

TORCH=$("$PY" -c "import importlib.util as u; print('yes' if u.find_spec('torch') else '')")
small=(); shakespeare=()
if [ -n "$TINY" ]; then
  small=(--model.n-layer 1 --model.n-embd 16 --model.n-head 2 --train.steps 20
    --train.eval-interval 10 --train.eval-batches 2)
  shakespeare=(--model.block-size 8 --train.batch-size 4)
fi
nvidia-smi >>"$OUT/log.txt" 2>&1

# --- the first five minutes
bench 30 facts
# base beside PyTorch compiled
bench 60 train save=base
bench 80 torch_train mode=compiled
# generation, and nano
bench 50 decode model=base batch=1,64
bench 30 nano graphs=default
# a whole run, compiling and evaluations included
step shakespeare_char 150 "$PY" main.py --config shakespeare_char --run-dir "$W/char" \
  "${small[@]}" "${shakespeare[@]}"
bench 45 profile model=base
bench 50 train micro=64 accumulate=2
# nano in PyTorch, which multiplies float32 as TF32 like jax
bench 45 torch_nano mode=graphs precision=high
bench 25 torch_nano mode=eager precision=high
bench 25 torch_decode batch=1
# --- is it right, and where does the time go
bench 60 correct
step whole_nano 60 "$PY" main.py --config nano --run-dir "$W/nano" "${small[@]}"
bench 25 profile model=base batch=1
bench 30 profile model=nano
bench 60 train tuning=plain
bench 170 sweep micro=8,16,32,64
bench 25 profile model=base batch=64
bench 35 decode model=base batch=1 graphs=chunk
bench 50 nano graphs=step,chunk
step deterministic 45 "$PY" main.py --config nano --run-dir "$W/det" \
  --train.deterministic true --train.steps 100 --train.eval-batches 5 "${small[@]}"
step tests 60 "$PY" -m pytest -q -n 0 -p no:cacheprovider \
  tests/model/test_attention.py tests/model/test_layers.py
RESERVE=0
ONLY=.
step summary 20 "$PY" benchmarks/gpu/gpu_bench.py summary
cat "$OUT/summary.txt" 2>/dev/null
