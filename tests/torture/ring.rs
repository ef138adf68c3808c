//! io_uring, one operation at a time, and never for longer than a given time.

use std::{
    io::{self, ErrorKind},
    thread,
    time::{Duration, Instant},
};

use io_uring::{IoUring, cqueue, opcode, squeue, types};

/// Does what `entry` says and gives its result.
///
/// In a thread of its own, for the kernel interrupts the system calls of one that has used a ring.
///
/// # Safety
///
/// The memory that `entry` names must outlive the call, or the connection where it takes longer than `time`.
pub unsafe fn run(entry: squeue::Entry, time: Duration) -> io::Result<usize> {
    // SAFETY: the caller's.
    thread::scope(|scope| scope.spawn(|| unsafe { one(entry.user_data(1), time) }).join().unwrap())
}

unsafe fn one(entry: squeue::Entry, time: Duration) -> io::Result<usize> {
    let mut ring = IoUring::new(4)?;
    // SAFETY: the caller's.
    unsafe { ring.submission().push(&entry).map_err(io::Error::other)? };
    ring.submit()?;
    let deadline = Instant::now() + time;
    let (mut result, mut expected) = (0, 1);
    while expected > 0 {
        wait(&ring, deadline)?;
        if Instant::now() >= deadline {
            let cancel = opcode::AsyncCancel::new(1).build();
            // SAFETY: no memory is involved.
            unsafe { ring.submission().push(&cancel).map_err(io::Error::other)? };
            ring.submit()?;
            wait(&ring, Instant::now() + Duration::from_millis(100))?;
            return Err(ErrorKind::WouldBlock.into());
        }
        for done in ring.completion() {
            expected -= 1;
            // A zero-copy send completes twice: when it is sent, and when its memory is free again.
            if !cqueue::notif(done.flags()) {
                expected += usize::from(cqueue::more(done.flags()));
                result = done.result();
            }
        }
    }
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

fn wait(ring: &IoUring, deadline: Instant) -> io::Result<()> {
    let time = types::Timespec::from(deadline.saturating_duration_since(Instant::now()));
    match ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&time)) {
        Err(error) if error.raw_os_error() != Some(libc::ETIME) => Err(error),
        _ => Ok(()),
    }
}
