#!/usr/bin/env bash
# (a) Train, measure, and bring back the first parts.   bash experiments/gpu/train.sh OUT SECONDS [OPTION ...]
# Given again, it goes on from the last checkpoint. Whatever there is comes back, also if a step fails.
set -uo pipefail
. experiments/gpu/env.sh
out=$1 seconds=$2
shift 2
python3 -m experiments.gpu.train --model "$SCRATCH/model" --scratch "$SCRATCH" --target "$SAES" \
  --seconds "$seconds" "$@" 2>&1 | tee -a "$SAES/train.log"
python3 -m experiments.smollm2.measure --model "$SCRATCH/model" --scratch "$SCRATCH" \
  --target "$SAES" --device "${DEVICE:-cuda}" 2>&1 | tee "$SAES/measure.log"
python3 experiments/gpu/results.py split --source "$SAES" --out "$out" --first 0 --count 4
