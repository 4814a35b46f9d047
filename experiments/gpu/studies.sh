#!/usr/bin/env bash
# (d) The experiments at full size.   bash experiments/gpu/studies.sh OUT SECONDS
# The most wanted first, each at most as long as it says, as far as the seconds go. Given again, it goes
# on: what has ended is left alone, what was stopped finds its scores and texts in the cache. The tables of
# those that have ended come back as experiments/results has them, without their texts.
set -uo pipefail
. experiments/gpu/env.sh
out=$1 end=$((SECONDS + $2)) runs=$SCRATCH/runs tables=$SCRATCH/tables
mkdir -p "$out" "$runs"
subject=(
  model=local "model.path=$SCRATCH/model" 'model.aliases=["HuggingFaceTB/SmolLM2-135M-Instruct"]'
  device=cuda "paths.cache_dir=$SCRATCH/cache"
)
if [ -d "$SCRATCH/site/steerlens_smollm2/smollm2-topk" ]; then # the SAEs that ship were sent
  subject+=(sae=smollm2-topk corpus=embedded)
  batchtopk=(sae=smollm2-batchtopk)
else # they were trained here
  [ -f "$SCRATCH/corpus.jsonl" ] || python3 -m experiments.gpu.text --model "$SCRATCH/model" \
    --scratch "$SCRATCH" --written "$SAES/written.npy" --target "$SCRATCH/corpus.jsonl"
  subject+=(sae=local "sae.path=$SAES/smollm2-topk" corpus=jsonl "corpus.path=$SCRATCH/corpus.jsonl")
  batchtopk=("sae.path=$SAES/smollm2-batchtopk")
fi
study() { # NAME SECONDS OVERRIDE ...
  local left=$((end - SECONDS)) name=$1 limit=$2
  shift 2
  if grep -qs '"state": "done"' "$runs/$name/status.json"; then return; fi
  [ "$limit" -lt "$left" ] || limit=$left
  [ "$limit" -gt 20 ] || { echo "$name: no time left"; return; }
  echo "== $name, at most $limit of $left s"
  timeout "$limit" python3 -m steerlens "${subject[@]}" "$@" "paths.output_dir=$runs/$name"
}
{
  for part in 0/3 1/3 2/3; do # what was finished counts, whatever is left
    study "criteria_${part%/3}" 120 experiment=criteria "shard=$part"
  done
  study factors 120 experiment=factors
  study table1_smollm2 240 experiment=table1_smollm2
  study lenses 150 experiment=lenses
  study capability 150 experiment=capability
  study filter 60 experiment=filter
  study one_release_topk 60 experiment=one_release
  study one_release_batchtopk 60 experiment=one_release "${batchtopk[@]}"
  study scores 60 experiment=paper/scores features=all
  # The same question for Gemma-2-2B, as far as it can be told without its weights.
  python3 -m steerlens experiment=criteria subject=gemma-2-2b device=cuda plan=true
} 2>&1 | tee "$out/studies.log"
for run in "$runs"/*/; do
  [ -f "$run/summary.json" ] && python3 -m experiments.tables "$run" "$tables/$(basename "$run")"
done
mkdir -p "$tables"
python3 experiments/gpu/results.py split --source "$tables" --out "$out" --first 0 --count 6
