#!/usr/bin/env bash
# What binds the scan kernels, by ncu's counters: writes $OUT/scan_profile.txt. A few seconds a kernel once they are compiled.
source benchmarks/device/env.sh
sections=(SpeedOfLight WarpStateStats SchedulerStats MemoryWorkloadAnalysis MemoryWorkloadAnalysis_Tables InstructionStats Occupancy LaunchStats)
for job in "S2:backward:now" "T2:backward:now" "T2:backward:u2 r168" "S2:forward:block 64"; do
  case $job in *backward*) kernel=scan_bwd_kernel ;; *) kernel=scan_fwd_kernel ;; esac
  echo "== $job"
  timeout 60 ncu --clock-control none "${sections[@]/#/--section=}" -k "$kernel" -c 1 python3 benchmarks/device/scan_trials.py --once "$job" 2>&1 | grep -v "^==PROF\|^$"
done | tee "$OUT/scan_profile.txt"
