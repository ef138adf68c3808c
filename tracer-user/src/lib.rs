//! The user half of fntrace.
//!
//! Data flows one way: the kernel half's records come out of the ring buffer, [`assemble`] joins them to call paths, a
//! [`sink`] prints these. Finding sandboxes ([`cgroup`]), naming functions ([`name`]), probing the host ([`host`],
//! [`doctor`]) and attaching ([`agent`]) stand beside the flow; [`infer`] ranks the invocations that may have made a call
//! where no exact rule says which; [`go`] finds the programs that are probed.

pub mod agent;
pub mod assemble;
mod bpf;
pub mod cgroup;
pub mod cli;
pub mod demo;
mod discover;
pub mod doctor;
pub mod forecast;
mod go;
pub mod governor;
pub mod head;
pub mod host;
pub mod infer;
pub mod input;
pub mod name;
pub mod path;
pub mod polled;
pub mod profile;
pub mod recording;
mod replay;
pub mod run;
mod signals;
pub mod sink;
mod text;
