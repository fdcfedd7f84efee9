#!/bin/sh
# Parity and speed on this machine's GPU, at most 10 minutes: sh benchmarks/gpu.sh [--output FILE]
# Nothing is installed: the folders of this tree are linked as the package that they become, and python3 (or $PYTHON)
# needs torch with CUDA, numpy and safetensors. What else is not there is a row that says so.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
mkdir "$packages/qwen_image_engine"
for folder in calibration engines export reference runtime; do
    ln -s "$here/$folder" "$packages/qwen_image_engine/$folder"
done
PYTHONPATH="$packages${PYTHONPATH:+:$PYTHONPATH}" "${PYTHON:-python3}" "$here/benchmarks/gpu.py" "$@"
