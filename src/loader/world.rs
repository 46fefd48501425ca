//! Which of several processes this one is.

use crate::error::{Error, Result};

/// This process's rank among those that train together.
///
/// # Example
/// ```
/// use forebay::World;
///
/// let world = World::new(1, 4)?;
/// assert_eq!((world.rank(), world.size()), (1, 4));
/// assert!(World::new(4, 4).is_err());
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    rank: u64,
    size: u64,
}

impl World {
    /// The one process there is.
    pub fn single() -> Self {
        Self { rank: 0, size: 1 }
    }

    /// Process `rank` of `size`, counted from 0.
    ///
    /// # Errors
    /// A rank that is not below the size.
    pub fn new(rank: usize, size: usize) -> Result<Self> {
        if rank >= size {
            return Err(Error::config(format!("rank {rank} of a world of {size}")).advice("ranks are counted from 0"));
        }
        Ok(Self { rank: rank as u64, size: size as u64 })
    }

    /// What `RANK` and `WORLD_SIZE` say, as torchrun and Kubeflow's PyTorchJob set them; a single process where neither is set.
    ///
    /// # Errors
    /// One of them without the other, or values that are no numbers or contradict each other.
    pub fn from_env() -> Result<Self> {
        let read = |name: &str| match std::env::var(name) {
            Ok(text) => {
                let number = text.trim().parse::<usize>();
                number
                    .map(Some)
                    .map_err(|e| Error::config(format!("{name} is {text:?}")).because(e).advice("set it to a number"))
            }
            Err(_) => Ok(None),
        };
        match (read("RANK")?, read("WORLD_SIZE")?) {
            (None, None) => Ok(Self::single()),
            (Some(rank), Some(size)) => Self::new(rank, size),
            (rank, _) => {
                let (set, missing) = if rank.is_some() { ("RANK", "WORLD_SIZE") } else { ("WORLD_SIZE", "RANK") };
                Err(Error::config(format!("{set} is set, {missing} is not")).advice("set both, or neither"))
            }
        }
    }

    /// This process's number.
    pub fn rank(self) -> usize {
        self.rank as usize
    }

    /// How many processes there are.
    pub fn size(self) -> usize {
        self.size as usize
    }
}

impl Default for World {
    fn default() -> Self {
        Self::single()
    }
}
