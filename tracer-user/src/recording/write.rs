//! Writes what an assembler is given, on its way there.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    ops::Deref,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use tracer_ebpf::record::Record;

use super::{Preamble, Sandbox, kind};
use crate::assemble::{Assembler, Config, SandboxInfo};

/// An assembler, and the file that what it is given is written to, if there is one. Reading is the assembler's own.
#[derive(Debug)]
pub struct Recorder<W = BufWriter<File>> {
    assembler: Assembler,
    file: Option<W>,
    /// The first that went wrong with the file. Nothing is written after it.
    failed: Option<io::Error>,
}

impl Recorder {
    /// An assembler that knows nothing yet. The file is made for its owner alone to read, for what is in it may be secret;
    /// what it held before is gone.
    ///
    /// # Errors
    ///
    /// If the file cannot be made or written.
    pub fn new(config: Config, file: Option<&Path>) -> io::Result<Self> {
        let file = file.map(|path| {
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
            Ok::<_, io::Error>(BufWriter::with_capacity(1 << 20, file))
        });
        Self::to(config, file.transpose()?)
    }
}

impl<W: Write> Recorder<W> {
    pub(super) fn to(config: Config, mut file: Option<W>) -> io::Result<Self> {
        if let Some(file) = &mut file {
            serde_json::to_writer(&mut *file, &Preamble::new(config))?;
            file.write_all(b"\n")?;
        }
        Ok(Self { assembler: Assembler::new(config), file, failed: None })
    }

    fn write(&mut self, kind: u8, parts: [&[u8]; 2]) {
        let Some(file) = &mut self.file else { return };
        let length = parts.iter().map(|part| part.len()).sum::<usize>() as u32;
        let mut written = file.write_all(&[kind]).and_then(|()| file.write_all(&length.to_ne_bytes()));
        for part in parts {
            written = written.and_then(|()| file.write_all(part));
        }
        if let Err(error) = written {
            self.failed = Some(error);
            self.file = None;
        }
    }

    /// Gives it a record; `bytes` are those that it was decoded from, and `None` what they could not be decoded to.
    pub fn record(&mut self, bytes: &[u8], record: Option<&Record<'_>>) {
        self.write(kind::RECORD, [bytes, &[]]);
        match record {
            Some(record) => self.assembler.record(record),
            // Counts it.
            None => drop(self.assembler.read(bytes)),
        }
    }

    /// See [`Assembler::sandbox`].
    pub fn sandbox(&mut self, cgroup_id: u64, info: SandboxInfo) {
        if self.file.is_some() {
            match serde_json::to_vec(&Sandbox::from(&info)) {
                Ok(json) => self.write(kind::SANDBOX, [&cgroup_id.to_ne_bytes(), &json]),
                Err(error) => self.failed = Some(error.into()),
            }
        }
        self.assembler.sandbox(cgroup_id, info);
    }

    /// See [`Assembler::clock`].
    pub fn clock(&mut self, boot_to_wall_ns: i64) {
        self.write(kind::CLOCK, [&boot_to_wall_ns.to_ne_bytes(), &[]]);
        self.assembler.clock(boot_to_wall_ns);
    }

    /// See [`Assembler::lost`].
    pub fn lost(&mut self, so_far: u64) {
        if so_far != self.assembler.totals().lost {
            self.write(kind::LOST, [&so_far.to_ne_bytes(), &[]]);
        }
        self.assembler.lost(so_far);
    }

    /// See [`Assembler::advance`].
    pub fn advance(&mut self, now_ns: u64) {
        self.write(kind::ADVANCE, [&now_ns.to_ne_bytes(), &[]]);
        self.assembler.advance(now_ns);
    }

    /// See [`Assembler::finish`].
    pub fn finish(&mut self) {
        self.write(kind::FINISH, [&[], &[]]);
        self.assembler.finish();
    }

    /// See [`Assembler::take`].
    pub fn take(&mut self) -> Option<crate::path::Line> {
        self.assembler.take()
    }

    /// See [`Assembler::unit_places`].
    pub fn unit_places(&mut self) -> Vec<(u32, [u64; 3])> {
        self.assembler.unit_places()
    }

    /// Puts what was written so far into the file.
    ///
    /// # Errors
    ///
    /// The first thing that went wrong with the file since the last time this was asked.
    pub fn flush(&mut self) -> io::Result<()> {
        match (self.failed.take(), &mut self.file) {
            (Some(error), _) => Err(error),
            (None, Some(file)) => file.flush(),
            (None, None) => Ok(()),
        }
    }

    #[cfg(test)]
    pub(super) fn into_file(self) -> Option<W> {
        self.file
    }
}

impl<W> Deref for Recorder<W> {
    type Target = Assembler;

    fn deref(&self) -> &Assembler {
        &self.assembler
    }
}
