//! No sequence of operations makes tables of blocks, or a cache with its storage, say something else than the obvious models of them.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../squish-kv/tests/it/walk.rs"]
mod walk;
#[path = "../../squish-kv/tests/it/walk_cache.rs"]
mod walk_cache;

fuzz_target!(|input: &[u8]| match input {
    // An odd first byte is for the cache.
    [first, rest @ ..] if first % 2 == 1 => walk_cache::walk_cache(rest),
    _ => walk::walk(input),
});
