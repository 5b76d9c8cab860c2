//! Products with packed weights, row-invariant.
//!
//! A weight matrix `[outputs, inputs]` is kept as *panels* of [`PANEL`] outputs, one after another. In a panel the codes
//! of all outputs at one input stand side by side, so that a kernel reads memory from front to end, has outputs as its
//! lanes, and adds the inputs of each output in order:
//!
//! ```text
//! F32    sum = fma(w[k] · s, x[k], sum)                              k in order; w · s is rounded, s left out if there is none
//! BF16   t   = fma(w[k], bf16(x[k]), t)                              of each pair of inputs the second first
//!        sum = fma(t, s, sum)                                        at the end of each group; sum = t without scales
//! Q8     d   = Σ w[k] · q[k]                                         of a block of 32, as integers: exact
//!        sum = fma(d, s · (u · xs), sum)                             w are integers in units of u: 1/2 for E2M1, 1/64 for MXINT8, else 1
//! ```
//!
//! where `s` is the scale of an output's group, and `q` and `xs` are the codes and the scale of a block of inputs: `xs =
//! max |x| / 127`, `q` the nearest integers to `x · (1 / xs)`. `fma` rounds once; the scalar level and SSE4.2 round the
//! product, too. There is one chain for each output, and no sum over lanes, so that **a row of the result has the same
//! bits whatever the number of rows**, of panels and of threads. In the BF16 mode all levels agree where there are no scales,
//! except that the instruction for pairs takes subnormal numbers as zeros.
//!
//! With [`PanelScale::E4M3`] each half of a block has a scale: `d` is a sum of 16 in the Q8 mode, the BF16 mode adds up `w · s`, which is
//! BF16, and at the end `sum` is multiplied by the scale of the output.
//!
//! Rows are padded to blocks of 32 inputs with zeros, which with finite scales changes no sum (but the sign of a zero).
//!
//! [`PanelLayout`] says what is where in a panel, [`pack_panel`] writes one, [`InputPlan`] and [`Inputs`] prepare rows, and
//! [`product_into`] computes.

mod columns;
mod definition;
mod float;
mod inputs;
mod int;
mod layout;
mod pack;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod product;
mod sparse;

pub use columns::{COLUMN_BLOCK, ColumnLayout, LiveColumns, columns_into, pack_columns};
#[doc(hidden)]
pub use definition::Output;
pub use inputs::{InputPlan, Inputs};
pub use layout::{Activation, BLOCK, Code, Line, PANEL, PanelLayout, PanelScale};
pub use pack::{PanelSource, pack_panel};
pub use product::{MOST_ROWS, ProductScratch, product_into};
pub use sparse::{LivePairs, sparse_into};
