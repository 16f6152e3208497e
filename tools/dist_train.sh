#!/usr/bin/env bash
# bash tools/dist_train.sh CONFIG GPUS [arguments of train.py]; NNODES, NODE_RANK, PORT, MASTER_ADDR from the environment.
set -euo pipefail

CONFIG=$1
GPUS=$2
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-"127.0.0.1"}
TOOLS=$(cd "$(dirname "$0")" && pwd)

if [ "$NNODES" = 1 ] && [ -z "${PORT:-}" ]; then  # a free port, so that two runs on one machine do not meet
    RENDEZVOUS=(--standalone --local-addr="$MASTER_ADDR")
else
    RENDEZVOUS=(--nnodes="$NNODES" --node-rank="$NODE_RANK" --master-addr="$MASTER_ADDR" --master-port="${PORT:-29500}")
fi

PYTHONPATH="$TOOLS/..:${PYTHONPATH:-}" \
python -m torch.distributed.run \
    "${RENDEZVOUS[@]}" \
    --nproc-per-node="$GPUS" \
    "$TOOLS/train.py" \
    "$CONFIG" \
    --launcher pytorch "${@:3}"
