#!/usr/bin/env bash
# Adds the data of the classification runs to .device/, beside what kit.sh puts there: 21 MB.
set -euo pipefail
cd "$(dirname "$0")/../.."
data=${1:?folder with dna/ and apes/}
to=.device/species
mkdir -p $to/dna/other_species
cp "$data"/dna/other_species/*.fa.gz $to/dna/other_species/
for species in bonobo chimpanzee gorilla human orangutan; do
  mkdir -p $to/apes/$species
  for name in mitochondrion chr22_epo; do
    [ ! -f "$data/apes/$species/$name.fa.gz" ] || cp "$data/apes/$species/$name.fa.gz" $to/apes/$species/
  done
done
[ -d .device/human ] || { mkdir -p $to/dna/human; cp "$data"/dna/human/hg19.* $to/dna/human/; }
chmod -R u+w $to
du -sh $to .device
