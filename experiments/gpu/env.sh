# Sourced by the scripts beside it: where things lie on the machine with a GPU, and no hub.
export SCRATCH=${SCRATCH:-/tmp/steerlens}
export SAES=$SCRATCH/saes
export PYTHONPATH=$SCRATCH/site:$PWD/src:$PWD PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 WANDB_MODE=offline WANDB_SILENT=true
mkdir -p "$SCRATCH" "$SAES"
