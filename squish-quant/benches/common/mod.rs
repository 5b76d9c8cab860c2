//! What the benches of the codecs share.

#![allow(dead_code, reason = "one of them has no rows in cache")]

use squish_bench::{Suite, Target};
use squish_quant::ndarray::{ArrayView2, ArrayViewMut2};

/// Sides of the matrices: in cache, and of a weight.
pub(crate) const SMALL: usize = 128;
pub(crate) const LARGE: usize = 4096;

pub(crate) const fn at_least(share: f64) -> Target {
    Target::AtLeastShareOfProbe { probe: "memcpy", share }
}

pub(crate) const fn at_most(times: f64) -> Target {
    Target::AtMostTimesProbe { probe: "memcpy", times }
}

/// A suite in a process whose pool has one thread.
pub(crate) fn suite() -> Suite {
    #[cfg(feature = "rayon")]
    rayon_core::ThreadPoolBuilder::new()
        .num_threads(1)
        .build_global()
        .expect("the first pool of the process");
    Suite::new()
}

pub(crate) fn square(x: &[f32], side: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((side, side), x).expect("a square")
}

pub(crate) fn square_mut(x: &mut [f32], side: usize) -> ArrayViewMut2<'_, f32> {
    ArrayViewMut2::from_shape((side, side), x).expect("a square")
}
