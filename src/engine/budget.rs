//! One byte budget for everything in flight.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::memory::{Memory, Spare};

/// How many bytes a loader may have in flight: fetched blocks, decoded rows, the shuffle buffer, batches not yet delivered.
///
/// It is a hard bound on what it counts. If the plan needs more, the loader ends with an error that says how much would do. It does not count copies
/// that gathering makes, columns that functions compute, the windows of packing, what a cache remembers of its folder, and the program itself.
///
/// # Example
/// ```
/// use forebay::Budget;
///
/// assert_eq!(Budget::mebibytes(512).bytes(), 512 << 20);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget(u64);

impl Budget {
    /// Returns a budget of this many bytes.
    pub fn of_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Returns a budget of this many MiB.
    pub fn mebibytes(mebibytes: u64) -> Self {
        Self(mebibytes.saturating_mul(1 << 20))
    }

    /// Returns the number of bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl Default for Budget {
    /// Returns a quarter of the memory that the process may use: of the machine's memory, or of what its control groups (a container's limit) leave
    /// of it. It is 1 GiB if that cannot be read.
    fn default() -> Self {
        Self(usable_memory().map_or(1 << 30, |bytes| bytes / 4))
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MiB", self.0 as f64 / f64::from(1 << 20))
    }
}

/// Bytes of memory that the process may use, including its files' pages: the machine's, or what its control groups leave of it.
pub(crate) fn usable_memory() -> Option<u64> {
    let of_process = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = [total_memory(), group_limit(Path::new("/sys/fs/cgroup"), &of_process)];
    limits.into_iter().flatten().min()
}

fn total_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kibibytes: u64 =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes << 10)
}

/// The lowest memory limit that control groups set for a process: that of its own group, or of one that contains it. `of_process` is its
/// `/proc/self/cgroup`. Version 2 has one line there, without a controller; version 1 has a line for `memory`. In a container often only the folder
/// of its own group is visible, as `root`.
fn group_limit(root: &Path, of_process: &str) -> Option<u64> {
    let limits = of_process.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
            _ => return Vec::new(),
        };
        let groups = Path::new(group.trim_start_matches('/')).ancestors();
        groups.filter_map(|group| std::fs::read_to_string(root.join(group).join(file)).ok()).collect()
    });
    // Without a limit version 2 says `max`, and version 1 more bytes than any machine has.
    limits.filter_map(|limit| limit.trim().parse().ok()).min()
}

/// The account behind a [`Budget`]: what is granted, and the most that was ever granted.
#[derive(Debug)]
pub(crate) struct Account {
    total: u64,
    used: AtomicU64,
    peak: AtomicU64,
    /// Memory kept for the next batches, and for the next reads. It lies within the total, and gives way to whatever is granted: memory for reads
    /// first.
    batches: Spare,
    reads: Spare,
}

impl Account {
    pub(crate) fn new(budget: Budget) -> Arc<Self> {
        Arc::new(Self {
            total: budget.bytes(),
            used: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            batches: Spare::default(),
            reads: Spare::default(),
        })
    }

    /// Grants `bytes`, if they fit in addition to what is granted and `reserved` more.
    pub(crate) fn grant(self: &Arc<Self>, bytes: u64, reserved: u64) -> Option<Grant> {
        let fits = |used: u64| {
            let after = used.checked_add(bytes)?;
            (after.checked_add(reserved)? <= self.total).then_some(after)
        };
        let before = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).ok()?;
        self.peak.fetch_max(before + bytes, Ordering::AcqRel);
        self.shed_to(self.total - before - bytes);
        Some(Grant { account: self.clone(), bytes })
    }

    /// Frees spare memory until no more than `bytes` of it are left.
    fn shed_to(&self, bytes: u64) {
        drop(self.batches.shed_to(bytes));
        drop(self.reads.shed_to(bytes.saturating_sub(self.batches.bytes())));
    }

    /// Memory of at least `len` bytes for a batch, for which a grant was given. Its content is arbitrary.
    pub(crate) fn memory(&self, len: usize) -> Memory {
        self.batches.take(len).unwrap_or_else(|| Memory::new(len))
    }

    /// The same for what is read; `None` if the system has no such memory.
    pub(crate) fn memory_to_read(&self, len: usize) -> Option<Memory> {
        self.reads.take(len).or_else(|| Memory::try_new(len))
    }

    /// Takes back memory of a batch. It is kept within the total.
    pub(crate) fn give_back(&self, memory: Memory) {
        let room = self.total.saturating_sub(self.used());
        self.batches.keep(memory, room);
        self.shed_to(room);
    }

    /// Takes back memory that was read into.
    pub(crate) fn give_back_read(&self, memory: Memory) {
        let room = self.total.saturating_sub(self.used());
        self.reads.keep(memory, room.saturating_sub(self.batches.bytes()));
    }

    /// Allows so many bytes of memory to be kept for the next batches.
    pub(crate) fn keep_spare(&self, bytes: u64) {
        self.batches.allow(bytes);
    }

    /// Allows so many bytes of memory to be kept for the next reads.
    pub(crate) fn keep_reads(&self, bytes: u64) {
        self.reads.allow(bytes);
    }

    #[cfg(test)]
    pub(crate) fn spare_for_reads(&self) -> u64 {
        self.reads.bytes()
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    pub(crate) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Acquire)
    }
}

/// Bytes granted from an account; given back when dropped.
pub(crate) struct Grant {
    account: Arc<Account>,
    bytes: u64,
}

impl Grant {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Splits a part of this grant off as a grant of its own.
    pub(crate) fn split_off(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { account: self.account.clone(), bytes }
    }

    /// Gives back all but `bytes`, or asks for more up to `bytes`. Returns whether it was possible.
    pub(crate) fn resize(&mut self, bytes: u64) -> bool {
        if bytes > self.bytes {
            let Some(mut more) = self.account.grant(bytes - self.bytes, 0) else { return false };
            self.bytes += std::mem::take(&mut more.bytes);
        } else {
            drop(self.split_off(self.bytes - bytes));
        }
        true
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.account.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grant({})", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_lowest_limit_of_all_groups_counts() {
        let root = tempfile::tempdir().unwrap();
        let set = |path: &str, limit: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, limit).unwrap();
        };
        let of = |of_process: &str| group_limit(root.path(), of_process);
        assert_eq!(of(""), None);
        set("pod/app/memory.max", "max\n");
        assert_eq!(of("0::/pod/app\n"), None);
        set("pod/memory.max", "17179869184\n");
        assert_eq!(of("0::/pod/app\n"), Some(16 << 30));
        assert_eq!(of("0::/elsewhere\n"), None);
        // As seen in a container: the group's folder is the root.
        set("memory.max", "1073741824\n");
        assert_eq!(of("0::/pod/app\n"), Some(1 << 30));
        assert_eq!(of("0::/\n"), Some(1 << 30));
        set("memory/memory.limit_in_bytes", "9223372036854771712\n");
        set("memory/docker/memory.limit_in_bytes", "2147483648\n");
        assert_eq!(of("5:cpu,cpuacct:/docker\n4:hugetlb,memory:/docker\n"), Some(2 << 30));
        assert_eq!(of("4:memory:/unseen/docker\n"), Some(9_223_372_036_854_771_712));
    }

    #[test]
    fn grants_never_exceed_the_total_and_come_back() {
        let account = Account::new(Budget::of_bytes(100));
        let first = account.grant(60, 0).unwrap();
        assert!(account.grant(41, 0).is_none());
        assert!(account.grant(30, 20).is_none());
        let mut second = account.grant(40, 0).unwrap();
        assert!(!second.resize(41));
        assert!(second.resize(10));
        assert_eq!((account.used(), account.peak()), (70, 100));
        drop((first, second));
        assert_eq!(account.used(), 0);
        assert!(account.grant(u64::MAX, 1).is_none());
    }

    #[test]
    fn grants_that_grew_let_go_of_their_account() {
        let account = Account::new(Budget::of_bytes(100));
        let mut grant = account.grant(10, 0).unwrap();
        assert!(grant.resize(60) && grant.resize(20) && grant.resize(100));
        drop(grant);
        assert_eq!((account.used(), Arc::strong_count(&account)), (0, 1));
    }

    #[test]
    fn spare_memory_gives_way_to_grants() {
        let account = Account::new(Budget::mebibytes(10));
        account.keep_spare(8 << 20);
        account.give_back(Memory::new(4 << 20));
        let grant = account.grant(6 << 20, 0).unwrap();
        assert_eq!(account.batches.bytes(), 4 << 20, "both fit");
        account.give_back(Memory::new(3 << 20));
        assert_eq!(account.batches.bytes(), 3 << 20, "the older one gave way to the newer");
        let more = account.grant(2 << 20, 0).unwrap();
        assert_eq!((account.batches.bytes(), account.peak()), (0, 8 << 20));
        account.give_back(Memory::new(3 << 20));
        assert_eq!(account.batches.bytes(), 0, "2 MiB are left");
        drop((grant, more));
        account.give_back(Memory::new(3 << 20));
        assert_eq!(account.batches.bytes(), 3 << 20);
    }

    #[test]
    fn memory_of_reads_gives_way_to_that_of_batches_and_to_grants() {
        let account = Account::new(Budget::mebibytes(10));
        account.keep_spare(8 << 20);
        account.keep_reads(8 << 20);
        let spare = || (account.reads.bytes() >> 20, account.batches.bytes() >> 20);
        account.give_back_read(Memory::new(3 << 20));
        account.give_back_read(Memory::new(4 << 20));
        assert_eq!(spare(), (7, 0));
        account.give_back(Memory::new(5 << 20));
        assert_eq!(spare(), (4, 5), "the older one gave way");
        account.give_back_read(Memory::new(2 << 20));
        assert_eq!(spare(), (2, 5), "never more than the total");
        let grant = account.grant(4 << 20, 0);
        assert_eq!(spare(), (0, 5));
        drop(grant);
        assert_eq!(account.memory_to_read(4 << 20).map(|memory| memory.capacity()), Some(4 << 20), "fresh");
        assert!(account.memory_to_read(usize::MAX).is_none());
    }

    proptest! {
        #[test]
        fn behaves_like_a_sum(actions in proptest::collection::vec((0..3u8, 0..60u64), 1..60)) {
            let account = Account::new(Budget::of_bytes(150));
            let mut held: Vec<Grant> = Vec::new();
            for (action, bytes) in actions {
                let sum: u64 = held.iter().map(Grant::bytes).sum();
                match action {
                    0 => match account.grant(bytes, 0) {
                        Some(grant) => held.push(grant),
                        None => prop_assert!(sum + bytes > 150),
                    },
                    1 => drop(held.pop()),
                    _ => if let Some(last) = held.last_mut() {
                        let fits = sum - last.bytes() + bytes <= 150;
                        prop_assert_eq!(last.resize(bytes), fits);
                    },
                }
                prop_assert_eq!(account.used(), held.iter().map(Grant::bytes).sum::<u64>());
            }
        }
    }
}
