#!/usr/bin/env bash
# One machine: a laptop, or a host with several GPUs or TPU chips. Nothing has to be set up: one
# process uses all devices. Ctrl-C or SIGTERM and the same command later go on where it stopped
# (SIGTERM saves first; after Ctrl-C the last checkpoint is taken).
#
#   launch/one_host.sh configs/demo_teacher.py runs/demo/teacher --config.num_steps=2000
set -euo pipefail
cd "$(dirname "$0")/.."

config=${1:?the config file, such as configs/demo_teacher.py}
workdir=${2:?the folder of the run}
shift 2
exec python train.py --config="$config" --workdir="$workdir" "$@"
