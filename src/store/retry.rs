//! Decides when a request is sent again, and how long to wait before that.

use std::fmt;
use std::time::Duration;

use rand::Rng as _;

use crate::Error;
use crate::random::{Key, Rng};

/// The longest Retry-After that a server is granted.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// The number of retries, and the waits before them.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    /// Tries after the first one.
    pub(super) retries: u32,
    /// The wait before the second try, doubled for each further one.
    pub(super) first: Duration,
    /// The longest wait.
    pub(super) most: Duration,
}

impl Policy {
    /// Returns the wait before the retry of this number (from 0), or `None` when the last retry has been used.
    ///
    /// Half of the wait is random, so that readers that failed together do not retry together.
    fn wait(&self, retry: u32, retry_after: Option<Duration>, rng: &mut Rng) -> Option<Duration> {
        if retry >= self.retries {
            return None;
        }
        let full = self.first.saturating_mul(1 << retry.min(20)).min(self.most);
        let drawn = full.mul_f64(rng.random_range(0.5..=1.0));
        Some(drawn.max(retry_after.unwrap_or_default().min(MAX_RETRY_AFTER)))
    }
}

/// The tries of one operation.
pub(super) struct Tries<'a> {
    policy: &'a Policy,
    rng: Rng,
    retry: u32,
}

impl<'a> Tries<'a> {
    pub(super) fn new(policy: &'a Policy, key: Key) -> Self {
        Self { policy, rng: key.rng(), retry: 0 }
    }

    /// Returns how long to wait after this fault, or the error that ends the operation.
    pub(super) fn after(&mut self, fault: Fault) -> Result<Duration, Error> {
        let wait = if fault.again { self.policy.wait(self.retry, fault.retry_after, &mut self.rng) } else { None };
        match wait {
            Some(wait) => {
                self.retry += 1;
                Ok(wait)
            }
            None if fault.again && self.retry > 0 && fault.error.is_transient() => Err(fault
                .error
                .advice(format!("gave up after {} tries; StoreOptions::retries allows more", self.retry + 1))),
            None => Err(fault.error),
        }
    }
}

/// The fault that ended one try.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) error: Error,
    /// Whether the same request may succeed.
    pub(super) again: bool,
    /// The wait that the server asked for.
    pub(super) retry_after: Option<Duration>,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self { again: error.is_transient(), error, retry_after: None }
    }
}

/// An error status, found in the source chain of a client's error.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    /// The beginning of the server's message.
    pub(super) detail: String,
}

impl Refused {
    /// Returns whether the server is only busy or broken for the moment.
    pub(super) fn is_transient(&self) -> bool {
        self.status >= 500 && self.status != 501 || matches!(self.status, 408 | 429)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}", self.status)?;
        if !self.detail.is_empty() {
            write!(f, ", {}", self.detail)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    const POLICY: Policy = Policy { retries: 5, first: Duration::from_millis(100), most: Duration::from_secs(1) };

    #[test]
    fn waits_double_up_to_the_longest_and_then_end() {
        let mut rng = Key::new(1).rng();
        let full = [100, 200, 400, 800, 1000];
        for (retry, full) in full.into_iter().enumerate() {
            let wait = POLICY.wait(retry as u32, None, &mut rng).unwrap();
            let full = Duration::from_millis(full);
            assert!(wait <= full && wait >= full / 2, "{retry}: {wait:?}");
        }
        assert_eq!(POLICY.wait(5, None, &mut rng), None);
        assert!(Policy { retries: 100, ..POLICY }.wait(99, None, &mut rng).is_some());
    }

    #[test]
    fn what_the_server_asks_for_is_honoured_within_a_minute() {
        let mut rng = Key::new(1).rng();
        let asked = Duration::from_secs(7);
        assert_eq!(POLICY.wait(0, Some(asked), &mut rng), Some(asked));
        assert_eq!(POLICY.wait(0, Some(Duration::from_secs(9999)), &mut rng), Some(MAX_RETRY_AFTER));
    }

    #[test]
    fn only_transient_faults_are_tried_again() {
        let mut tries = Tries::new(&POLICY, Key::new(1));
        assert!(tries.after(Error::new(ErrorKind::Transfer, "x").into()).is_ok());
        assert_eq!(tries.after(Error::new(ErrorKind::NotFound, "y").into()).unwrap_err().message(), "y");
    }
}
