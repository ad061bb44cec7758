#!/usr/bin/env bash
# What binds the scan kernels, by ncu's counters and samples of their instructions: scan_profile.sh [JOB ...], jobs of
# scan_trials.py as S2:backward:now. Writes $OUT/scan_profile.txt and $OUT/scan_profile_NUMBER.csv.xz; 10 s a job once compiled.
source benchmarks/device/env.sh
sections=(SpeedOfLight ComputeWorkloadAnalysis WarpStateStats SchedulerStats MemoryWorkloadAnalysis InstructionStats Occupancy LaunchStats SourceCounters)
[ $# -gt 0 ] || set -- "T2:backward:now" "T2:backward:s32" "S2:forward:now"
i=0
for job in "$@"; do
  i=$((i + 1)); report=/tmp/scan_profile_$i
  case $job in *backward*) kernel=scan_bwd_kernel ;; *) kernel=scan_fwd_kernel ;; esac
  echo "== $job"
  timeout 60 ncu -f --clock-control none "${sections[@]/#/--section=}" -k "$kernel" -c 1 -o $report \
    python3 benchmarks/device/scan_trials.py --once "$job" >$report.log 2>&1 || tail -5 $report.log
  ncu --import $report.ncu-rep --page details 2>&1 | grep -v '^==PROF\|^$\|OPT\|INF'
  ncu --import $report.ncu-rep --page source --csv 2>&1 | xz -T0 >"$OUT/scan_profile_$i.csv.xz"
done | tee "$OUT/scan_profile.txt"
