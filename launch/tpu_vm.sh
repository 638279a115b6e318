#!/usr/bin/env bash
# A TPU VM or pod slice without a cluster around it: the same command on every worker at once. jax
# finds the others through the VM's metadata. The workers share no disk: data and workdir are in a
# bucket. Each worker starts again after 69, 70 and a kill or abort of its process, and all of them
# meet again within start-up's 10 minutes; 75 ends, so that `kill -TERM` of one process saves
# and stops all.
#
#   export TPU=... ZONE=... BUCKET=gs://...
#   launch/tpu_vm.sh base configs/audiodear_base.py --config.mesh.fsdp=16
#
# Before the first run, on all workers: clone the repository to ~/fasttta_jax and
# `pip install -e '.[tpu]'` there.
set -euo pipefail

name=${1:?a name for the run, and for its folder in the bucket}
config=${2:?the config file, such as configs/audiodear_base.py}
shift 2
bucket=${BUCKET:?such as gs://my-bucket}
command=(
  python train.py
  --config="$config"
  --workdir="$bucket/runs/$name"
  --config.data.path="$bucket/data/encoded"
  "$@"
)
quoted=$(printf "%q " "${command[@]}")
gcloud compute tpus tpu-vm ssh "${TPU:?name of the TPU}" \
  --zone="${ZONE:?zone of the TPU}" \
  --worker=all \
  --command="cd ~/fasttta_jax && export JAX_COMPILATION_CACHE_DIR=$bucket/compiled
while true; do
  $quoted
  code=\$?
  case \$code in
    69 | 70 | 134 | 137) sleep 20 ;;
    *) exit \$code ;;
  esac
done"
