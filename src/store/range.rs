//! Exact reads over the network: the bytes asked for, of the version that was listed, or an error.
//!
//! Each try is a new bounded request for what is still missing. Before any byte is used, the response's status, Content-Range, size and ETag are
//! compared with what was asked for; its length is counted as it arrives. A stall ends a try.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore as _};
use tokio::sync::SemaphorePermit;
use tokio::time::{sleep, timeout};

use super::pool::Buffer;
use super::remote::{Remote, modified};
use super::retry::{Fault, Tries};
use super::{Object, Shared, changed, watch};
use crate::{Error, ErrorKind, Result};

/// Reads exactly `range`, which lies within the object.
pub(super) async fn read(
    shared: &Shared,
    remote: &Remote,
    key: &str,
    object: &Object,
    range: Range<u64>,
) -> Result<Bytes> {
    let path = path(key)?;
    let len = usize::try_from(range.end - range.start).map_err(|_| Error::config("a range longer than memory"))?;
    let mut buffer = shared.pool.take(len)?;
    let mut tries = Tries::new(&shared.options.policy, shared.jitter.with(key).with_number(range.start));
    while let Err(fault) = attempt(shared, remote, &path, object, &range, &mut buffer).await {
        let reached = range.start + buffer.len() as u64;
        let wait = tries.after(fault).map_err(|e| e.byte_offset(reached))?;
        shared.transfers.retries.fetch_add(1, Ordering::Relaxed);
        sleep(wait).await;
    }
    Ok(buffer.freeze())
}

/// Sends one request for what the buffer still lacks.
async fn attempt(
    shared: &Shared,
    remote: &Remote,
    path: &Path,
    object: &Object,
    range: &Range<u64>,
    buffer: &mut Buffer,
) -> Result<(), Fault> {
    let stall = shared.options.stall_timeout;
    let _permit = start(shared, remote).await?;
    let wanted = range.start + buffer.len() as u64..range.end;
    let options = GetOptions {
        range: Some(GetRange::Bounded(wanted.clone())),
        // A weak tag never matches here (RFC 9110, 13.1.1); it is compared below.
        if_match: object.etag.as_deref().filter(|etag| !etag.starts_with("W/")).map(str::to_owned),
        ..Default::default()
    };
    let fault = |e| remote.fault_of(e, object.etag.as_deref());
    let answer = within(stall, remote.store.get_opts(path, options)).await?.map_err(fault)?;
    remote.answered_range.store(true, Ordering::Relaxed);
    if answer.range != wanted {
        return Err(transfer(format!("asked for bytes {wanted:?}, answered with {:?}", answer.range)));
    }
    if answer.meta.size != object.size {
        let sizes = format!("it had {} bytes when it was listed and has {} now", object.size, answer.meta.size);
        return Err(changed(sizes).into());
    }
    match (&object.etag, &answer.meta.e_tag) {
        (Some(listed), Some(now)) if opaque(listed) != opaque(now) => {
            return Err(changed(format!("its ETag was {listed} when it was listed and is {now} now")).into());
        }
        (Some(_), Some(_)) => {}
        // Where one of them is missing, the time of the last change is all there is to go by.
        _ => match (object.modified, modified(&answer.meta)) {
            (Some(listed), Some(now)) if !is_same_time(listed, now) => {
                return Err(changed("it was written again since it was listed, with the same size").into());
            }
            _ => {}
        },
    }
    let missing = wanted.end - wanted.start;
    let mut received = 0;
    let mut stream = answer.into_stream();
    while let Some(chunk) = within(stall, stream.next()).await? {
        let chunk = chunk.map_err(|e| remote.fault(e))?;
        if chunk.len() as u64 > missing - received {
            return Err(transfer(format!("more than the {missing} bytes asked for were sent")));
        }
        watch::came();
        buffer.push(&chunk);
        received += chunk.len() as u64;
        shared.transfers.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
    }
    if received < missing {
        return Err(transfer(format!("{received} of the {missing} bytes asked for were sent")));
    }
    Ok(())
}

/// Waits for a turn and for credentials.
async fn start<'a>(shared: &'a Shared, remote: &Remote) -> Result<SemaphorePermit<'a>, Fault> {
    let permit = shared.turns.acquire().await.expect("the semaphore is never closed");
    shared.transfers.requests.fetch_add(1, Ordering::Relaxed);
    // As with a refusal: a machine without a metadata server must not wait for one through all retries.
    let again = || remote.had_credentials.load(Ordering::Relaxed);
    within(shared.options.stall_timeout, remote.authenticate())
        .await
        .map_err(|fault| Fault { again: again(), ..fault })??;
    Ok(permit)
}

/// Sends a request that is answered as a whole, and sends it again while its faults are transient.
pub(super) async fn retrying<T, F>(
    shared: &Shared,
    remote: &Remote,
    limit: Duration,
    mut request: impl FnMut() -> F,
) -> Result<T>
where
    F: Future<Output = object_store::Result<T>>,
{
    let number = shared.transfers.requests.load(Ordering::Relaxed);
    let mut tries = Tries::new(&shared.options.policy, shared.jitter.with_number(number));
    loop {
        let done = match start(shared, remote).await {
            Ok(_permit) => match within(limit, request()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(e)) => remote.fault(e),
                Err(fault) => fault,
            },
            Err(fault) => fault,
        };
        let wait = tries.after(done)?;
        shared.transfers.retries.fetch_add(1, Ordering::Relaxed);
        sleep(wait).await;
    }
}

/// Describes one object.
pub(super) async fn head(shared: &Shared, remote: &Remote, key: &str) -> Result<Object> {
    let path = path(key)?;
    let request = || {
        let (store, path) = (Arc::clone(&remote.store), path.clone());
        async move { store.get_opts(&path, GetOptions { head: true, ..Default::default() }).await.map(|answer| answer.meta) }
    };
    let meta = retrying(shared, remote, shared.options.stall_timeout, request).await?;
    Ok(remote.object(&meta))
}

/// Returns the client's form of a key.
pub(super) fn path(key: &str) -> Result<Path> {
    Path::parse(key).map_err(|e| Error::config("a key that cannot be read").because(e))
}

async fn within<T>(limit: Duration, answer: impl Future<Output = T>) -> Result<T, Fault> {
    timeout(limit, answer).await.map_err(|_| {
        Error::new(ErrorKind::Transfer, format!("nothing was received for {limit:?}"))
            .advice("StoreOptions::stall_timeout waits longer")
            .into()
    })
}

fn transfer(message: String) -> Fault {
    Error::new(ErrorKind::Transfer, message).into()
}

/// Compares two times of change in nanoseconds: a response's header has whole seconds, while a listing may have fractions.
fn is_same_time(listed: i64, now: i64) -> bool {
    const SECOND: i64 = 1_000_000_000;
    listed == now || now % SECOND == 0 && listed.div_euclid(SECOND) == now / SECOND
}

/// Returns the part of an ETag that identifies the content.
fn opaque(etag: &str) -> &str {
    etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"')
}
