//! io_uring, one operation at a time, and never for longer than a given time.

use std::{
    io::{self, ErrorKind},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use io_uring::{IoUring, cqueue, opcode, squeue, types};

/// The memory of a zero-copy send, which the kernel may still read from.
#[derive(Debug)]
pub struct Memory(JoinHandle<io::Result<()>>);

impl Memory {
    /// Waits until it is free: until the other side has acknowledged all of it.
    pub fn becomes_free(self) -> bool {
        self.0.join().unwrap().is_ok()
    }
}

/// Does what `entry` says and gives its result, and the memory if it is not free yet.
///
/// In a thread of its own, for the kernel interrupts the system calls of one that has used a ring.
///
/// # Safety
///
/// The memory that `entry` names must outlive the call and the [`Memory`], or the connection where it takes longer than
/// `time`.
pub unsafe fn run(entry: squeue::Entry, time: Duration) -> io::Result<(usize, Option<Memory>)> {
    let (say, said) = mpsc::channel();
    // SAFETY: the caller's.
    let thread = thread::spawn(move || unsafe { one(&entry.user_data(1), time, &say) });
    match said.recv() {
        Ok((result, more)) => {
            let memory = if more { Some(Memory(thread)) } else { None };
            usize::try_from(result).map(|len| (len, memory)).map_err(|_| io::Error::from_raw_os_error(-result))
        }
        Err(_) => Err(thread.join().unwrap().expect_err("it ended without a result")),
    }
}

/// Says the result, and whether a second completion is to come: a zero-copy send completes twice, when it is sent, and
/// when its memory is free again.
unsafe fn one(entry: &squeue::Entry, time: Duration, say: &mpsc::Sender<(i32, bool)>) -> io::Result<()> {
    let mut ring = IoUring::new(4)?;
    // SAFETY: the caller's.
    unsafe { ring.submission().push(entry).map_err(io::Error::other)? };
    ring.submit()?;
    let deadline = Instant::now() + time;
    let mut expected = 1;
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
            if !cqueue::notif(done.flags()) {
                let more = cqueue::more(done.flags());
                expected += usize::from(more);
                // Nobody listens any more where the other side has failed.
                let _ = say.send((done.result(), more));
            }
        }
    }
    Ok(())
}

fn wait(ring: &IoUring, deadline: Instant) -> io::Result<()> {
    let time = types::Timespec::from(deadline.saturating_duration_since(Instant::now()));
    match ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&time)) {
        Err(error) if error.raw_os_error() != Some(libc::ETIME) => Err(error),
        _ => Ok(()),
    }
}
