//! No bytes in a store make a cache panic, or find a block that was not saved.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../squish-kv/tests/it/walk_stored.rs"]
mod walk_stored;

fuzz_target!(|input: &[u8]| {
    walk_stored::walk_stored(input);
});
