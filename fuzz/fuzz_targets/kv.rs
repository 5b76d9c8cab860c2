//! No sequence of operations makes tables of blocks say something else than the obvious model of them.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../squish-kv/tests/it/walk.rs"]
mod walk;

fuzz_target!(|input: &[u8]| {
    walk::walk(input);
});
