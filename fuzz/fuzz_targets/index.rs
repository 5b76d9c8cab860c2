//! No bytes make the reader of an index panic, leave the folder, or take tensors for others.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

#[path = "../../squish-checkpoint/tests/it/walk_index.rs"]
mod walk_index;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    walk_index::write_three_shards(folder.path());
    folder
});

fuzz_target!(|input: &[u8]| {
    walk_index::walk_index(FOLDER.path(), input);
});
