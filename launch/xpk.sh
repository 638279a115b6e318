#!/usr/bin/env bash
# GKE through XPK: 2 slices of TPU v5e, 16 chips each. XPK writes the JobSet; by itself it restarts
# on 42 and 127 to 255 alone, so the codes that are worth another start are named. Build an image
# that has this repository in /fasttta_jax first.
#
#   export CLUSTER=... IMAGE=... BUCKET=gs://...
#   launch/xpk.sh base configs/audiodear_base.py --config.mesh.fsdp=16
set -euo pipefail

name=${1:?a name for the workload, and for its folder in the bucket}
config=${2:?the config file, such as configs/audiodear_base.py}
shift 2
bucket=${BUCKET:?such as gs://my-bucket}
command=(
  exec python train.py
  --config="$config"
  --workdir="$bucket/runs/$name"
  --config.data.path="$bucket/data/encoded"
  --config.data.cache=/tmp/data
  "$@"
)
quoted=$(printf "%q " "${command[@]}")
xpk workload create \
  --cluster="${CLUSTER:?name of the cluster}" \
  --workload="$name" \
  --docker-image="${IMAGE:?the image}" \
  --tpu-type="${TPU_TYPE:-v5litepod-16}" \
  --num-slices="${NUM_SLICES:-2}" \
  --max-restarts=50 \
  --restart-on-exit-codes=69,70,75 \
  --command="cd /fasttta_jax && export JAX_COMPILATION_CACHE_DIR=$bucket/compiled && $quoted"
