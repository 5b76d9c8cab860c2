//! A stack that no template exhausts.
//!
//! The engine limits how deep a template calls itself, but expressions are compiled, and lists within lists freed, by recursion: `1+1+1…`
//! is as deep as it is long, and a loop may put a list into itself as often as its fuel lasts. So this work is done on a thread of its
//! own. Of its stack it touches what it needs, which is a few pages for any template that is meant to work.

use std::{io, thread};

use crate::Error;

/// Some kilobytes for each level: half of a template's bytes of them, or some for each ten of its fuel.
const LEN: usize = 1 << 29;

/// The result of `work`; an error if it panics, as a fault of the engine may make it, so that no template ends a program.
pub(super) fn run<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    let thread = thread::Builder::new().name("chat template".to_owned()).stack_size(LEN);
    thread::scope(|scope| match thread.spawn_scoped(scope, work) {
        Ok(running) => running.join().unwrap_or_else(|_| {
            Err(Error::Thread { source: io::Error::other("the engine panicked") })
        }),
        Err(source) => Err(Error::Thread { source }),
    })
}
