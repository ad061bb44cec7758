#!/usr/bin/env bash
# Fills the ignored folder .device/ with what a bare GPU machine needs beside this tree: wheels for its Python 3.12 and the
# human data set. There, `source benchmarks/device/env.sh` installs the wheels and sets PYTHONPATH.
set -euo pipefail
cd "$(dirname "$0")/../.."
data=${1:-}
mkdir -p .device/wheels
python=${PYTHON:-.venv/bin/python}
packages=(pydantic pydantic-core annotated-types typing-inspection pyyaml filelock pyfaidx biopython typer shellingham tensorboard soundfile cffi pycparser pybigtools pytest pluggy iniconfig hypothesis sortedcontainers pytest-xdist execnet)
names=()
for package in "${packages[@]}"; do
  # The versions that are tested here; pip's own name normalisation finds the rest.
  version=$("$python" -c "import importlib.metadata as m; print(m.version('$package'))" 2>/dev/null) && names+=("$package==$version") || names+=("$package")
done
# For Triton's interpreter below 3.7, which the machine has: EXTRA="numpy==2.3.5".
read -ra extra <<<"${EXTRA:-}"
names+=("${extra[@]}")
platforms=()
for glibc in 2_28 2_27 2_17 2_34; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
  --implementation cp --platform manylinux2014_x86_64 --platform manylinux1_x86_64 "${platforms[@]}" \
  -d .device/wheels "${names[@]}"
if [ -n "$data" ]; then  # the tests do not need it
  mkdir -p .device/human
  cp "$data"/hg19.* "$data"/hg38.* "$data"/intervals.tsv .device/human/
fi
du -sh .device
