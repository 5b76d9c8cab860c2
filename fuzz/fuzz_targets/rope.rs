//! No bytes make the reader of rotary configurations panic, or let numbers through that no embedding can have.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../squish-attn/tests/it/walk_rope.rs"]
mod walk_rope;

fuzz_target!(|input: &[u8]| {
    walk_rope::walk_rope(input);
});
