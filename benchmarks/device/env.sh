# Sourced on the GPU machine, at the root of the tree; see kit.sh and peer_kit.sh.
# Once: a script that is sourced later must not replace packages under processes that run.
[ -e /tmp/site/.whole ] || { python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .device/wheels/*.whl && touch /tmp/site/.whole; }
# Packages that are installed uncompiled would be compiled by every process anew.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPATH="$PWD:/tmp/site:/tmp/peer" PYTHONUNBUFFERED=1
if [ -e .device/peer/built.tar.xz ] && [ ! -e /tmp/peer ]; then mkdir /tmp/peer && tar -C /tmp/peer -xJf .device/peer/built.tar.xz; fi
mba() { python3 -c 'from mamba_bio_audio.cli.main import run; run()' "$@"; }
# Compiled kernels: `keep_cache` on one machine, carry what it wrote to $OUT as .device/cache.txz to the next (7 MB).
keep_cache() { tar -C ~/.triton -c cache | xz -T0 -2 >"$OUT/cache.txz"; }
if [ -e .device/cache.txz ] && [ ! -e ~/.triton/cache ]; then mkdir -p ~/.triton && tar -C ~/.triton -xJf .device/cache.txz; fi
