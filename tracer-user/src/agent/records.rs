//! The reader's end of the ring buffer.
//!
//! Being woken for each record would cost the traced functions more than the record itself. So while records come, the
//! reader looks for them every [`NAP`]; only when it has found nothing it tells the kernel half that it sleeps, and the
//! next record wakes it at once. A lone record is read without delay, one of many after half a [`NAP`] on average.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsRawFd as _, FromRawFd as _},
    sync::atomic::{Ordering, fence},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData, RingBuf, ring_buf::RingBufItem};
use tokio::io::{Interest, unix::AsyncFd};

/// How long the reader leaves records lying while it keeps up with them.
const NAP: Duration = Duration::from_millis(1);

/// The records, and when there are some.
#[expect(missing_debug_implementations, reason = "aya's maps have none")]
pub struct Records {
    ring: AsyncFd<RingBuf<MapData>>,
    asleep: Array<MapData, u64>,
    /// A timer of the kernel's: tokio's own are too coarse.
    timer: AsyncFd<File>,
    next: Next,
}

/// What [`Records::wait`] waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Nothing: there are more.
    More,
    /// The end of a [`NAP`].
    Nap,
    /// The kernel half.
    Wake,
}

impl Records {
    pub(super) fn new(ring: RingBuf<MapData>, asleep: Array<MapData, u64>) -> Result<Self> {
        // SAFETY: aya's reader owns its descriptor and gives the same one as long as it lives; `AsyncFd` owns the reader.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }.map_err(io::Error::from);
        let ring = ring.context("watch the ring buffer")?;
        // SAFETY: no arguments but flags; the answer is checked.
        let timer = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
        if timer < 0 {
            return Err(io::Error::last_os_error()).context("make a timer");
        }
        // SAFETY: a new descriptor, nobody else's.
        let timer = unsafe { File::from_raw_fd(timer) };
        // SAFETY: as for the ring buffer: the file keeps its descriptor.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }.map_err(io::Error::from);
        Ok(Self { ring, asleep, timer: timer.context("watch a timer")?, next: Next::Wake })
    }

    /// Waits until it is time to look.
    ///
    /// # Errors
    ///
    /// What epoll refuses.
    pub async fn wait(&mut self) -> io::Result<()> {
        match self.next {
            Next::More => {
                tokio::task::yield_now().await;
                return Ok(());
            }
            Next::Wake => {
                self.ring.readable().await?.clear_ready();
                return Ok(());
            }
            Next::Nap => {}
        }
        let mut ready = self.timer.readable_mut().await?;
        // How often it has run out is of no interest.
        let _ = ready.get_inner_mut().read(&mut [0; 8]);
        ready.clear_ready();
        Ok(())
    }

    /// The next record that is there.
    pub fn take(&mut self) -> Option<RingBufItem<'_>> {
        self.ring.get_mut().next()
    }

    /// Not all of them were taken: goes on without a rest.
    pub fn go_on(&mut self) {
        self.next = Next::More;
    }

    /// Some came, and more will: looks again in a moment.
    ///
    /// # Errors
    ///
    /// What the kernel refuses.
    pub fn nap(&mut self) -> io::Result<()> {
        let value = libc::timespec { tv_sec: 0, tv_nsec: i64::from(NAP.subsec_nanos()) };
        let once = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // SAFETY: our own timer and a valid time; the old one is not asked for.
        let set = unsafe { libc::timerfd_settime(self.timer.as_raw_fd(), 0, &raw const once, std::ptr::null_mut()) };
        self.next = Next::Nap;
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// None came: the next one is to wake the reader. It must look once more afterwards, for what came before the kernel
    /// half knew.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    pub fn sleep(&mut self) -> Result<()> {
        self.next = Next::Wake;
        self.asleep.set(0, 1, 0).context("tell the kernel half to wake us")?;
        fence(Ordering::SeqCst);
        Ok(())
    }
}
