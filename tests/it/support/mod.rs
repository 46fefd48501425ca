//! What several promises need: servers to test against.

#[cfg(feature = "gcs")]
pub(crate) mod fake_gcs;

/// Threads of this process whose name begins so.
pub(crate) fn threads_named(prefix: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks.filter(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with(prefix))).count()
}
