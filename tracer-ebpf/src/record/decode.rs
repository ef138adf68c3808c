//! Records as bytes, and back.

use super::{Answered, End, HandBack, Header, Kind, Listen, Report, Sought, Start};

/// A record as user space reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// What all records have.
    pub header: Header,
    /// What this one says.
    pub body: Body<'a>,
}

/// The part of a [`Record`] that depends on its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// [`Kind::SandboxBorn`], with the path.
    SandboxBorn(&'a [u8]),
    /// [`Kind::SandboxGone`].
    SandboxGone,
    /// [`Kind::InvocationStart`], with the head.
    InvocationStart(Start, &'a [u8]),
    /// [`Kind::InvocationEnd`].
    InvocationEnd(End),
    /// [`Kind::CallStart`], with the head.
    CallStart(Start, &'a [u8]),
    /// [`Kind::CallEnd`].
    CallEnd(End),
    /// [`Kind::OpaqueStart`].
    OpaqueStart(Start),
    /// [`Kind::OpaqueEnd`].
    OpaqueEnd(End),
    /// [`Kind::RuntimeReport`], with the head.
    RuntimeReport(Report, &'a [u8]),
    /// [`Kind::SandboxExec`], with the environment.
    SandboxExec(&'a [u8]),
    /// [`Kind::SandboxListens`].
    SandboxListens(Listen),
    /// [`Kind::UnitSought`], with the stack.
    UnitSought(Sought, &'a [u8]),
    /// [`Kind::Answered`].
    Answered(Answered),
    /// [`Kind::HandBack`].
    HandBack(HandBack),
}

/// Reads one record; `None` if the bytes are not one.
pub fn decode(bytes: &[u8]) -> Option<Record<'_>> {
    let (header, rest) = take::<Header>(bytes)?;
    let body = match Kind::from_u16(header.kind)? {
        Kind::SandboxBorn => Body::SandboxBorn(rest.get(..usize::from(header.tail_len))?),
        Kind::SandboxGone => Body::SandboxGone,
        kind @ (Kind::InvocationStart | Kind::CallStart) => {
            let (start, rest) = take::<Start>(rest)?;
            let head = rest.get(..usize::from(header.tail_len))?;
            if kind == Kind::CallStart { Body::CallStart(start, head) } else { Body::InvocationStart(start, head) }
        }
        Kind::OpaqueStart => Body::OpaqueStart(take::<Start>(rest)?.0),
        Kind::InvocationEnd => Body::InvocationEnd(take::<End>(rest)?.0),
        Kind::CallEnd => Body::CallEnd(take::<End>(rest)?.0),
        Kind::OpaqueEnd => Body::OpaqueEnd(take::<End>(rest)?.0),
        Kind::RuntimeReport => {
            let (report, rest) = take::<Report>(rest)?;
            Body::RuntimeReport(report, rest.get(..usize::from(header.tail_len))?)
        }
        Kind::SandboxExec => Body::SandboxExec(rest.get(..usize::from(header.tail_len))?),
        Kind::SandboxListens => Body::SandboxListens(take::<Listen>(rest)?.0),
        Kind::Answered => Body::Answered(take::<Answered>(rest)?.0),
        Kind::HandBack => Body::HandBack(take::<HandBack>(rest)?.0),
        Kind::UnitSought => {
            let (sought, rest) = take::<Sought>(rest)?;
            Body::UnitSought(sought, rest.get(..usize::from(header.tail_len))?)
        }
    };
    Some(Record { header, body })
}

/// Types for which any bytes of the right length are a value.
///
/// # Safety
///
/// `repr(C)`, no padding, and every field such a type itself.
pub unsafe trait Plain: Copy {}

// SAFETY: integers and arrays of them, padding spelled out; the sizes are asserted beside the types.
unsafe impl Plain for Header {}
// SAFETY: as above.
unsafe impl Plain for Start {}
// SAFETY: as above.
unsafe impl Plain for End {}
// SAFETY: as above.
unsafe impl Plain for Report {}
// SAFETY: as above.
unsafe impl Plain for Listen {}
// SAFETY: as above.
unsafe impl Plain for Answered {}
// SAFETY: as above.
unsafe impl Plain for Sought {}
// SAFETY: as above.
unsafe impl Plain for HandBack {}

fn take<T: Plain>(bytes: &[u8]) -> Option<(T, &[u8])> {
    let (value, rest) = bytes.split_at_checked(size_of::<T>())?;
    // SAFETY: `value` is as long as `T`, any bytes are a `T` (`Plain`), and the read asks for no alignment.
    Some((unsafe { value.as_ptr().cast::<T>().read_unaligned() }, rest))
}

/// The bytes of a record's fixed part, for the side that writes and for recordings.
pub fn as_bytes<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` types have no padding, so all their bytes are initialised; the borrow keeps them alive.
    unsafe { core::slice::from_raw_parts(core::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
}
