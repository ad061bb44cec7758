#!/usr/bin/env bash
# Adds the sequence and the places of the BRCA1 variants to .device/, beside what kit.sh puts there: 0.4 MB. Labels stay here.
set -euo pipefail
cd "$(dirname "$0")/../.."
data=${1:?folder with variants.tsv and BRCA1_megabase.*.fa.gz}
to=.device/brca1
mkdir -p $to
cp "$data"/BRCA1_megabase.*.fa.gz $to/megabase.fa.gz
cut -f 1-5 "$data/variants.tsv" >$to/sites.tsv
head -1 $to/sites.tsv
chmod -R u+w $to
du -sh $to .device
