#!/usr/bin/env bash
# The other parts of (a); (b) the tests that need a GPU; (c) rates at Gemma-2-2B's shapes.
#   bash experiments/gpu/checks.sh OUT
set -uo pipefail
. experiments/gpu/env.sh
python3 experiments/gpu/results.py split --source "$SAES" --out "$1" --first 4 --count 2
{
  timeout 60 python3 -m pytest -q -p no:cacheprovider -m gpu tests/test_on_gpu.py
  benchmark() { # NAME OPTION ...
    local name=$1
    shift
    timeout 60 python3 -m "experiments.benchmarks.$name" "$@"
  }
  benchmark output_score --device cuda --features 16384
  benchmark generation --device cuda --dtype bfloat16 --tokens 64 --rounds 3 --loops 1
  benchmark generation --device cuda --dtype bfloat16 --tokens 64 --rounds 3 --loops 1 --rows 1024
  benchmark input_score --device cuda --dtype bfloat16 --tokens 200000 --layer 20
} 2>&1 | tee "$1/checks.log"
