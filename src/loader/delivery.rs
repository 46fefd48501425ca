//! The last part of a batch's way: into libtorch's tensors on the host, or through a ring to a device.
//!
//! Builds without libtorch deliver the batch's own memory; they have no devices.

#[cfg(test)]
#[cfg(feature = "tch")]
mod tests;

use std::sync::Arc;
#[cfg(feature = "tch")]
use std::time::Duration;

#[cfg(feature = "tch")]
use super::pipeline::Pipeline;
use super::run::Shared;
use crate::batch::Batch;
#[cfg(feature = "tch")]
use crate::batch::Data;
use crate::batch::buffer::Allocator;
use crate::batch::collate::{self, Layout, Rows};
use crate::device::Device;
#[cfg(not(feature = "tch"))]
use crate::device::refuse_cuda;
#[cfg(feature = "tch")]
use crate::device::{Copier, Crossing, Outgoing, Pieces, Ring, SlotLayout, Track, copier_for, kind_of};
use crate::engine::budget::Account;
#[cfg(feature = "tch")]
use crate::engine::budget::Grant;
use crate::error::Result;
#[cfg(feature = "tch")]
use crate::error::{Error, ErrorKind};
use crate::telemetry::RingReport;

/// Where the batches of an iterator go.
#[derive(Clone, Default)]
pub(crate) struct Delivery {
    /// The ring of its device, and the ring's share of the budget; `None` for the host.
    #[cfg(feature = "tch")]
    ring: Option<(Arc<Ring>, Arc<Grant>)>,
}

/// Identifies a batch that left for its device.
#[cfg(feature = "tch")]
pub(crate) type Parcel = Option<Arc<Crossing>>;
/// Without devices nothing leaves the host.
#[cfg(not(feature = "tch"))]
#[derive(Default)]
pub(crate) struct Parcel {}

/// A device that was found.
pub(crate) struct Found {
    /// `None` for the host.
    #[cfg(feature = "tch")]
    copier: Option<Arc<dyn Copier>>,
}

/// Looks for a device.
///
/// # Errors
/// [`ErrorKind::Device`](crate::ErrorKind::Device) if there is no such device.
pub(crate) fn find(device: Device) -> Result<Found> {
    #[cfg(feature = "tch")]
    return copier_for(device).map(|copier| Found { copier });
    #[cfg(not(feature = "tch"))]
    refuse_cuda(device).map(|()| Found {})
}

impl Found {
    /// Delivers batches to this device, for one of `lanes` iterators that share each batch.
    ///
    /// # Errors
    /// The budget is smaller than the ring; the device cannot lock that much memory.
    pub(crate) fn through(self, shared: &Shared, lanes: u64) -> Result<Delivery> {
        #[cfg(feature = "tch")]
        return Delivery::through(self.copier, &shared.pipeline, lanes, &shared.account);
        #[cfg(not(feature = "tch"))]
        {
            let _ = (shared, lanes);
            Ok(Delivery::default())
        }
    }
}

impl Delivery {
    /// Delivers through a ring, for one of `lanes` iterators that share each batch.
    ///
    /// # Errors
    /// The budget is smaller than the ring; the device does not have that much memory to lock.
    #[cfg(feature = "tch")]
    pub(crate) fn through(
        copier: Option<Arc<dyn Copier>>,
        pipeline: &Pipeline,
        lanes: u64,
        account: &Arc<Account>,
    ) -> Result<Self> {
        let Some(copier) = copier else { return Ok(Self::default()) };
        let rows = pipeline.steps.batch / pipeline.steps.world / lanes;
        let layout = SlotLayout::new(&collate::bounds(&pipeline.layouts, rows as usize));
        // A batch that was handed over may still be copied while the window is full.
        let slots = pipeline.window as usize + 1;
        let bytes = Ring::bytes_of(&layout, slots);
        let Some(grant) = account.grant(bytes, 0) else {
            let (total, used) = (account.total(), account.used());
            return Err(Error::new(
                ErrorKind::Memory,
                format!("a ring of {slots} batches takes {bytes} bytes, of a budget of {total} with {used} in use"),
            )
            .advice("take a larger .budget(), smaller batches or less .prefetch()"));
        };
        let ring = Ring::new(copier, layout, slots)?;
        Ok(Self { ring: Some((Arc::new(ring), Arc::new(grant))) })
    }

    /// Notes on columns of varying length that have no place in a ring, because their length has no stated bound.
    pub(crate) fn notes(layouts: &[Layout]) -> impl Iterator<Item = String> {
        let unbounded = layouts.iter().filter(|layout| !layout.is_bytes() && layout.sample_bytes().is_none());
        let note = |name: &str| {
            format!(
                "{name:?} has no bound and crosses to the device in pieces: .pad({name:?}, Pad::to(n)) gives it a place in the ring"
            )
        };
        unbounded.map(move |layout| note(layout.column.name()))
    }

    /// What the ring has done, if there is one.
    pub(crate) fn report(&self) -> Option<RingReport> {
        #[cfg(feature = "tch")]
        return self.ring.as_ref().map(|(ring, _)| {
            let (slots, bytes) = ring.size();
            let (crossed, late) = ring.crossed();
            let times = ring.times();
            let seconds = |seconds: f64| Duration::from_secs_f64(seconds);
            RingReport {
                device: ring.device(),
                slots,
                bytes,
                crossed,
                late,
                timed: times.batches,
                timed_bytes: times.bytes,
                copying: seconds(times.copying),
                device_wait: seconds(times.waited),
                device_wait_for_copies: seconds(times.waited_for_copies),
            }
        });
        #[cfg(not(feature = "tch"))]
        None
    }

    /// Whether the columns' memory is the ring's, so that it takes nothing more from the budget.
    pub(crate) fn is_ring(&self) -> bool {
        #[cfg(feature = "tch")]
        return self.ring.is_some();
        #[cfg(not(feature = "tch"))]
        false
    }

    /// The way of an iterator's batches, `ahead` of which are on the device before the loop takes them.
    pub(crate) fn way(&self, ahead: usize) -> Way {
        #[cfg(feature = "tch")]
        return Way { track: self.ring.as_ref().map(|(ring, _)| Track::new(ring.clone(), ahead)) };
        #[cfg(not(feature = "tch"))]
        {
            let _ = ahead;
            Way {}
        }
    }
}

#[cfg(test)]
#[cfg(feature = "tch")]
impl super::Loader {
    /// Delivers through this copier from now on.
    pub(crate) fn deliver_through(&mut self, copier: Arc<dyn Copier>) -> Result<()> {
        self.delivery = Delivery::through(Some(copier), &self.shared.pipeline, 1, &self.shared.account)?;
        Ok(())
    }
}

/// The way of one iterator's batches from their rows to the loop.
pub(crate) struct Way {
    #[cfg(feature = "tch")]
    track: Option<Track>,
}

impl Way {
    /// Bytes of a batch of these rows that are not in a ring.
    pub(crate) fn host_bytes(&self, layouts: &[Layout], rows: &[Rows]) -> u64 {
        collate::column_bytes(layouts, rows)
            .enumerate()
            .filter(|&(column, bytes)| !self.has_place(column, bytes))
            .map(|(_, bytes)| bytes as u64)
            .sum()
    }

    fn has_place(&self, column: usize, bytes: usize) -> bool {
        #[cfg(feature = "tch")]
        return self.track.as_ref().is_some_and(|track| track.ring().layout().holds(column, bytes));
        #[cfg(not(feature = "tch"))]
        {
            let _ = (column, bytes);
            false
        }
    }

    /// Where a batch gets its memory from; `None` while the ring has no slot for it.
    ///
    /// # Errors
    /// What is wrong with the device.
    pub(crate) fn allocator(&self, account: &Arc<Account>) -> Result<Option<Allocator>> {
        let allocator = Allocator::new(account);
        #[cfg(feature = "tch")]
        if let Some(track) = &self.track {
            return Ok(track.ring().take()?.map(|slot| allocator.with_slot(slot)));
        }
        Ok(Some(allocator))
    }

    /// Whether there is a slot for another batch.
    pub(crate) fn has_room(&self) -> bool {
        #[cfg(feature = "tch")]
        return self.track.as_ref().is_none_or(|track| track.ring().has_room());
        #[cfg(not(feature = "tch"))]
        true
    }

    /// Waits for a copy under way, which frees its slot. Returns whether there was one.
    pub(crate) fn wait_for_one(&self) -> bool {
        #[cfg(feature = "tch")]
        return self.track.as_ref().is_some_and(|track| track.ring().wait_for_one());
        #[cfg(not(feature = "tch"))]
        false
    }

    /// Makes tensors of a finished batch, or sends it on its way to the device. Then it is complete once it has [arrived](Self::arrive).
    pub(crate) fn send(&self, batch: &mut Batch) -> Result<Parcel> {
        #[cfg(feature = "tch")]
        {
            let owned = |buffer| Arc::into_inner(buffer).expect("nobody has a batch before it is delivered");
            let mut outgoing = Vec::new();
            for (number, column) in batch.columns.iter_mut().enumerate() {
                column.data = match std::mem::replace(&mut column.data, Data::OnItsWay) {
                    Data::Host(buffer) if self.track.is_some() => {
                        outgoing.push(Outgoing {
                            column: number,
                            kind: kind_of(column.column.dtype()),
                            shape: column.shape.iter().map(|&extent| extent as i64).collect(),
                            memory: Box::new(owned(buffer)),
                        });
                        Data::OnItsWay
                    }
                    Data::Host(buffer) => {
                        let tensor = owned(buffer).into_tensor(column.column.dtype(), &column.shape);
                        Data::Tensor(tensor.map_err(|e| e.column(column.column.name().clone()))?)
                    }
                    other => other,
                };
            }
            Ok((!outgoing.is_empty()).then(|| Arc::new(Crossing::new(outgoing))))
        }
        #[cfg(not(feature = "tch"))]
        {
            let _ = batch;
            Ok(Parcel {})
        }
    }

    /// Takes the batch that is next in order. It is copied as soon as there is room on the device.
    pub(crate) fn enqueue(&self, parcel: &Parcel) {
        #[cfg(feature = "tch")]
        if let (Some(track), Some(crossing)) = (&self.track, parcel) {
            track.enqueue(crossing);
        }
        #[cfg(not(feature = "tch"))]
        let Parcel {} = parcel;
    }

    /// Whether batches go to a device, and not to the host.
    pub(crate) fn is_device(&self) -> bool {
        #[cfg(feature = "tch")]
        return self.track.is_some();
        #[cfg(not(feature = "tch"))]
        false
    }

    /// Queues the copies that can be queued.
    pub(crate) fn pump(&self) {
        #[cfg(feature = "tch")]
        if let Some(track) = &self.track {
            track.pump(Pieces::Free);
        }
    }

    /// Notes that the loop is gone.
    pub(crate) fn close(&self) {
        #[cfg(feature = "tch")]
        if let Some(track) = &self.track {
            track.close();
        }
    }

    /// Notes that the loop asks for its next batch, on its own thread.
    pub(crate) fn ask(&self) {
        #[cfg(feature = "tch")]
        if let Some(track) = &self.track {
            track.ask();
        }
    }

    /// Hands the batch's tensors over, on the loop's thread. `alone`: whether no worker can continue with the copies of the next batches. Returns
    /// whether there are copies left to continue with.
    ///
    /// # Errors
    /// What went wrong with its copy.
    pub(crate) fn arrive(&self, batch: &mut Batch, parcel: Parcel, alone: bool) -> Result<bool> {
        #[cfg(feature = "tch")]
        if let (Some(track), Some(crossing)) = (&self.track, parcel) {
            let how = if alone { Pieces::Free } else { Pieces::Later };
            let (tensors, left) = track.hand_over(&crossing, how)?;
            let mut tensors = tensors.into_iter();
            for column in batch.columns.iter_mut().filter(|column| matches!(column.data, Data::OnItsWay)) {
                column.data = Data::Tensor(tensors.next().expect("a tensor for each column that left"));
            }
            return Ok(left && !alone);
        }
        #[cfg(not(feature = "tch"))]
        let _ = (batch, parcel, alone);
        Ok(false)
    }
}
