#!/usr/bin/env bash
# Measures Tandem on a Linux machine that has nothing of it but the bundle of `cargo xtask device-bundle`.
# usage: run.sh OUT PART...
#   conformance  all operations of tandem-gpu, on every OpenCL device that is chosen (OPENCL below)
#   kernels      speed of every kernel, and of the cache of experts
#   model        a full-size random model in q4_0 under $WORK (needs python3 with numpy, 10 GB): what follows uses it
#   devices      CPU alone, GPU alone, default partition, split, calibrated: prompts and generation
#   cache        the GPU alone, with room for all experts, a half and a quarter of them
#   shared       the same as devices, on one memory: the CPU executor on the upper half of the cores, PoCL on the lower
#   policies     scheduling policies on one memory, set up as for shared; beside a memory hog, too
# OPENCL=nvidia (the default) or pocl says which driver is visible; WORK is /dev/shm/tandem; no measurement may take
# longer than LIMIT seconds (240).
set -euo pipefail
bundle=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
work=${WORK:-/dev/shm/tandem}
limit=${LIMIT:-240}
model=$work/q4_0.gguf
mkdir -p "$work/icd" "$work/home"
export HOME=$work/home XDG_CONFIG_HOME=$work/home XDG_CACHE_HOME=$work/home POCL_CACHE_DIR=$work/pocl

# Only one driver is visible. Of several libOpenCL, the one that heeds OCL_ICD_VENDORS is the distribution's.
use_opencl() {
  local library=libnvidia-opencl.so.1
  [ "$1" = nvidia ] || library=$(cat /etc/OpenCL/vendors/pocl.icd)
  echo "$library" > "$work/icd/only.icd"
  export OCL_ICD_VENDORS=$work/icd
  local loader=/usr/lib/x86_64-linux-gnu/libOpenCL.so.1
  [ ! -e "$loader" ] || export OPENCL_DYLIB_PATH=$loader
}

bench() { # NAME COMMAND...
  local name=$1
  shift
  echo "== $name: $*" >&2
  {
    echo; echo "### $name"; echo
    timeout "$limit" "$@" -m "$model" "${tests[@]}" 2>&1 || echo "failed: $?"
  } >> "$out/$file"
}

conformance() {
  # PoCL 5 has contexts of several threads at odds with each other: there, one test at a time.
  local threads=()
  [ "$opencl" = nvidia ] || threads=(--test-threads=1)
  "$bundle/conformance" "${threads[@]}" 2>&1 | grep -v 'warnings\? generated' | tee "$out/conformance-$opencl.txt"
}

kernels() {
  "$bundle/kernel_speed" > "$out/kernels.md"
  { "$bundle/expert_cache_speed"; echo; "$bundle/expert_cache_speed" --uneven 0; } > "$out/expert-cache.md"
}

model() {
  [ -e "$model" ] && return
  python3 "$bundle/testdata/fullsize/make_fullsize.py" "$work/bf16"
  "$bundle/tandem" quantize "$work/bf16" "$model" --type q4_0
  rm -r "$work/bf16"
}

devices() {
  file=devices.md
  local tests=(-p 256 -n 64 -r 3)
  local place
  for place in cpu igpu default split=0.5; do
    bench "$place" "$bundle/tandem" bench --placement "$place"
  done
  bench "GPU alone, with times of its kernels" "$bundle/tandem" bench --placement igpu --profile
  timeout "$limit" "$bundle/tandem" calibrate -m "$model" --quick > "$out/calibrate.md" 2>&1 || true
  bench "auto" "$bundle/tandem" bench --placement auto --explain
}

cache() {
  file=cache.md
  local tests=(-p 256 -n 64 -r 3) mb ahead
  # All experts are 1512 MB.
  for mb in 1600 1134 756 378; do
    for ahead in none predict; do
      bench "$mb MB for experts, ahead: $ahead" "$bundle/tandem" bench --placement igpu --expert-cache-mb "$mb" --expert-prefetch "$ahead"
    done
  done
  bench "756 MB, by operation" "$bundle/tandem" bench --placement igpu --expert-cache-mb 756 --profile
}

# PoCL binds its threads to the first CPUs, whatever the process may use; the CPU executor has what the process may.
shared() {
  file=shared.md
  local tests=(-p 64 -n 32 -r 3)
  local all half place device=(--device 'Portable Computing Language')
  all=$(nproc)
  half=$((all / 2))
  bench "CPU alone, all cores" "$bundle/tandem" bench --placement cpu -t "$all"
  POCL_AFFINITY=1 POCL_MAX_PTHREAD_COUNT=$half "$bundle/kernel_speed" --device portable --tokens 1,8,64 --rounds 3 > "$out/kernels-pocl.md" 2>&1 || true
  export POCL_AFFINITY=1 POCL_MAX_PTHREAD_COUNT=$half
  local on=(taskset -c "$half-$((all - 1))" "$bundle/tandem")
  for place in cpu igpu default split=0.1 split=0.3 split=0.5; do
    bench "$place" "${on[@]}" bench -t "$half" --placement "$place" "${device[@]}"
  done
  timeout "$limit" "${on[@]}" calibrate -m "$model" -t "$half" --quick "${device[@]}" > "$out/calibrate-shared.md" 2>&1 || true
  bench "auto" "${on[@]}" bench -t "$half" --placement auto --explain "${device[@]}"
}

policies() {
  local all half
  all=$(nproc)
  half=$((all / 2))
  export POCL_AFFINITY=1 POCL_MAX_PTHREAD_COUNT=$half
  timeout $((2 * limit)) taskset -c "$half-$((all - 1))" "$bundle/tandem" policies -m "$model" -t "$half" -p 64 -n 4 -r 3 \
    --warm-up 2 --hog --device 'Portable Computing Language' --json "$out/policies.json" > "$out/policies.md" 2>&1 || true
}

opencl=${OPENCL:-nvidia}
use_opencl "$opencl"
for part in "$@"; do
  echo "==== $part, $(date -u +%T)" >&2
  "$part"
done
