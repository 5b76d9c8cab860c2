//! No bytes make the safetensors parser panic, or disagree with the official one.
//!
//! An input is taken as a whole file, and as a header for which the length is put in front and a few bytes of data
//! behind: the fuzzer is slow to find eight bytes that announce their own rest.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../squish-checkpoint/tests/it/walk.rs"]
mod walk;

fuzz_target!(|input: &[u8]| {
    walk::walk(input);
    let n_data = input.first().map_or(0, |&byte| usize::from(byte) % 32);
    let json = input.get(1..).unwrap_or_default();
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json);
    file.resize(file.len() + n_data, 7);
    walk::walk(&file);
});
