//! No bytes make the reader of llama.cpp's files of logits panic, or let rows through that no such file can have.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../squish-eval/tests/it/walk_file.rs"]
mod walk_file;

fuzz_target!(|input: &[u8]| {
    walk_file::walk_file(input);
});
