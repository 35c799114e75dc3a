#!/usr/bin/env bash
# All that a CUDA device has to tell, in at most twelve minutes: first whether it is right, then how fast, then why.
#
#   bash tests/benchmarks/gpu.sh FOLDER          on the device
#   bash tests/benchmarks/gpu.sh FOLDER --dry    on a CPU, at toy sizes: whether the script runs
#
# Every part has a limit of its own and writes FOLDER/<part>.txt as it goes, so that a part that hangs or fails costs no
# other. FOLDER/table.txt has all of it, and what bounds each number. What is compiled, and may be cut off, comes in
# parts of its own. Wants no network, and python3 (or PYTHON) of 3.11 or later with torch >= 2.11, whose Triton compiles,
# and NEEDED; of this repository's dependencies not omegaconf, jsonargparse, datasets, ftfy, transformers.
set -u
cd "$(dirname "$0")/../.." || exit 1
out=${1:?a folder for the results} dry=${2:-}
mkdir -p "$out"
NEEDED=(torch lightning torchmetrics tensorboard tokenizers safetensors rich numpy yaml jaxtyping pytest hypothesis)
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # or nothing is the same twice
python=${PYTHON:-python3} here=tests/benchmarks parts=() failed=()

part() { # name, seconds, command...
  local name=$1 limit=$2 started=$SECONDS
  shift 2
  echo "== $name (at most $limit s): $*"
  parts+=("$name")
  timeout -k 1 "$limit" "$@" >"$out/$name.txt" 2>&1 || failed+=("$name ($?)")
  tail -n 25 "$out/$name.txt"
  echo "== $name: $((SECONDS - started)) s"
}

missing=$("$python" - "${NEEDED[@]}" <<'EOF'
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        print(f"{name} ({type(error).__name__}: {error})", end="; ")
EOF
) || missing=$python
[ -z "$missing" ] || { echo "expected to import, and could not: $missing"; exit 2; }

test=("$python" -m pytest -o addopts= --import-mode=importlib -p no:cacheprovider -v --tb=short -m gpu)
test+=("$here/test_gpu.py" tests/training/test_waits.py tests/training/test_precision.py)
small=() rounds=3 modes=(eager compiled) graphs=(eager graph)
if [ "$dry" = --dry ]; then
  small=(--tiny) rounds=1 modes=(eager) # compilers of a CPU are another matter
fi
part correctness 120 "${test[@]}" -k "not compiled and not fused"
for mode in "${modes[@]}"; do
  part "pretrain-$mode" 60 "$python" $here/gpu_pretrain.py --rounds $rounds --steps 10 --modes "$mode" "${small[@]}"
  part "ppo-$mode" 70 "$python" $here/gpu_ppo.py --rounds $rounds --modes "$mode" "${small[@]}"
done
part generate-1 40 "$python" $here/gpu_generate.py --rows 1 --rounds $rounds --modes "${graphs[@]}" "${small[@]}"
part generate-256 40 "$python" $here/gpu_generate.py --rows 256 --rounds $rounds --modes "${graphs[@]}" "${small[@]}"
part sft 50 "$python" $here/gpu_sft.py --rounds $rounds --modes eager "${small[@]}"
part profile 50 "$python" $here/gpu_profile.py "${small[@]}"
part correctness-compiled 130 "${test[@]}" -k "compiled or fused"

{
  echo "What bounds each number (N: parameters, L layers of width d, T tokens, P the peak of products in bf16, M bytes/s of memory):"
  echo "  training      tokens/s   P / (6 N_matmul + 12 L d T)         989e12 / 854.4e6 = 1.16 million; bar 521 thousand (45 %), aim 579 thousand"
  echo "  decoding, 1   tokens/s   M / (2 N)                           3.35e12 / 248e6 = 13,500; by launches: bar 3,000"
  echo "  decoding, 256 tokens/s   256 M / (2 N + 256 x 4 L d length)  3.35e12 x 256 / (0.25e9 + 4.8e9) = 169 thousand at 512; bar 80 thousand"
  echo "  PPO           episodes/s bar 300, aim 600, at most 25 % of it sampling"
  echo "  SFT           tokens/s   as training, less the head for prompts"
  for name in "${parts[@]}"; do
    printf '\n## %s\n\n' "$name"
    grep -E '^\||^E  |FAILED|ERROR|passed|failed|skipped|: [0-9.]+ ms' "$out/$name.txt" || tail -n 3 "$out/$name.txt"
  done
  printf '\nFailed or cut off: %s\n' "${failed[*]:-none}"
} | tee "$out/table.txt"
[ ${#failed[@]} -eq 0 ]
