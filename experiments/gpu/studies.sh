#!/usr/bin/env bash
# (d) The experiments at full size on what was trained here.   bash experiments/gpu/studies.sh OUT SECONDS
# One after another as far as the seconds go; the tables of those that ended come back, the texts don't.
set -uo pipefail
. experiments/gpu/env.sh
out=$1 end=$((SECONDS + $2)) runs=$SCRATCH/runs
python3 -m experiments.gpu.text --model "$SCRATCH/model" --scratch "$SCRATCH" \
  --written "$SAES/written.npy" --target "$SCRATCH/corpus.jsonl"
subject=(
  model=local "model.path=$SCRATCH/model" 'model.aliases=["HuggingFaceTB/SmolLM2-135M-Instruct"]'
  sae=local "sae.path=$SAES/smollm2-topk" corpus=jsonl "corpus.path=$SCRATCH/corpus.jsonl"
  device=cuda "paths.cache_dir=$SCRATCH/cache"
)
study() { # NAME OVERRIDE ...
  local left=$((end - SECONDS)) name=$1
  shift
  [ "$left" -gt 20 ] || { echo "$name: no time left"; return; }
  echo "== $name, $left s left"
  timeout "$left" python3 -m steerlens "${subject[@]}" "$@"
}
{
  study filter experiment=filter "paths.output_dir=$runs/filter"
  study one_release_topk experiment=one_release "paths.output_dir=$runs/one_release_topk"
  study one_release_batchtopk experiment=one_release "sae.path=$SAES/smollm2-batchtopk" \
    "paths.output_dir=$runs/one_release_batchtopk"
  for part in 0/3 1/3 2/3; do # joined at the end: what was finished counts, whatever is left
    study "criteria_${part%/3}" experiment=criteria "shard=$part" "paths.output_dir=$runs/criteria_${part%/3}"
  done
  study lenses experiment=lenses "paths.output_dir=$runs/lenses"
  study scores experiment=paper/scores features=all "paths.output_dir=$runs/scores"
  # The same question for Gemma-2-2B, as far as it can be told without its weights.
  python3 -m steerlens experiment=criteria subject=gemma-2-2b device=cuda plan=true
} 2>&1 | tee "$out/studies.log"
find "$runs" -type f ! -name '*.parquet' ! -name '*.csv' ! -name '*.json' ! -name '*.yaml' \
  ! -name '*.md' -delete
find "$runs" -name 'generations*' -delete
python3 experiments/gpu/results.py split --source "$runs" --out "$out" --first 0 --count 3
