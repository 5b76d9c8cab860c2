//! Why a call was refused.

/// Why a call was refused. Nothing is written to the output when one is returned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AttnError {
    /// A buffer does not have the length that the other arguments imply.
    #[error("`{what}` has {actual} elements, expected {expected}")]
    Length {
        /// The argument, by name.
        what: &'static str,
        /// The length implied by the other arguments.
        expected: usize,
        /// The length that was given.
        actual: usize,
    },
    /// An axis of an array does not have the length that the other arguments imply.
    #[error("`{what}` has {axis} {actual}, expected {expected}")]
    Axis {
        /// The argument, by name.
        what: &'static str,
        /// The axis, by name.
        axis: &'static str,
        /// The length implied by the other arguments.
        expected: usize,
        /// The length that was given.
        actual: usize,
    },
    /// The elements of a row do not lie contiguously.
    #[error(
        "elements of the rows of `{what}` are not contiguous: shape {shape:?}, strides {strides:?}"
    )]
    Layout {
        /// The argument, by name.
        what: &'static str,
        /// Its shape; 1 for a first axis that it does not have.
        shape: [usize; 3],
        /// Its strides, in elements.
        strides: [isize; 3],
    },
    /// A position beyond those that were made ready.
    #[error("`{what}` holds position {position} at {index}, of {len}")]
    Position {
        /// The argument, by name.
        what: &'static str,
        /// Where.
        index: usize,
        /// The position there.
        position: usize,
        /// The number of positions that there are.
        len: usize,
    },
    /// A number is outside its range.
    #[error("`{what}` is {actual}, expected {expected}")]
    Value {
        /// The number, by name.
        what: &'static str,
        /// Its value.
        actual: f64,
        /// The range.
        expected: &'static str,
    },
    /// Heads of queries are no multiple of those of keys and values; of each there must be one.
    #[error("{n_heads} heads of queries for {kv_heads} of keys and values")]
    Heads {
        /// Heads of queries.
        n_heads: usize,
        /// Heads of keys and values.
        kv_heads: usize,
    },
    /// More query rows than tokens, where the rows are the last tokens.
    #[error("{n_rows} query rows are the last ones of {n_tokens} tokens")]
    Rows {
        /// Query rows.
        n_rows: usize,
        /// Tokens.
        n_tokens: usize,
    },
    /// A mask of other rows or tokens.
    #[error("the mask is {actual:?}, rows and tokens are {expected:?}")]
    Mask {
        /// Rows and tokens.
        expected: [usize; 2],
        /// Those of the mask.
        actual: [usize; 2],
    },
    /// A node of a tree whose parent does not come before it.
    #[error("the parent of node {node} is {parent}")]
    Parent {
        /// The node.
        node: usize,
        /// Its parent.
        parent: usize,
    },
    /// A number that is NaN or infinite, or so large that its square is.
    #[error("`{what}` is not finite at {index}, or its square is not")]
    NotFinite {
        /// The argument, by name.
        what: &'static str,
        /// The number, or the row that holds it.
        index: usize,
    },
    /// There is no memory for a table.
    #[error("no memory for {bytes} bytes of `{what}`")]
    Memory {
        /// The table, by name.
        what: &'static str,
        /// Its size; [`usize::MAX`] if it is larger.
        bytes: usize,
    },
    /// Bytes that are no JSON, or a field of it that is missing or of the wrong type.
    #[error("no configuration: {reason}")]
    Json {
        /// What is wrong.
        reason: String,
    },
    /// The configuration asks for something that this crate does not compute.
    #[error("`{field}` is {actual}, supported: {supported}")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// Its value, as JSON.
        actual: String,
        /// What would do.
        supported: &'static str,
    },
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, AttnError>;

impl AttnError {
    /// `Ok` if `actual` is `expected`.
    pub(crate) fn check_length(what: &'static str, expected: usize, actual: usize) -> Result<()> {
        if expected == actual { Ok(()) } else { Err(Self::Length { what, expected, actual }) }
    }

    /// `Ok` if `actual` is `expected`.
    pub(crate) fn check_axis(
        what: &'static str,
        axis: &'static str,
        expected: usize,
        actual: usize,
    ) -> Result<()> {
        if expected == actual { Ok(()) } else { Err(Self::Axis { what, axis, expected, actual }) }
    }

    /// `Ok` if `actual` is in its range.
    pub(crate) fn check_value(
        what: &'static str,
        actual: f64,
        holds: bool,
        expected: &'static str,
    ) -> Result<()> {
        if holds { Ok(()) } else { Err(Self::Value { what, actual, expected }) }
    }
}
