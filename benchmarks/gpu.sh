#!/bin/sh
# Parity and speed on this machine's GPU, at most 10 minutes: sh benchmarks/gpu.sh [--output FILE]
# Nothing is installed: the folders of this tree are linked as the package that they become, and python3 (or $PYTHON)
# needs torch with CUDA, numpy and safetensors. What else is not there is a row that says so.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
if ! command -v "$python" > /dev/null; then
    echo "gpu.sh: there is no $python; name a Python that has torch with: PYTHON=/path/to/python sh benchmarks/gpu.sh" >&2
    exit 1
fi
missing=$("$python" -c '
from importlib.util import find_spec
print(*(name for name in ("torch", "numpy", "safetensors") if find_spec(name) is None))')
if [ -n "$missing" ]; then
    echo "gpu.sh: $python has not: $missing; install them, or name another with: PYTHON=/path/to/python sh benchmarks/gpu.sh" >&2
    exit 1
fi
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
GPU_BEGAN=$(date +%s) # importing torch takes a part of the time
export GPU_BEGAN
mkdir "$packages/qwen_image_engine"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/pyproject.toml")
mkdir "$packages/qwen_image_engine-$version.dist-info" # which a bundle's manifest asks for its version
printf 'Metadata-Version: 2.1\nName: qwen-image-engine\nVersion: %s\n' "$version" \
    > "$packages/qwen_image_engine-$version.dist-info/METADATA"
for folder in calibration engines export reference runtime; do
    ln -s "$here/$folder" "$packages/qwen_image_engine/$folder"
done
PYTHONPATH="$packages:$here${PYTHONPATH:+:$PYTHONPATH}" "$python" -m benchmarks.gpu.run "$@" &
child=$!
trap 'kill "$child" 2> /dev/null' INT TERM
status=0
wait "$child" || status=$?
if kill -0 "$child" 2> /dev/null; then # a signal ended the wait and not the script, which removes its files now
    wait "$child" || status=$?
fi
exit "$status"
