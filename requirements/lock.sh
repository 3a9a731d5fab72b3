#!/usr/bin/env bash
# `make lock`: writes cpu.txt, cpu-vllm.txt, gpu.txt and bench-peer.txt from pyproject.toml, complete, for Python 3.11 on
# Linux x86-64.
# Versions in the files stay where they still fit; `make lock UPGRADE=1` takes the newest that do.
set -euo pipefail
cd "$(dirname "$0")"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What torch and Unsloth ask for and a machine without a GPU cannot use. torchvision would break `import unsloth` there.
cat > "$work/cpu-excludes.txt" <<'LIST'
cuda-bindings
cuda-toolkit
cut-cross-entropy
diffusers
nvidia-cudnn-cu13
nvidia-cusparselt-cu13
nvidia-nccl-cu13
nvidia-nvshmem-cu13
torchao
torchvision
triton
LIST

resolve() { # resolve NAME SOURCE ARGUMENT...: the requirements in SOURCE with these arguments, into $work/NAME.txt
    ../.venv/bin/uv pip compile "$2" --quiet --no-header --no-annotate --python-version 3.11 \
        --python-platform x86_64-manylinux_2_35 --output-file "$work/$1.txt" "${@:3}" > "$work/stdout"
}
publish() { # publish NAME WHAT: the lines on standard input become requirements/NAME.txt
    { echo "# $2"; echo "# Made by \`make lock\` from pyproject.toml; install with --no-deps. Do not edit."; cat; } > "$work/file"
    mv "$work/file" "$1.txt"
}

# One resolution of every extra together, so that these files cannot disagree; then each file's share of it.
sort -u cpu.txt cpu-vllm.txt gpu.txt > "$work/all.txt"
resolve all ../pyproject.toml --all-extras ${UPGRADE:+--upgrade}
common=(--extra judge --extra dev --constraints "$work/all.txt")
resolve gpu ../pyproject.toml "${common[@]}" --extra gpu
resolve cpu ../pyproject.toml "${common[@]}" --excludes "$work/cpu-excludes.txt"
resolve cpu-with-vllm ../pyproject.toml "${common[@]}" --excludes "$work/cpu-excludes.txt" --extra cpu-vllm

publish gpu "The complete environment of a machine with an NVIDIA GPU." < "$work/gpu.txt"
publish cpu "The complete environment of a machine without a GPU." < "$work/cpu.txt"
grep -vxFf "$work/cpu.txt" "$work/cpu-with-vllm.txt" | publish cpu-vllm "vLLM on a CPU: what goes in beside cpu.txt."

# What `make bench` compares with. TRL 1.15 does not train on a CPU without Unsloth; 1.12.0 does. Its accuracy_reward
# wants math-verify.
grep -v '^trl==' "$work/cpu.txt" > "$work/peer-constraints.txt"
printf '%s\n' accelerate datasets math-verify peft torch transformers trl==1.12.0 > "$work/peer.in"
resolve bench-peer "$work/peer.in" --excludes "$work/cpu-excludes.txt" --constraints "$work/peer-constraints.txt"
publish bench-peer "The peer of \`make bench\`: TRL 1.12.0 on stock libraries, everything else as in cpu.txt." < "$work/bench-peer.txt"
