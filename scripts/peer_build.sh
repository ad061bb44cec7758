#!/usr/bin/env bash
# On the GPU machine, after peer_kit.sh: builds both peers for sm_90 alone into /tmp/peer, and packs the result to
# $OUT/peer.tar.xz. Their sources are untouched but for the list of architectures and mamba_ssm's first file, which would
# import Mamba-3 and with it packages that are not here.
set -euo pipefail
here=$PWD
mkdir -p /tmp/peer /tmp/peer_src
cd /tmp/peer_src
for name in mamba_ssm-2.3.2.post1 causal_conv1d-1.6.2.post1; do tar xzf "$here/.device/peer/$name.tar.gz"; done
for folder in */; do
  python3 - "$folder/setup.py" <<'PY'
import re, sys
text = open(sys.argv[1]).read()
text = re.sub(r'( *)cc_flag\.append\("arch=compute_(?!90)[^"]*"\)', r'\1cc_flag.pop()', text)
open(sys.argv[1], "w").write(text)
PY
done
echo '__version__ = "2.3.2.post1"' > mamba_ssm-2.3.2.post1/mamba_ssm/__init__.py
export MAX_JOBS=${MAX_JOBS:-16} MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE CAUSAL_CONV1D_FORCE_BUILD=TRUE
build() { (cd "$1" && python3 setup.py build_ext --inplace > "/tmp/peer_$2.log" 2>&1 && cp -r ./*.so "$2" /tmp/peer/) || { tail -30 "/tmp/peer_$2.log"; exit 1; }; }
build causal_conv1d-1.6.2.post1 causal_conv1d & first=$!
build mamba_ssm-2.3.2.post1 mamba_ssm
wait $first
python3 -m pip install -q --no-index --no-deps --target /tmp/peer "$here"/.device/peer/einops-*.whl
strip /tmp/peer/*.so || true
tar -C /tmp/peer -cJf "$OUT/peer.tar.xz" --exclude __pycache__ .
ls -l "$OUT/peer.tar.xz" /tmp/peer
