//! Why a call was refused.

/// Why a quantization call was refused. Nothing is written to the output when one is returned.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A buffer does not have the length that the shape and the format imply.
    #[error("`{what}` has {actual} elements, expected {expected}")]
    Length {
        /// The argument, by name.
        what: &'static str,
        /// The length implied by the other arguments.
        expected: usize,
        /// The length that was given.
        actual: usize,
    },
    /// A matrix does not have the shape that the other arguments imply.
    #[error("`{what}` has shape [{}, {}], expected [{}, {}]", actual[0], actual[1], expected[0], expected[1])]
    Shape {
        /// The argument, by name.
        what: &'static str,
        /// The shape implied by the other arguments.
        expected: [usize; 2],
        /// The shape that was given.
        actual: [usize; 2],
    },
    /// Rows that a matrix does not have.
    #[error("rows {start}..{end} of a matrix with {n_rows} rows")]
    Rows {
        /// First row asked for.
        start: usize,
        /// Row after the last one asked for.
        end: usize,
        /// Rows of the matrix.
        n_rows: usize,
    },
    /// Indices that do not ascend, or exceed what they index.
    #[error(
        "`{what}` holds {value} at {index}, expected more than the one before and less than {n}"
    )]
    Indices {
        /// The argument, by name.
        what: &'static str,
        /// Where.
        index: usize,
        /// The index there.
        value: usize,
        /// Number of elements that are indexed.
        n: usize,
    },
    /// Rows are no whole number of blocks.
    #[error("rows of {len} elements are no multiple of the block of {block}")]
    BlockAlign {
        /// Elements of a row.
        len: usize,
        /// Elements of a block.
        block: usize,
    },
    /// A block of no elements was asked for.
    #[error("`{what}` is zero")]
    ZeroBlock {
        /// The argument, by name.
        what: &'static str,
    },
    /// A format or a layout has no place for something.
    #[error("{format} does not support {what}")]
    Unsupported {
        /// The format, by name.
        format: &'static str,
        /// What was asked of it.
        what: &'static str,
    },
    /// An input is NaN or infinite, and [`NonFinite::Error`](crate::NonFinite::Error) was asked for.
    #[error("element {index} is {value}")]
    NonFinite {
        /// Index in row-major order.
        index: usize,
        /// The element.
        value: f32,
    },
    /// A scale is NaN, infinite or negative; or, of those to encode with, zero or so small that its reciprocal is
    /// infinite.
    #[error("scale {index} is {value}")]
    BadScale {
        /// Index in row-major order.
        index: usize,
        /// The scale.
        value: f32,
    },
    /// A code that the format does not use.
    #[error("`{what}` holds {value} at {index}, which is no code of the format")]
    BadCode {
        /// The argument, by name.
        what: &'static str,
        /// Index in row-major order.
        index: usize,
        /// The code.
        value: i32,
    },
    /// The rows of a matrix do not lie contiguously, which an `_into` call needs.
    #[error("rows of `{what}` have a stride of {stride} between elements, expected 1")]
    Layout {
        /// The argument, by name.
        what: &'static str,
        /// Stride of the last axis, in elements.
        stride: isize,
    },
    /// Bytes that are no packed matrix of this version.
    #[error("`{what}` of a packed matrix is {actual}, expected {expected}")]
    Packed {
        /// The field, by name.
        what: &'static str,
        /// What it must be.
        expected: u64,
        /// What it is.
        actual: u64,
    },
    /// Bytes that must start on a cache line do not.
    #[error("`{what}` start {offset} bytes into a line of {line}")]
    Alignment {
        /// The argument, by name.
        what: &'static str,
        /// Bytes of a line.
        line: usize,
        /// Bytes past the start of one.
        offset: usize,
    },
    /// The allocator has no room for packed weights.
    #[error("no memory for {bytes} bytes of packed weights")]
    Memory {
        /// Their size.
        bytes: usize,
    },
    /// A layer or a channel that is not there.
    #[error("`{what}` {index} of {n}")]
    Index {
        /// The argument, by name.
        what: &'static str,
        /// The one asked for.
        index: usize,
        /// How many there are.
        n: usize,
    },
    /// An option or an argument outside of its range.
    #[error("`{what}` is {value}, expected {expected}")]
    Value {
        /// The argument, by name.
        what: &'static str,
        /// What was given.
        value: f64,
        /// The range.
        expected: &'static str,
    },
    /// A channel, or a layer, of which no finite element was recorded.
    #[error("`{what}` {index} has no finite element")]
    NoData {
        /// `channel` or `layer`.
        what: &'static str,
        /// Its index.
        index: usize,
    },
    /// More rows than counters of 32 bits hold.
    #[error("{n} rows recorded are more than {capacity}")]
    TooManyRows {
        /// The number of rows with those of the call.
        n: u64,
        /// The largest number.
        capacity: u64,
    },
    /// There is no Hadamard matrix of an order.
    #[error("no Hadamard transform of {n} elements, expected blocks of {block} or a divisor of it")]
    Hadamard {
        /// The order.
        n: usize,
        /// The largest order that divides it.
        block: usize,
    },
    /// The number of elements, or a side of a matrix without elements, exceeds [`isize::MAX`].
    #[error("a shape of [{}, {}] is larger than `isize` counts", shape[0], shape[1])]
    TooLarge {
        /// The shape.
        shape: [usize; 2],
    },
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// `Ok` if `actual` is `expected`.
    pub(crate) fn check_length(what: &'static str, expected: usize, actual: usize) -> Result<()> {
        if expected == actual { Ok(()) } else { Err(Self::Length { what, expected, actual }) }
    }

    /// `Ok` if there is an `index` among `n`.
    pub(crate) fn check_index(what: &'static str, index: usize, n: usize) -> Result<()> {
        if index < n { Ok(()) } else { Err(Self::Index { what, index, n }) }
    }
}
