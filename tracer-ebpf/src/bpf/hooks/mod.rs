//! The programs, one module per hook.

mod cgroups;
mod connect;
mod exec;
mod existing;
mod go;
mod packets;
mod read;
mod send;
mod state;
mod tasks;
mod verdict;
mod wake;
