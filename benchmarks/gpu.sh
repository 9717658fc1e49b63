#!/usr/bin/env bash
# All that a machine with a GPU is asked, in one run: parity in the lock profile, a device lost on the way, the sweep
# against its lower bound, blocks under torch.compile. Every step has a time limit, and so has the whole run; where a step
# fails the others run all the same, and the status is 1.
#
#   OUT=build/gpu FV_SRC=CHECKOUT benchmarks/gpu.sh             all steps
#   FV_SRC=CHECKOUT benchmarks/gpu.sh --step sweep bf16         one, as it is run there
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=${here%/*}

export PYTHON=${PYTHON:-python3}             # with the project installed
export FV_SRC=${FV_SRC:-}                    # a checkout of the reference; without, it is left out
export FV_DEVICE=${FV_DEVICE:-cuda} FV_SIZE=${FV_SIZE:-llama-3.1-8b} FV_DTYPES=${FV_DTYPES:-fp32 bf16}
export FV_ROUNDS=${FV_ROUNDS:-2} FV_TRIALS=${FV_TRIALS:-10} FV_THREADS=${FV_THREADS:-2}
export FV_MILESTONES=${FV_MILESTONES:-m1 m2 m6}  # the golden, the six checks, and twice again with the same numbers
export FV_EDIT_LAYER=${FV_EDIT_LAYER:-9}     # the lock's; of a shape of fewer layers give another
export FV_COMPILER=${FV_COMPILER:-inductor}  # of torch.compile
export FV_LIMIT=${FV_LIMIT:-480}             # seconds of the whole run; limits of steps grow with it
export CUBLAS_WORKSPACE_CONFIG=:4096:8 HF_HUB_OFFLINE=1 PYTHONHASHSEED=0 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
export PYTHONPATH=$here:$root${PYTHONPATH:+:$PYTHONPATH}
OUT=${OUT:-build/gpu}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export OUT
if [[ -n $FV_SRC ]]; then
  FV_SRC=$(cd "$FV_SRC" && pwd)
fi
LEFT_OUT=77

# The steps. Each runs in a process of its own; the last line that it prints is its result.

machine() {
  "$PYTHON" -c '
import os, torch
device = torch.device(os.environ["FV_DEVICE"])
name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
print(f"torch {torch.__version__} on {name}")'
}

lock() { # DTYPE
  local model=tiny-llama how=() trials=fixed_trials_tiny_antonym_t10_s10_seed0_tiny_llama.json milestone
  if [[ -z $FV_SRC && $1 != fp32 ]]; then
    echo "FV_SRC names no checkout of the reference, and the golden that ships is of fp32"
    return "$LEFT_OUT"
  fi
  mkdir "$OUT/lock-$1"
  cd "$OUT/lock-$1" # in the project's own folder a run collects its tests
  cp "$root/datasets/fixed_trials/$trials" .
  if [[ -n $FV_SRC ]]; then
    model=small
    how=(--fv-src "$FV_SRC" --edit-layer "$FV_EDIT_LAYER")
    "$PYTHON" "$here/gpu_steps.py" shape "$FV_SIZE" shape
    "$PYTHON" -m fvcore spec shrink shape --out small --layers 10 --trials "$trials"
  fi
  for milestone in $FV_MILESTONES; do
    "$PYTHON" -m pytest_fvparity milestone "$milestone" --profile antonym-lock --model "$model" --trials "$trials" \
      --device "$FV_DEVICE" --dtype "$1" --out . "${how[@]}" | tee "$milestone.txt"
  done
  grep -h '^M2 PASS' ./*.txt
}

lost() { # parity or steps
  "$PYTHON" "$here/gpu_steps.py" "lost-$1" --device "$FV_DEVICE" --out "$OUT/lost-$1"
}

sweep() { # DTYPE
  COLUMNS=400 "$PYTHON" "$here/sweep.py" --size "$FV_SIZE" --device "$FV_DEVICE" --dtype "$1" --rounds "$FV_ROUNDS" \
    --trials "$FV_TRIALS" --threads "$FV_THREADS" --no-whole ${FV_SRC:+--fv-src "$FV_SRC"} --out "$OUT/performance.json" |
    tee "$OUT/sweep-$1.txt"
  grep 'engine fast' "$OUT/sweep-$1.txt"
}

compiled() { # DTYPE
  "$PYTHON" "$here/gpu_steps.py" compiled "$FV_SIZE" --device "$FV_DEVICE" --dtype "$1" --compiler "$FV_COMPILER" \
    --out "$OUT/compiled-$1.json"
}

step() { # SECONDS NAME [ARGUMENT]
  local name=$2${3:+-$3} start=$SECONDS status=0 said
  local limit=$(($1 * FV_LIMIT / 480)) left=$((FV_LIMIT - SECONDS))
  limit=$((limit < left ? limit : left))
  limit=$((limit > 0 ? limit : 1))
  timeout --kill-after=5 "$limit" bash "$here/gpu.sh" --step "${@:2}" >"$OUT/$name.log" 2>&1 </dev/null || status=$?
  case $status in
    0) said=ok ;;
    "$LEFT_OUT") said="left out" ;;
    124 | 137) said="FAILED, not done after $limit s" ;;
    *) said="FAILED with status $status" ;;
  esac
  if [[ $said == FAILED* ]]; then
    tail -n 20 "$OUT/$name.log" | sed "s/^/$name | /" >&2
  fi
  printf '%-14s %4d s  %s: %s\n' "$name" $((SECONDS - start)) "$said" "$(tail -n 1 "$OUT/$name.log")" | tee -a "$OUT/steps.txt"
}

if [[ ${1:-} == --step ]]; then
  "${@:2}"
  exit
fi

rm -rf "$OUT"/{lock-*,lost-*,sweep-*,compiled-*,*.log,performance.json,steps.txt}
if [[ -z $FV_SRC ]]; then
  echo "FV_SRC names no checkout of the reference: it is left out" | tee "$OUT/steps.txt"
fi
step 60 machine
if ! grep -q FAILED "$OUT/steps.txt"; then
  for dtype in $FV_DTYPES; do step 180 lock "$dtype" & done
  for what in parity steps; do step 120 lost "$what" & done
  wait # nothing is timed before
  for dtype in $FV_DTYPES; do step 200 sweep "$dtype"; done
  for dtype in $FV_DTYPES; do step 90 compiled "$dtype"; done
fi
echo "--- $SECONDS s, results in $OUT"
cat "$OUT/steps.txt"
if grep -q FAILED "$OUT/steps.txt"; then
  echo "FAILED" >&2
  exit 1
fi
