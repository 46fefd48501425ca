#!/bin/sh
# Everything that docs/performance.md and benches/results speak of, one measurement after the other: a line of JSON each, on standard
# output, with what was run in front of it on standard error. Takes about ten minutes on two cores, on a machine that does nothing else.
#
#     cargo build --release && benches/all.sh target/release/forebay > all.jsonl
set -eu
forebay=${1:-target/release/forebay}
case $forebay in */*) ;; *) forebay=./$forebay ;; esac

bench() {
    echo "forebay bench $*" >&2
    "$forebay" bench "$@" --json --quiet
}
# A number of the last measurement.
number() {
    printf '%s' "$line" | tr ',{}' '\n\n\n' | sed -n "s/^ *\"$1\": *\([-0-9.e+]*\) *$/\1/p" | head -n 1
}

for workload in image 'image --u8' features raw tiny pack; do
    # shellcheck disable=SC2086 # The workload and its flag are words.
    line=$(bench $workload --epochs 5 --limit)
    echo "$line"
done

# Parquet, whose data is made first: 2.2 GB in target/bench.
for workload in tokens 'tokens --snappy' wide latents; do
    # shellcheck disable=SC2086 # The workload and its flag are words.
    line=$(bench $workload --epochs 10 --limit)
    echo "$line"
done
# As many accelerators as 95 % of that are enough for: 48 samples in 1.35 s each.
accelerators=$(awk "BEGIN { print int(0.95 * $(number samples_per_s) * 1.35 / 48) }")
bench latents --epochs 30 --step-time 1.35 --accelerators "$accelerators"

# One thread, and two.
for threads in 1 2; do
    bench image --threads $threads --epochs 5
done

# An accelerator that takes 95 % of what the loader gives at most: is it ever kept waiting?
line=$(bench image --epochs 5 --batch 64)
echo "$line"
step=$(awk "BEGIN { print 64 / (0.95 * $(number samples_per_s)) }")
bench image --epochs 10 --batch 64 --step-time "$step"

# Does memory grow? `rss_bytes` has a figure an epoch.
bench image --epochs 50 --samples 1000
bench features --epochs 50
bench tiny --epochs 50 --samples 1000000

# What handing over costs: two tasks a batch of one row, planned and handed over one by one. `plan_s` is the time for which the run's lock was
# held.
for threads in 1 2; do
    bench tiny --batch 1 --shuffle 0 --samples 200000 --threads $threads
done
