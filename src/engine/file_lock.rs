//! Locks on files, which keep other processes away.

use std::fs::File;

/// Ends the lock on a file when it is dropped.
///
/// Closing the file is not enough. A child that this process is just starting has a copy of every open file until it runs its program, and the file
/// stays locked until the last copy is closed. Unlocking ends the lock of all copies, so a forked process leaves that to its parent.
#[derive(Debug)]
pub(crate) struct FileLock {
    file: File,
    process: u32,
}

impl FileLock {
    /// Takes a file that was locked, on a system that has locks.
    pub(crate) fn of(file: File) -> Self {
        Self { file, process: std::process::id() }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if self.process == std::process::id() {
            // Where that fails there are no locks.
            _ = self.file.unlock();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_with_its_owner_though_a_copy_of_the_file_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let open = || File::open(folder.path()).unwrap();
        let file = open();
        file.try_lock().unwrap();
        let copy = file.try_clone().unwrap();
        // As it is dropped by a child that was forked off.
        drop(FileLock { file: file.try_clone().unwrap(), process: std::process::id() + 1 });
        assert!(open().try_lock().is_err());
        drop(FileLock::of(file));
        open().try_lock().unwrap();
        drop(copy);
    }
}
