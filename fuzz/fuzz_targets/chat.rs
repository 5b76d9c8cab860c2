//! No bytes as a chat template make the engine panic, work without end, or fail with an error of another kind.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../squish-model/tests/it/walk_chat.rs"]
mod walk_chat;

fuzz_target!(|input: &[u8]| {
    walk_chat::walk_chat(input);
});
