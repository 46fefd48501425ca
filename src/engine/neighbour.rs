//! Being a good neighbour to the training loop: on which cores the loader's threads run, and to whom they give way.
//!
//! Linux has both settings for each thread, so the loop's own thread is left as it is. Other systems have neither, and asking for them is an error.
//!
//! By default, workers on Linux are batch threads (`SCHED_BATCH`): a worker that is woken does not take the core from the thread that wakes it. That
//! is often the loop, which has just taken a batch and has a step to launch. Threads that only move bytes stay as they are, because others wait for
//! what they bring.
#![cfg_attr(
    target_os = "linux",
    expect(unsafe_code, reason = "the system's calls for affinity and priority of a thread")
)]

use std::ffi::c_ulong;
use std::fmt;

use crate::error::{Error, Result};

/// The most cores that a set may name, as in the system's own sets.
const MOST_CORES: usize = 1024;

const WORD: usize = c_ulong::BITS as usize;

/// A set of cores, by the numbers that the system gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cores([c_ulong; MOST_CORES / WORD]);

impl Cores {
    /// # Errors
    /// A number that no set can hold.
    pub(crate) fn of(numbers: impl IntoIterator<Item = usize>) -> Result<Self, usize> {
        let mut cores = Self::default();
        for core in numbers {
            *cores.0.get_mut(core / WORD).ok_or(core)? |= 1 << (core % WORD);
        }
        Ok(cores)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    #[cfg(target_os = "linux")]
    fn remove(&mut self, core: usize) {
        self.0[core / WORD] &= !(1 << (core % WORD));
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        (0..MOST_CORES).filter(|core| self.0[core / WORD] >> (core % WORD) & 1 == 1)
    }
}

/// As the system lists them: `0-3,7`.
impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.iter().peekable();
        let mut comma = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{comma}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}

/// What a loader's threads leave to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Neighbour {
    /// The cores that they may run on; `Err`: a core that no machine has.
    pub(crate) cores: Option<Result<Cores, usize>>,
    /// Whether they stay off the core of the thread that builds the loader.
    pub(crate) off_this_core: bool,
    pub(crate) niceness: Option<i8>,
}

impl Neighbour {
    /// Returns the same with its cores spelled out, after trying it on a separate thread.
    ///
    /// # Errors
    /// What the system refuses: cores that do not exist or do not belong to this process, or a priority that it may not have. On systems other than
    /// Linux: any setting at all.
    pub(crate) fn settle(self) -> Result<Self> {
        if self == Self::default() {
            return Ok(self);
        }
        if let Some(Err(core)) = self.cores {
            return Err(Error::config(format!("there is no core {core}; cores are numbered up to {}", MOST_CORES - 1)));
        }
        if self.niceness.is_some_and(|niceness| !(-20..=19).contains(&niceness)) {
            return Err(Error::config("niceness goes from -20 to 19"));
        }
        let settled = system::spell_out(self)?;
        std::thread::scope(|scope| scope.spawn(|| system::apply(&settled)).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(settled)
    }

    /// Makes the calling thread a good neighbour, as it was [settled](Self::settle).
    pub(crate) fn apply(&self) {
        debug_assert!(!self.off_this_core, "settled before");
        if *self != Self::default() {
            // It was tried when the loader was built. What an administrator took away since then is no reason to stop training.
            _ = system::apply(self);
        }
    }
}

/// Lets the calling thread wait for its turn when it is woken, instead of taking the core from whoever runs there.
pub(crate) fn never_preempt() {
    system::never_preempt();
}

#[cfg(target_os = "linux")]
mod system {
    use std::io;

    use super::{Cores, Neighbour};
    use crate::error::{Error, Result};

    const _: () = assert!(size_of::<Cores>() == size_of::<libc::cpu_set_t>(), "a set of ours is a set of the system's");

    pub(super) fn spell_out(mut neighbour: Neighbour) -> Result<Neighbour> {
        let stated = neighbour.cores.and_then(Result::ok);
        if stated.is_some_and(|cores| cores.len() == 0) {
            return Err(Error::config("the loader's threads have no core to run on").advice("name some: .cores(0..4)"));
        }
        if neighbour.off_this_core {
            let here = this_core()?;
            let mut cores = stated.map_or_else(allowed, Ok)?;
            cores.remove(here);
            if cores.len() == 0 {
                return Err(Error::config(format!(
                    "off core {here}, on which this thread runs, there is no core left"
                ))
                .advice(
                    "name cores of the loader's own, .cores(..), or leave .off_this_core() out and take .niceness(19)",
                ));
            }
            neighbour.cores = Some(Ok(cores));
            neighbour.off_this_core = false;
        }
        Ok(neighbour)
    }

    /// Makes the calling thread a batch thread. A thread of another class than the usual one was made so by somebody, and stays as it is.
    pub(super) fn never_preempt() {
        // SAFETY: numbers in, numbers out, and a struct of numbers that is only read; thread 0 is the one that calls. A refusal does no harm.
        unsafe {
            if libc::sched_getscheduler(0) == libc::SCHED_OTHER {
                let mut priority: libc::sched_param = std::mem::zeroed();
                priority.sched_priority = 0;
                libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const priority);
            }
        }
    }

    pub(super) fn apply(neighbour: &Neighbour) -> Result<()> {
        if let Some(Ok(wanted)) = &neighbour.cores {
            let before = allowed()?;
            // SAFETY: the set is as large as is said, and only read; thread 0 is the one that calls.
            let code = unsafe { libc::sched_setaffinity(0, size_of::<Cores>(), std::ptr::from_ref(wanted).cast()) };
            // Of cores that are partly there the system takes those silently.
            let cause = if code == 0 { None } else { Some(io::Error::last_os_error()) };
            if cause.is_some() || allowed()? != *wanted {
                let error = Error::config(format!(
                    "the loader's threads cannot run on all of the cores {wanted}: this thread runs on {before}"
                ));
                let error = error
                    .advice("name cores that the machine has and this process may use (its cpuset, its container)");
                return Err(match cause {
                    Some(cause) => error.because(cause),
                    None => error,
                });
            }
        }
        if let Some(niceness) = neighbour.niceness {
            // SAFETY: numbers in, a number out. On Linux "process" 0 is the thread that calls.
            let code = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness.into()) };
            if code != 0 {
                return Err(Error::config(format!("the system refuses the loader's threads the niceness {niceness}"))
                    .because(io::Error::last_os_error())
                    .advice("take at least that of this process (0 unless it was started with nice); below it needs CAP_SYS_NICE"));
            }
        }
        Ok(())
    }

    /// The cores on which the calling thread may run.
    pub(super) fn allowed() -> Result<Cores> {
        let mut cores = Cores::default();
        // SAFETY: the set is as large as is said, and any bits make one; thread 0 is the one that calls.
        let code = unsafe { libc::sched_getaffinity(0, size_of::<Cores>(), std::ptr::from_mut(&mut cores).cast()) };
        if code == 0 {
            return Ok(cores);
        }
        Err(Error::config("the system does not say on which cores this thread may run")
            .because(io::Error::last_os_error()))
    }

    /// The core on which the calling thread runs at this moment.
    pub(super) fn this_core() -> Result<usize> {
        // SAFETY: takes nothing, returns a number.
        let core = unsafe { libc::sched_getcpu() };
        let known = usize::try_from(core).ok().filter(|&core| core < super::MOST_CORES);
        known.ok_or_else(|| Error::config("the system does not say on which core this thread runs"))
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use super::Neighbour;
    use crate::error::{Error, Result};

    pub(super) fn spell_out(_: Neighbour) -> Result<Neighbour> {
        Err(Error::config("cores and niceness of the loader's threads are Linux's")
            .advice("take fewer threads: Scheduler::share or Scheduler::threads"))
    }

    pub(super) fn never_preempt() {}

    pub(super) fn apply(_: &Neighbour) -> Result<()> {
        Ok(())
    }
}

/// The core on which the calling thread runs at this moment, where the system says so.
#[cfg(feature = "cli")]
pub(crate) fn this_core() -> Option<usize> {
    #[cfg(target_os = "linux")]
    return system::this_core().ok();
    #[cfg(not(target_os = "linux"))]
    None
}

/// The cores on which the calling thread may run, its niceness, and its class (0 the usual, 3 batch), as Linux reports them.
#[cfg(all(test, target_os = "linux"))]
pub(crate) fn seen_of_this_thread() -> (String, i64, i64) {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/{name}")).expect("it is there on Linux");
    let (status, stat) = (read("status"), read("stat"));
    let cores = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("its cores");
    // Behind the name, which ends with the last parenthesis, the first field is the third of proc(5); niceness is the 19th, the class the 41st.
    let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
    let field =
        |number: usize| fields.split_whitespace().nth(number - 3).expect("it has 52").parse().expect("a number");
    (cores.trim().to_owned(), field(19), field(41))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_written_as_the_system_lists_them() {
        for (numbers, text) in
            [(vec![], ""), (vec![5], "5"), (vec![3, 0, 1, 2, 7], "0-3,7"), (vec![63, 64, 1023], "63-64,1023")]
        {
            let cores = Cores::of(numbers.clone()).unwrap();
            assert_eq!((cores.to_string().as_str(), cores.len()), (text, numbers.len()));
        }
        assert_eq!(Cores::of([0, 1024]), Err(1024));
    }

    #[test]
    fn nothing_asked_for_is_nothing_done() {
        let neighbour = Neighbour::default().settle().unwrap();
        assert_eq!(neighbour, Neighbour::default());
    }

    #[cfg(target_os = "linux")]
    mod on_linux {
        use super::*;

        #[test]
        fn what_cannot_be_had_is_an_error_that_says_what_can() {
            let allowed = system::allowed().unwrap();
            let missing = (0..MOST_CORES).find(|core| allowed.iter().all(|other| other != *core)).unwrap();
            let here = allowed.iter().next().unwrap();
            let on = |cores: Vec<usize>| Neighbour { cores: Some(Cores::of(cores)), ..Neighbour::default() }.settle();
            let message = |cores: Vec<usize>| on(cores).unwrap_err().to_string();
            assert!(message(vec![]).contains("no core to run on"));
            assert!(message(vec![4096]).contains("there is no core 4096"));
            for cores in [vec![missing], vec![here, missing]] {
                let message = message(cores);
                assert!(message.contains(&format!("this thread runs on {allowed}")), "{message}");
            }
            let niceness = |niceness| Neighbour { niceness: Some(niceness), ..Neighbour::default() }.settle();
            assert!(niceness(40).unwrap_err().to_string().contains("from -20"));
            let nice = (seen_of_this_thread().1 + 3).min(19) as i8;
            assert_eq!(niceness(nice).unwrap().niceness, Some(nice));
        }

        #[test]
        fn settling_leaves_the_calling_thread_as_it_was() {
            let before = seen_of_this_thread();
            let core = system::allowed().unwrap().iter().last().unwrap();
            Neighbour { cores: Some(Cores::of([core])), niceness: Some(19), off_this_core: false }.settle().unwrap();
            assert_eq!(seen_of_this_thread(), before);
        }

        #[test]
        fn off_this_core_is_every_other_core_of_this_thread_or_an_error() {
            // On a thread of its own that can run on one core alone there is none left, whatever the machine.
            let ended = std::thread::scope(|scope| {
                let pinned = scope.spawn(|| {
                    let core = system::allowed().unwrap().iter().next().unwrap();
                    system::apply(&Neighbour { cores: Some(Cores::of([core])), ..Neighbour::default() }).unwrap();
                    let off = Neighbour { off_this_core: true, ..Neighbour::default() };
                    let error = off.settle().unwrap_err().to_string();
                    assert!(error.contains(&format!("off core {core}")), "{error}");
                    // Cores that are named may be other ones than the thread's own.
                    let named = |cores: Cores| Neighbour { cores: Some(Ok(cores)), ..off }.settle();
                    assert!(named(Cores::of([core]).unwrap()).is_err());
                    core
                });
                pinned.join().unwrap()
            });
            let mut others = system::allowed().unwrap();
            others.remove(ended);
            if others.len() > 0 {
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        system::apply(&Neighbour { cores: Some(Cores::of([ended])), ..Neighbour::default() }).unwrap();
                        let mut all = others;
                        all.0[ended / WORD] |= 1 << (ended % WORD);
                        let off = Neighbour { cores: Some(Ok(all)), off_this_core: true, niceness: None };
                        assert_eq!(
                            off.settle().unwrap(),
                            Neighbour { cores: Some(Ok(others)), ..Neighbour::default() }
                        );
                    });
                });
            }
        }
    }
}
