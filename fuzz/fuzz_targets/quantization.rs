//! No bytes make the reader of a model's quantization panic, take much memory or loop in a pattern.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../squish-model/tests/it/walk_quantization.rs"]
mod walk_quantization;

fuzz_target!(|input: &[u8]| {
    walk_quantization::walk_quantization(input);
});
