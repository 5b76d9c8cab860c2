//! No bytes make a reader of quantized tensors panic, whatever layout they are taken for.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../squish-quant/tests/it/bytes.rs"]
mod bytes;

fuzz_target!(|input: &[u8]| {
    bytes::walk(input);
});
