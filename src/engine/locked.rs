//! Locks on files, which keep other processes away.

use std::fs::File;

/// A file that was locked, until it is dropped.
///
/// To close it would not do: a child that this process is just starting has a copy of every open file until it runs its program, and what is
/// locked stays so until the last copy is closed.
#[derive(Debug)]
pub(crate) struct Locked(pub(crate) File);

impl Drop for Locked {
    fn drop(&mut self) {
        // Where that fails there are no locks.
        _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_with_its_owner_though_a_copy_of_the_file_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let open = || File::open(folder.path()).unwrap();
        let locked = Locked(open());
        locked.0.try_lock().unwrap();
        let _copy = locked.0.try_clone().unwrap();
        assert!(open().try_lock().is_err());
        drop(locked);
        open().try_lock().unwrap();
    }
}
