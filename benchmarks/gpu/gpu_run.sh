#!/usr/bin/env bash
# Measures on one GPU, in two calls, the most important figures first.
#
#   bash benchmarks/gpu/gpu_run.sh 1-3 --out /tmp/out     # at most 8.5 minutes
#   bash benchmarks/gpu/gpu_run.sh 4-7 --out /tmp/out     # at most 5 minutes
#
#   PARTS            such as 2, 1-3 or 1,4-7, see README.md; without them all, as far as 8.5
#                    minutes go
#   --out FOLDER     of the results (OUT), which are added to those that it has
#   --data FOLDER    of the texts, where there is no network (GPT_JAX_DATA)
#   --only REGEX     steps by name (ONLY), such as 'sweep|profile'
#
# PY names the Python, BUDGET the seconds of the call, CACHE the folder of compiled programs. TINY=1
# is a dry run on a CPU.
#
# Parts and steps have time limits. Figures are appended to results.jsonl at once, a line of JSON
# each, so a step that fails or hangs loses nothing of the others. Everything printed is in log.txt.
# A summary of all calls that wrote to the folder comes last, in summary.txt too.
set -u
fail() { echo "error: $1" >&2; exit 2; }
usage() { sed -n '2,/^set/{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

OUT=${OUT:-/tmp/gpu_out}; TINY=${TINY:-}; PY=${PY:-python3}; ONLY=${ONLY:-.}; PARTS=
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit ;;
    --out | --data | --only) [ $# -gt 1 ] || fail "$1 needs a value" ;;&
    --out) OUT=$2; shift 2 ;;
    --only) ONLY=$2; shift 2 ;;
    --data) GPT_JAX_DATA=$(cd "$2" 2>/dev/null && pwd) || fail "--data $2 is no folder"
      export GPT_JAX_DATA; shift 2 ;;
    [1-8] | [1-8][-,]*) PARTS+="${PARTS:+,}$1"; shift ;;
    *) fail "$1: unknown; see --help" ;;
  esac
done
echo x | grep -qE "$ONLY"; [ $? -lt 2 ] || fail "--only $ONLY is no regular expression"

# Seconds of each part. What one does not take, the next may.
SECONDS_OF=([1]=235 [2]=90 [3]=165 [4]=105 [5]=90 [6]=60 [7]=25 [8]=400)
RESERVE=20  # seconds of the budget kept for the summary
asked=' '; total=$RESERVE
for range in $(echo "${PARTS:-1-8}" | tr , ' '); do
  [[ $range =~ ^[1-8](-[1-8])?$ ]] || fail "$range: parts are 1 to 8, such as 1-3"
  for ((n = ${range%-*}; n <= ${range#*-}; n++)); do
    [[ $asked == *" $n "* ]] || { asked+="$n "; total=$((total + SECONDS_OF[n])); }
  done
done
SLOWER=1
if [ -n "$TINY" ]; then SLOWER=6; fi  # other work may share the CPU
BUDGET=${BUDGET:-$([ -n "$PARTS" ] && echo $((SLOWER * total)) || echo $((SLOWER * 510)))}

mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 1
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
START=$(date +%s)
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
[ -n "$TINY" ] && export OMP_NUM_THREADS=1  # threads that wait for a core spin
export OUT TINY W PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=2
# Compiled programs of one step serve the next, and a second run on the same machine.
CACHE=${CACHE:-$([ -n "$TINY" ] && echo "$W/cache" || echo /tmp/gpu_cache)}
export JAX_COMPILATION_CACHE_DIR=$CACHE/jax JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export TORCHINDUCTOR_CACHE_DIR=$CACHE/inductor XLA_PYTHON_CLIENT_MEM_FRACTION=0.92

remaining() {  # the seconds that a step may take: of its part, and of the call
  local now left; now=$(($(date +%s) - START))
  left=$((BUDGET - RESERVE - now))
  echo $((left < PART_END - now ? left : PART_END - now))
}

append() {  # append LINE: a process that was killed may have left half a line
  [ -s "$OUT/results.jsonl" ] && [ -n "$(tail -c 1 "$OUT/results.jsonl")" ] && echo >>"$OUT/results.jsonl"
  echo "$1" >>"$OUT/results.jsonl"
}

skip() {  # skip NAME REASON
  echo "--- $1: skipped, $2" | tee -a "$OUT/log.txt"
  append "{\"step\":\"$1\",\"part\":$PART,\"skipped\":\"$2\"}"
}

PART=0; PART_END=0; WANTED=
part() {  # part NUMBER: of the steps that follow
  PART=$1; WANTED=
  [[ $asked == *" $1 "* ]] || return 0
  WANTED=yes; PART_END=$((PART_END + SLOWER * SECONDS_OF[$1]))
}

step() {  # step NAME SECONDS COMMAND...
  local name=$1 limit=$((SLOWER * $2)); shift 2
  [ -n "$WANTED" ] && echo "$name" | grep -qE "$ONLY" || return 0
  [[ $name == torch_* && -z $TORCH ]] && { skip "$name" "PyTorch is not installed"; return 0; }
  [ "$(remaining)" -lt 12 ] && { skip "$name" "no time left"; return 0; }
  [ "$limit" -gt "$(remaining)" ] && limit=$(remaining)
  local began; began=$(date +%s)
  echo "=== $name (limit ${limit} s, at $((began - START)) s)" | tee -a "$OUT/log.txt"
  STEP_LIMIT=$limit STEP_PART=$PART timeout -k 5 "$limit" "$@" >>"$OUT/log.txt" 2>&1
  local rc=$?
  append "{\"step\":\"$name\",\"part\":$PART,\"rc\":$rc,\"wall_s\":$(($(date +%s) - began))}"
  [ $rc -ne 0 ] && { echo "!!! $name: exit status $rc"; tail -n 5 "$OUT/log.txt"; }
  return 0
}

bench() {  # bench SECONDS STEP KEY=VALUE...
  local limit=$1; shift
  step "$(echo "$*" | tr ' ' _)" "$limit" "$PY" benchmarks/gpu/gpu_bench.py "$@"
}

TORCH=$("$PY" -c "import importlib.util as u; print('yes' if u.find_spec('torch') else '')")
command -v nvidia-smi >/dev/null && nvidia-smi >>"$OUT/log.txt" 2>&1
append "{\"call\":\"$(date -u +%Y-%m-%dT%H:%M:%SZ)\",\"parts\":[$(echo $asked | tr ' ' ,)],\"budget_s\":$BUDGET}"

# Chip, versions and rates, once in each call, in its first part.
first=${asked# }
part "${first%% *}"
bench 30 facts
PART_END=$((BUDGET > SLOWER * total ? BUDGET - SLOWER * total : 0))  # a larger budget is for all

part 1  # base beside PyTorch compiled, each with several micro-batches
bench 60 train save=base
bench 135 torch_train mode=compiled micro=32,16,64,8  # as many as time allows
bench 75 sweep micro=8,16,64 chunk=none

part 2  # nano beside PyTorch; all multiply float32 as TF32, jax by default
bench 40 nano graphs=default
bench 70 torch_nano mode=eager,graphs precision=high

part 3  # a whole run
bench 165 run config=shakespeare_char

part 4  # generation, beside transformers
bench 50 decode model=base batch=64,1,256
bench 75 torch_decode batch=64,1,256

part 5  # is it right, and the same again
bench 65 reproducible
bench 40 correct

part 6  # the plan beside what is measured, and what bitwise reproducible steps cost
bench 40 predict config=base accumulate=16
bench 40 predict config=base accumulate=16 deterministic=1
bench 30 predict config=shakespeare_char

part 7  # tests with a path of their own on a GPU
bench 60 tests

part 8  # where the time goes, and what was tried
bench 45 profile model=base
bench 25 profile model=nano
bench 25 profile model=base batch=1
bench 25 profile model=base batch=64
bench 60 train tuning=plain
bench 170 sweep micro=8,16,32,64
bench 35 decode model=base batch=1 graphs=chunk
bench 50 nano graphs=step,chunk
bench 40 nano deterministic=1
bench 60 run config=nano

RESERVE=0; ONLY=.; WANTED=yes; PART_END=$BUDGET; PART=0
step summary 20 "$PY" benchmarks/gpu/gpu_bench.py summary "$OUT"
cat "$OUT/summary.txt" 2>/dev/null
