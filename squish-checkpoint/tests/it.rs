//! Public behavior of the crate, module per module.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; the lint spares functions marked as tests, not what they call"
)]

#[path = "it/bad_files.rs"]
mod bad_files;
#[path = "it/bad_folders.rs"]
mod bad_folders;
#[path = "it/files.rs"]
mod files;
#[path = "it/official.rs"]
mod official;
#[path = "it/reading.rs"]
mod reading;
#[path = "it/walk.rs"]
mod walk;
#[path = "it/walk_index.rs"]
mod walk_index;
#[path = "it/writing.rs"]
mod writing;
