//! No sequence of operations makes tables of blocks, or a cache with its storage, paged or a ring, say something else than the obvious models of them.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../squish-kv/tests/it/walk.rs"]
mod walk;
#[path = "../../squish-kv/tests/it/walk_cache.rs"]
mod walk_cache;
#[path = "../../squish-kv/tests/it/walk_ring.rs"]
mod walk_ring;

fuzz_target!(|input: &[u8]| match input {
    // The first byte says what it is for.
    [first, rest @ ..] if first % 3 == 1 => walk_cache::walk_cache(rest),
    [first, rest @ ..] if first % 3 == 2 => walk_ring::walk_ring(rest),
    _ => walk::walk(input),
});
