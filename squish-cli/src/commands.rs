//! What each command does.

mod eval;
mod generate;
mod inspect;
mod quantize;

pub(crate) use eval::eval;
pub(crate) use generate::generate;
pub(crate) use inspect::inspect;
pub(crate) use quantize::quantize;
