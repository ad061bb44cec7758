#!/usr/bin/env bash
# Builds the peers of the benchmarks, mamba_ssm and causal_conv1d, without a GPU: for sm_90, torch 2.11.0 with CUDA 13.0 and
# CPython 3.12, into the ignored .device/peer/built.tar.xz, which env.sh unpacks on the GPU machine's PYTHONPATH.
# Compiler, CUDA headers and torch come from PyPI (1.5 GB, kept in $PEER_WORK); CPython 3.12's headers from
# $PYTHON312_INCLUDE, g++ from Debian. Flags are those of both setup.py and of torch's cpp_extension, except that there is
# one architecture, no -lineinfo, and that xz compresses the kernels instead of nvcc. mamba_ssm's __init__.py keeps its
# version only: the original one imports Mamba-3, and with it packages that are not there.
# 17 minutes on two shared cores, of which causal_conv1d_bwd.cu alone takes 12; objects that exist are kept. 8 MB result.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
work=${PEER_WORK:-/tmp/peer_work}
python_include=${PYTHON312_INCLUDE:-$(echo "$HOME"/.pyenv/versions/3.12.*/include/python3.12)}
jobs=${JOBS:-2}
mkdir -p .device/peer "$work"/{wheels,cuda,torch,objects,tree}
root=$PWD/.device/peer

[ -e "$python_include/Python.h" ] || { echo "No Python.h in $python_include: set PYTHON312_INCLUDE" >&2; exit 1; }
grep -q '^#define PY_MINOR_VERSION *12$' "$python_include/patchlevel.h"

# CUDA 13.0.2's parts, as the package cuda-toolkit pins them, and torch: each exactly one wheel.
wheels=(nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96
  nvidia-cuda-cccl==13.0.85 nvidia-cublas==13.1.0.3 nvidia-cusparse==12.6.3.3 nvidia-cusolver==12.0.4.66 torch==2.11.0)
pip() { "$python" -m pip --quiet --disable-pip-version-check "$@"; }
if [ ! -e "$work/wheels/done" ]; then
  pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
    --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux_2_12_x86_64 -d "$work/wheels" "${wheels[@]}"
  for wheel in "$work"/wheels/nvidia_*.whl; do unzip -qo "$wheel" 'nvidia/*' -x 'nvidia/*/lib/libcu[bs]*' -d "$work/cuda"; done
  unzip -qo "$work"/wheels/torch-*.whl 'torch/include/*' 'torch/lib/lib[ct]*.so' -d "$work"
  chmod +x "$work"/cuda/nvidia/cu13/{bin,nvvm/bin}/*
  touch "$work/wheels/done"
fi

# The sources, by their checksums. Their setup.py would run if pip fetched them, so they are taken from PyPI's index.
fetch() { # project, file without .tar.gz, sha256
  [ -s "$root/$2.tar.gz" ] || "$python" - "$1" "$2.tar.gz" "$root" <<'PY'
import re, sys, urllib.request
project, name, folder = sys.argv[1:]
page = urllib.request.urlopen(f"https://pypi.org/simple/{project}/").read().decode()
address = next(a for a in re.findall(r'href="([^"#]+)', page) if a.endswith("/" + name))
urllib.request.urlretrieve(address, f"{folder}/{name}")
PY
  echo "$3  $root/$2.tar.gz" | sha256sum --check --quiet
  tar -C "$work" -xzf "$root/$2.tar.gz"
}
fetch mamba-ssm mamba_ssm-2.3.2.post1 104cc47e9101e5401a675fa2b784f2952b9b037f3b1dd83b5ac544394e95d028
fetch causal-conv1d causal_conv1d-1.7.0 3202758494eaa7b597ce1c282dfa188889506bfcb92cad3c407d26736bfcd32b

cuda=$work/cuda/nvidia/cu13
compile() { # extension, source: writes the object beside the others
  local object="$work/objects/$1.$(basename "$2").o" common compiler
  [ ! -e "$object" ] || return 0
  common=(-O3 -std=c++17 -DTORCH_EXTENSION_NAME="$1" -DTORCH_API_INCLUDE_EXTENSION_H -I"$(dirname "$2")"
    -I"$work/torch/include" -I"$work/torch/include/torch/csrc/api/include" -I"$python_include")
  case $2 in
    *.cpp) compiler=(g++ -fPIC -DNDEBUG -isystem "$cuda/include" -isystem "$cuda/include/cccl") ;;
    *) compiler=("$cuda/bin/nvcc" -gencode arch=compute_90,code=sm_90 -Xcompiler -fPIC -DNDEBUG --use_fast_math
      --expt-relaxed-constexpr --expt-extended-lambda --compress-mode=none -D__CUDA_NO_HALF2_OPERATORS__
      -U__CUDA_NO_{HALF,BFLOAT16,BFLOAT162}_{OPERATORS,CONVERSIONS}__) ;;
  esac
  nice "${compiler[@]}" "${common[@]}" -c "$2" -o "$object.part" && mv "$object.part" "$object"
  echo "$(date -u +%T) $(basename "$object")"
}
export -f compile
export work cuda python_include
{
  for source in "$work"/causal_conv1d-*/csrc/*.c*; do echo causal_conv1d_cuda "$source"; done
  for source in "$work"/mamba_ssm-*/csrc/selective_scan/*.c{pp,u}; do echo selective_scan_cuda "$source"; done
} | xargs -P "$jobs" -L 1 bash -c 'set -e; compile "$@"' compile

tree=$work/tree
rm -rf "$tree" && mkdir "$tree"
for name in causal_conv1d_cuda selective_scan_cuda; do
  g++ -shared -s -o "$tree/$name.cpython-312-x86_64-linux-gnu.so" "$work/objects/$name".*.o -Wl,--as-needed \
    -L"$work/torch/lib" -lc10 -ltorch_cpu -ltorch_python -lc10_cuda "$cuda/lib/libcudart.so.13"
done
cp -r "$work"/causal_conv1d-*/causal_conv1d "$work"/mamba_ssm-*/mamba_ssm "$tree"
echo '__version__ = "2.3.2.post1"' > "$tree/mamba_ssm/__init__.py"
pip install --no-deps --only-binary=:all: --no-compile --target "$tree" einops==0.8.2
tar -C "$tree" --sort=name --owner=0 --group=0 -cf - . | xz -9e -T 1 > "$root/built.tar.xz.part"
mv "$root/built.tar.xz.part" "$root/built.tar.xz"
ls -l "$root/built.tar.xz" "$tree"
