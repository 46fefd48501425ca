//! Which of several processes this one is: as the program states it, or as the launcher sets it.

use std::fmt;

use crate::error::{Error, Result};

/// This process's rank among the processes that train together.
///
/// It prints the rank and who set it: `rank 1 of 4 (srun: SLURM_PROCID, SLURM_STEP_NUM_TASKS)`. Two worlds are equal if they have the same rank and
/// size.
///
/// # Example
/// ```
/// use forebay::World;
///
/// let world = World::new(1, 4)?;
/// assert_eq!((world.rank(), world.size()), (1, 4));
/// assert_eq!(world.to_string(), "rank 1 of 4");
/// assert!(World::new(4, 4).is_err());
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct World {
    rank: u64,
    size: u64,
    origin: Origin,
}

/// Who set the rank.
#[derive(Clone, Copy, Debug)]
enum Origin {
    /// The program.
    Stated,
    Launcher(Launcher),
    /// No launcher has set anything.
    Unset,
    /// SLURM gave an allocation, but srun did not start this process.
    Allocation,
}

/// Launchers, which start processes and set their rank, the innermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Launcher {
    Torchrun,
    OpenMpi,
    Pmi,
    Slurm,
    Kubeflow,
    Unnamed,
}

impl Launcher {
    fn name(self) -> &'static str {
        match self {
            Launcher::Torchrun => "torchrun",
            Launcher::OpenMpi => "Open MPI",
            Launcher::Pmi => "PMI",
            Launcher::Slurm => "srun",
            Launcher::Kubeflow => "Kubeflow PyTorchJob",
            Launcher::Unnamed => "environment",
        }
    }

    /// The variables of rank and size.
    fn variables(self) -> (&'static str, &'static str) {
        match self {
            Launcher::Torchrun | Launcher::Kubeflow | Launcher::Unnamed => ("RANK", "WORLD_SIZE"),
            Launcher::OpenMpi => ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
            Launcher::Pmi => ("PMI_RANK", "PMI_SIZE"),
            // Not SLURM_NTASKS: that is also set where an allocation has room for so many tasks and srun has started none.
            Launcher::Slurm => ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
        }
    }
}

/// The value of an environment variable, if it is set.
type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

impl World {
    /// Returns the world of a single process.
    pub fn single() -> Self {
        Self { rank: 0, size: 1, origin: Origin::Stated }
    }

    /// Returns process `rank` of `size`, counted from 0.
    ///
    /// # Errors
    /// The rank is not below the size.
    pub fn new(rank: usize, size: usize) -> Result<Self> {
        if rank >= size {
            return Err(Error::config(format!("rank {rank} of a world of {size}")).advice("ranks are counted from 0"));
        }
        Ok(Self { rank: rank as u64, size: size as u64, origin: Origin::Stated })
    }

    /// Reads what the launcher of this process has set in the environment. Returns a single process if nothing is set.
    ///
    /// | launcher | recognised by | rank and size |
    /// |---|---|---|
    /// | torchrun | `TORCHELASTIC_RUN_ID` | `RANK`, `WORLD_SIZE` |
    /// | Open MPI's mpirun | its variables | `OMPI_COMM_WORLD_RANK`, `OMPI_COMM_WORLD_SIZE` |
    /// | MPICH, Intel MPI and others with PMI | its variables | `PMI_RANK`, `PMI_SIZE` |
    /// | srun of SLURM | `SLURM_STEP_NUM_TASKS` | `SLURM_PROCID`, `SLURM_STEP_NUM_TASKS` |
    /// | Kubeflow PyTorchJob, or set by hand | its variables | `RANK`, `WORLD_SIZE` |
    ///
    /// Launchers can run within launchers, and the innermost one started this process: torchrun takes precedence over all others, and mpirun over the
    /// srun that starts its daemons. A shell or batch script in a SLURM allocation is a single process, whatever `SLURM_NTASKS` says: only srun
    /// starts that many. PMIx sets a rank in the environment, but no size; launchers that use it set other variables as well.
    ///
    /// `println!("{world}")` says what was found.
    ///
    /// # Errors
    /// Only one of two variables is set; a value is not a number; a rank is not below the size; `RANK` and `WORLD_SIZE` differ from those of another
    /// launcher; the variables of a pod (`PET_NNODES`, `PET_NPROC_PER_NODE`) declare more processes than were started. Each error names variables and
    /// values.
    ///
    /// # Source
    /// The manuals of torchrun ("Environment variables"), Open MPI 5 ("Environment variables set for MPI applications"), srun(1)
    /// ("Output environment variables"), Flux RFC 13 (PMI-1), and Kubeflow's training operator, which sets them for PyTorchJob.
    ///
    /// # Example
    /// ```
    /// use forebay::World;
    ///
    /// let world = World::from_env()?;
    /// assert!(world.rank() < world.size());
    /// println!("{world}");
    /// # Ok::<(), forebay::Error>(())
    /// ```
    pub fn from_env() -> Result<Self> {
        Self::from_lookup(&|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    fn from_lookup(look: Lookup<'_>) -> Result<Self> {
        let is_set = |name: &str| look(name).is_some();
        if is_set("TORCHELASTIC_RUN_ID") {
            return said_by(Launcher::Torchrun, look)?.ok_or_else(|| {
                Error::config("TORCHELASTIC_RUN_ID is set, RANK and WORLD_SIZE are not")
                    .advice("pass on all variables that torchrun sets")
            });
        }
        let in_pod = is_set("KUBERNETES_SERVICE_HOST") && is_set("MASTER_ADDR");
        let plain = said_by(if in_pod { Launcher::Kubeflow } else { Launcher::Unnamed }, look)?;
        let mut found: Vec<World> =
            [said_by(Launcher::OpenMpi, look)?, said_by(Launcher::Pmi, look)?].into_iter().flatten().collect();
        if found.is_empty() && is_set("SLURM_STEP_NUM_TASKS") {
            found.extend(said_by(Launcher::Slurm, look)?);
        }
        if found.is_empty() {
            pod_without_torchrun(look, plain)?;
        }
        if let Some(plain) = plain {
            // A step of one task is where another launcher may run.
            found.retain(|world| world.size > 1);
            found.push(plain);
        }
        if let Some(other) = found.iter().find(|&world| *world != found[0]) {
            return Err(Error::config(format!("{}, but {}", found[0].quoted(), other.quoted()))
                .advice("unset those that are left over from elsewhere, or say which holds: World::new(rank, size)"));
        }
        Ok(found.first().copied().unwrap_or_else(|| {
            let in_slurm = is_set("SLURM_NTASKS") || is_set("SLURM_JOB_ID");
            Self { origin: if in_slurm { Origin::Allocation } else { Origin::Unset }, ..Self::single() }
        }))
    }

    /// Returns this process's number.
    pub fn rank(self) -> usize {
        self.rank as usize
    }

    /// Returns how many processes there are.
    pub fn size(self) -> usize {
        self.size as usize
    }

    /// The variables that say so, with their values.
    fn quoted(self) -> String {
        let Origin::Launcher(launcher) = self.origin else { return self.to_string() };
        let (rank, size) = launcher.variables();
        format!("{rank} is {} and {size} is {} ({})", self.rank, self.size, launcher.name())
    }
}

/// Reads a launcher's two variables; `None` if neither is set.
fn said_by(launcher: Launcher, look: Lookup<'_>) -> Result<Option<World>> {
    let number = |name: &str| {
        let Some(text) = look(name) else { return Ok(None) };
        let number = text.trim().parse::<u64>();
        number
            .map(Some)
            .map_err(|e| Error::config(format!("{name} is {text:?}")).because(e).advice("set it to a number"))
    };
    let (rank_name, size_name) = launcher.variables();
    match (number(rank_name)?, number(size_name)?) {
        (None, None) => Ok(None),
        (Some(rank), Some(size)) if rank < size => Ok(Some(World { rank, size, origin: Origin::Launcher(launcher) })),
        (Some(rank), Some(size)) => Err(Error::config(format!("{rank_name} is {rank}, {size_name} is {size}"))
            .advice("ranks are counted from 0: set the rank below the size")),
        (rank, _) => {
            let (set, missing) = if rank.is_some() { (rank_name, size_name) } else { (size_name, rank_name) };
            Err(Error::config(format!("{set} is set, {missing} is not")).advice("set both, or neither"))
        }
    }
}

/// Refuses variables that tell torchrun to start several processes, if torchrun did not start this one.
fn pod_without_torchrun(look: Lookup<'_>, plain: Option<World>) -> Result<()> {
    // Of a pod with RANK and WORLD_SIZE these count pods; one process in each is right.
    let meant = if plain.is_some() { &["PET_NPROC_PER_NODE"][..] } else { &["PET_NPROC_PER_NODE", "PET_NNODES"] };
    let several =
        |name: &&str| look(name).filter(|value| value.parse::<u64>().map_or(name.ends_with("NNODES"), |n| n > 1));
    let Some((name, value)) = meant.iter().find_map(|name| Some((name, several(name)?))) else { return Ok(()) };
    Err(Error::config(format!("{name} is {value:?}, which is for torchrun, but torchrun did not start this process"))
        .advice("start it with torchrun --no-python PROGRAM, unset the variable, or take World::new(rank, size)"))
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        (self.rank, self.size) == (other.rank, other.size)
    }
}

impl Eq for World {}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.size)?;
        match self.origin {
            Origin::Stated => Ok(()),
            Origin::Launcher(launcher) => {
                let (rank, size) = launcher.variables();
                write!(f, " ({}: {rank}, {size})", launcher.name())
            }
            Origin::Unset => f.write_str(" (no launcher has set anything)"),
            Origin::Allocation => f.write_str(" (a SLURM job, in which srun did not start this process)"),
        }
    }
}

impl Default for World {
    fn default() -> Self {
        Self::single()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `A=1 B=2` as an environment.
    fn world(variables: &str) -> Result<World> {
        let find = |name: &str| {
            let mut pairs = variables.split_whitespace().filter_map(|pair| pair.split_once('='));
            pairs.find(|(set, _)| *set == name).map(|(_, value)| value.to_owned())
        };
        World::from_lookup(&find)
    }

    const TORCHRUN: &str = "TORCHELASTIC_RUN_ID=none RANK=3 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 GROUP_RANK=1";
    const SRUN: &str = "SLURM_JOB_ID=7 SLURM_NTASKS=4 SLURM_STEP_ID=0 SLURM_PROCID=2 SLURM_STEP_NUM_TASKS=4";

    #[test]
    fn every_launcher_is_understood_and_named() {
        for (variables, said) in [
            ("", "rank 0 of 1 (no launcher has set anything)"),
            (TORCHRUN, "rank 3 of 8 (torchrun: RANK, WORLD_SIZE)"),
            (
                "KUBERNETES_SERVICE_HOST=10.0.0.1 MASTER_ADDR=job-master-0 RANK=1 WORLD_SIZE=3 PET_NNODES=3 PET_NODE_RANK=1 PET_NPROC_PER_NODE=auto",
                "rank 1 of 3 (Kubeflow PyTorchJob: RANK, WORLD_SIZE)",
            ),
            (SRUN, "rank 2 of 4 (srun: SLURM_PROCID, SLURM_STEP_NUM_TASKS)"),
            (
                "OMPI_COMM_WORLD_RANK=5 OMPI_COMM_WORLD_SIZE=6 PMIX_RANK=5",
                "rank 5 of 6 (Open MPI: OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE)",
            ),
            ("PMI_RANK=0 PMI_SIZE=2 PMI_FD=6", "rank 0 of 2 (PMI: PMI_RANK, PMI_SIZE)"),
            ("RANK=1 WORLD_SIZE=2", "rank 1 of 2 (environment: RANK, WORLD_SIZE)"),
        ] {
            assert_eq!(world(variables).unwrap().to_string(), said, "{variables}");
        }
    }

    #[test]
    fn an_allocation_is_one_process_whatever_it_has_room_for() {
        let said = "rank 0 of 1 (a SLURM job, in which srun did not start this process)";
        for variables in [
            // The shell of salloc, and a batch script, whose step has a process number.
            "SLURM_JOB_ID=7 SLURM_NTASKS=4 SLURM_NNODES=2",
            "SLURM_JOB_ID=7 SLURM_NTASKS=4 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0",
        ] {
            assert_eq!(world(variables).unwrap().to_string(), said, "{variables}");
        }
    }

    #[test]
    fn of_launchers_within_launchers_the_innermost_counts() {
        for (variables, rank, size) in [
            (format!("{TORCHRUN} {SRUN}"), 3, 8),
            (format!("{TORCHRUN} PET_NPROC_PER_NODE=2 PET_NNODES=4"), 3, 8),
            // The daemons of mpirun are tasks of a step of their own.
            (format!("OMPI_COMM_WORLD_RANK=5 OMPI_COMM_WORLD_SIZE=6 {SRUN}"), 5, 6),
            (format!("PMI_RANK=2 PMI_SIZE=4 {SRUN}"), 2, 4),
            (format!("RANK=2 WORLD_SIZE=4 {SRUN}"), 2, 4),
            ("RANK=2 WORLD_SIZE=4 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1".into(), 2, 4),
            ("RANK=2 WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1".into(), 2, 4),
            ("RANK=2 WORLD_SIZE=4 SLURM_JOB_ID=7 SLURM_NTASKS=8 SLURM_PROCID=0".into(), 2, 4),
        ] {
            assert_eq!(world(&variables).unwrap(), World::new(rank, size).unwrap(), "{variables}");
        }
    }

    #[test]
    fn contradictions_are_refused_with_names_and_values() {
        for (variables, words) in [
            ("RANK=1", &["RANK is set, WORLD_SIZE is not", "set both"][..]),
            ("WORLD_SIZE=4", &["WORLD_SIZE is set, RANK is not"]),
            ("TORCHELASTIC_RUN_ID=x", &["TORCHELASTIC_RUN_ID is set", "RANK and WORLD_SIZE are not"]),
            ("TORCHELASTIC_RUN_ID=x RANK=1", &["WORLD_SIZE is not"]),
            ("SLURM_STEP_NUM_TASKS=4", &["SLURM_STEP_NUM_TASKS is set, SLURM_PROCID is not"]),
            ("RANK=one WORLD_SIZE=2", &["RANK is \"one\"", "set it to a number"]),
            ("RANK=-1 WORLD_SIZE=2", &["RANK is \"-1\""]),
            ("RANK= WORLD_SIZE=2", &["RANK is \"\""]),
            ("RANK=4 WORLD_SIZE=4", &["RANK is 4, WORLD_SIZE is 4", "counted from 0"]),
            ("OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=0", &["OMPI_COMM_WORLD_SIZE is 0"]),
            (
                "RANK=0 WORLD_SIZE=4 SLURM_PROCID=2 SLURM_STEP_NUM_TASKS=4",
                &[
                    "SLURM_PROCID is 2 and SLURM_STEP_NUM_TASKS is 4 (srun)",
                    "RANK is 0 and WORLD_SIZE is 4",
                    "World::new(rank, size)",
                ],
            ),
            (
                "RANK=0 WORLD_SIZE=1 PMI_RANK=1 PMI_SIZE=2",
                &["PMI_RANK is 1 and PMI_SIZE is 2 (PMI)", "WORLD_SIZE is 1"],
            ),
            (
                "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 PMI_RANK=1 PMI_SIZE=2",
                &["OMPI_COMM_WORLD_RANK is 0", "PMI_RANK is 1"],
            ),
            ("PET_NNODES=1:4 PET_NPROC_PER_NODE=1", &["PET_NNODES is \"1:4\"", "torchrun --no-python"]),
            ("PET_NNODES=2", &["PET_NNODES is \"2\""]),
            ("RANK=0 WORLD_SIZE=16 PET_NNODES=2 PET_NPROC_PER_NODE=8", &["PET_NPROC_PER_NODE is \"8\""]),
        ] {
            let error = world(variables).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Config, "{variables}");
            let text = error.to_string();
            words.iter().for_each(|words| assert!(text.contains(words), "{variables}: {text} lacks {words}"));
        }
        assert_eq!(world("PET_NNODES=1 PET_NPROC_PER_NODE=auto").unwrap(), World::single());
    }
}
