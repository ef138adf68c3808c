//! Facts that tell user space afterwards whose a call was, where that is not certain when it is sent: who reads the
//! answer, and whom the thread that made it wakes when it is done. Nothing else makes records of these.

use aya_ebpf::helpers::{bpf_ktime_get_ns, generated::bpf_ringbuf_output};
use core::ffi::c_void;
use tracer_ebpf::{
    counter::Counter,
    record::{HandBack, Header, Kind, Read},
};

use crate::{
    connection::{Connection, unsure},
    kernel::Task,
    maps::{RECORDS, count},
    pointer::Value,
    scratch,
};

#[repr(C)]
struct ReadRecord {
    header: Header,
    read: Read,
}

#[repr(C)]
struct HandBackRecord {
    header: Header,
    back: HandBack,
}

#[inline(always)]
fn header(kind: Kind, sandbox: u64, pid: u32) -> Header {
    // SAFETY: the helper has no arguments.
    Header { at_ns: unsafe { bpf_ktime_get_ns() }, sandbox, kind: kind as u16, tail_len: 0, pid }
}

/// # Safety
///
/// `record` must point to `len` bytes.
#[inline(always)]
unsafe fn tell(record: *mut c_void, len: usize) {
    // SAFETY: a ring buffer; the caller vouches for the rest. 1 is BPF_RB_NO_WAKEUP.
    let failed = unsafe { bpf_ringbuf_output((&raw const RECORDS).cast_mut().cast(), record, len as u64, 1) };
    count(if failed == 0 { Counter::Records } else { Counter::RecordsLost });
    scratch::wake();
}

/// `task` read of the answer to the last call on this connection. Its beginning and its end are told, not what is
/// between. `true` if that was wanted: then the thread may have to tell whom it wakes.
#[inline(always)]
pub fn response_read(connection: &mut Value<Connection>, task: Task) -> bool {
    if connection.unsure == unsure::NO {
        return false;
    }
    let whole = connection.open() == 0;
    if whole || connection.unsure == unsure::UNREAD {
        connection.unsure = if whole { unsure::NO } else { unsure::BEGUN };
        let mut record = ReadRecord {
            header: header(Kind::ResponseRead, connection.sandbox, task.pid),
            read: Read { span: connection.call, tid: task.tid, whole: u32::from(whole) },
        };
        // SAFETY: the record's own size.
        unsafe { tell((&raw mut record).cast(), size_of::<ReadRecord>()) };
    }
    true
}

/// `by` wakes `woken`, which serves the invocation `span` and waits for the futex at this address.
#[inline(always)]
pub fn hands_back(sandbox: u64, span: u64, by: Task, woken: Task, futex: u64) {
    let mut record = HandBackRecord {
        header: header(Kind::HandBack, sandbox, by.pid),
        back: HandBack { span, futex, tid: by.tid, wakes: woken.tid },
    };
    // SAFETY: the record's own size.
    unsafe { tell((&raw mut record).cast(), size_of::<HandBackRecord>()) };
}
