//! What this process has used so far, as Linux reports it.

use std::time::Duration;

/// Ticks of `/proc` per second. Linux has reported this number to programs on every machine since 2.6.
const TICKS_PER_SECOND: f64 = 100.0;

/// Returns a field of `/proc/self/stat`, counted from 1 as in proc(5).
fn stat(field: usize) -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name, which may hold anything but ends with the last parenthesis.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(field - 3)?.parse().ok()
}

/// Returns the CPU time of all threads, in user and system mode.
pub(super) fn cpu_time() -> Duration {
    let ticks = stat(14).unwrap_or(0.0) + stat(15).unwrap_or(0.0);
    Duration::from_secs_f64(ticks / TICKS_PER_SECOND)
}

/// Returns the time since the process was started.
pub(super) fn age() -> Option<Duration> {
    let uptime: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(uptime - stat(22)? / TICKS_PER_SECOND).ok()
}

/// Returns the peak of resident memory, in bytes.
pub(super) fn peak_resident_bytes() -> Option<u64> {
    status("VmHWM:")
}

/// Returns the memory that is resident now, in bytes.
pub(super) fn resident_bytes() -> Option<u64> {
    status("VmRSS:")
}

/// Returns a size from `/proc/self/status`, in bytes.
fn status(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_an_age_and_uses_memory_and_time() {
        let before = cpu_time();
        let mut sum = 0u64;
        while cpu_time() < before + Duration::from_millis(20) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(age().is_some_and(|age| age >= Duration::from_millis(10)));
        // Not held against each other: they are read one after the other, and the system keeps them by counters of their own.
        for bytes in [resident_bytes(), peak_resident_bytes()] {
            assert!(bytes.is_some_and(|bytes| bytes > 1 << 20), "{bytes:?}");
        }
    }
}
