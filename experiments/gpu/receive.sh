#!/usr/bin/env bash
# Take in what a call brought; say what the machine has.   bash experiments/gpu/receive.sh
set -euo pipefail
. experiments/gpu/env.sh
python3 experiments/gpu/receive.py --scratch "$SCRATCH"
if [ -d "$SCRATCH/model" ]; then
  python3 - <<'CHECK'
import torch, transformers, sae_lens, transformer_lens, hydra, steerlens
print("torch", torch.__version__, "transformers", transformers.__version__)
for number in range(torch.cuda.device_count()):
    print(torch.cuda.get_device_name(number), torch.cuda.mem_get_info(number))
CHECK
fi
