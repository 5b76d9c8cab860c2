//! No bytes make the reader of a model's configuration panic, or let numbers through that no model can have.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../squish-model/tests/it/walk_config.rs"]
mod walk_config;

fuzz_target!(|input: &[u8]| {
    walk_config::walk_config(input);
});
