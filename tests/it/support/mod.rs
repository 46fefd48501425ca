//! What several promises need: servers to test against.

#[cfg(feature = "gcs")]
pub(crate) mod fake_gcs;

/// Threads of this process whose name begins so.
pub(crate) fn threads_named(prefix: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks
        .filter(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with(prefix)))
        .count()
}

/// Whether a condition comes true within a second.
pub(crate) fn eventually(condition: impl Fn() -> bool) -> bool {
    let start = std::time::Instant::now();
    while start.elapsed() < std::time::Duration::from_secs(1) {
        if condition() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}
