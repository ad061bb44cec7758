#!/usr/bin/env bash
# Puts the sources of the peers, mamba_ssm and causal_conv1d, into the ignored folder .device/peer/; peer_build.sh builds
# them on the GPU machine for sm_90 (4 minutes on 16 cores) and device_env.sh finds what came back as .device/peer/built.tar.xz.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .device/peer
python=${PYTHON:-.venv/bin/python}
fetch() { # project, file, sha256
  [ -s ".device/peer/$2" ] || "$python" - "$1" "$2" <<'PY'
import re, sys, urllib.request
project, name = sys.argv[1:]
page = urllib.request.urlopen(f"https://pypi.org/simple/{project}/").read().decode()
address = next(a for a in re.findall(r'href="([^"#]+)', page) if a.endswith("/" + name))
urllib.request.urlretrieve(address, f".device/peer/{name}")
PY
  echo "$3  .device/peer/$2" | sha256sum --check --quiet
}
fetch mamba-ssm mamba_ssm-2.3.2.post1.tar.gz 104cc47e9101e5401a675fa2b784f2952b9b037f3b1dd83b5ac544394e95d028
fetch causal-conv1d causal_conv1d-1.6.2.post1.tar.gz 245e314ea21064ded7a5bf6b3b842b644aa6f92e45cecfe3e935629744c35ff4
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -d .device/peer einops
ls -l .device/peer
