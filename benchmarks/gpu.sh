#!/usr/bin/env bash
# Everything that is measured on a GPU, most wanted first; needs torch and torchvision alone.
#
#   bash benchmarks/gpu.sh OUT [STAGE ...]     say: bash benchmarks/gpu.sh benchmarks/results step
#
# A stage that takes longer than its limit is cut off; a benchmark has by then written the rows it
# has. `accuracy` trains on the images of $IMAGES, an npz as --data of benchmarks.accuracy takes it;
# `parity` needs pytest and hypothesis as well.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?where results go}
shift
stages=("${@:-candidates parity step accuracy evaluation classes precisions}")
fast=(--precision bf16 --channels-last --compile --capture)
on=(--device cuda --batch-size 128 --rounds 5 --steps 2 --warmup 1)

step() { # LIMIT NAME ARGUMENT ...
  timeout "$1" python -m benchmarks.step "${on[@]}" "${@:3}" --out "$out/$2.json"
}

stage() {
  case $1 in
    candidates) # what is not a part of the fast step, but may become one
      step 120 try_captured_step --model resnet18 --objective mart at --classes 10 "${fast[@]}" --capture-step
      step 150 try_cudnn --model wrn-34-10 resnet18 --objective at --classes 10 "${fast[@]}" --cudnn-benchmark
      ;;
    parity) timeout 150 python -m pytest -q -p no:cacheprovider tests/parity/test_on_cuda.py ;;
    step) step 300 step_gpu_bf16 --model resnet18 wrn-34-10 --classes 10 "${fast[@]}" ;;
    classes) step 300 step_gpu_bf16_100 --model resnet18 wrn-34-10 --classes 100 "${fast[@]}" ;;
    precisions)
      step 240 step_gpu_tf32 --model resnet18 --classes 10 "${fast[@]}" --precision tf32
      step 240 step_gpu_fp32 --model resnet18 --classes 10 "${fast[@]}" --precision fp32
      ;;
    evaluation)
      timeout 60 python -m benchmarks.evaluation --device cuda --model resnet18 --batch-size 256 \
        --out "$out/evaluation_gpu.json"
      ;;
    accuracy)
      timeout 420 python -m benchmarks.accuracy --device cuda --data "${IMAGES:?an npz}" \
        --model resnet18 --epochs 6 --out "$out/accuracy_gpu.json"
      ;;
    *)
      echo "$1: no stage" >&2
      return 2
      ;;
  esac
}

mkdir -p "$out"
# shellcheck disable=SC2048 # the default is one string of several
for name in ${stages[*]}; do
  echo "== $name"
  SECONDS=0
  stage "$name"
  echo "== $name: exit code $?, $SECONDS s"
done
