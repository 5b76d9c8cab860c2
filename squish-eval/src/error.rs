//! Why a call was refused.

use std::io;

/// Why a call was refused. What was to be changed is as it was before.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A logit is NaN.
    #[error("row {row} has a NaN")]
    Nan {
        /// The row of logits, or the index of the token that it is to foresee.
        row: usize,
    },
    /// A logit is +∞.
    #[error("row {row} has an infinite logit")]
    Infinite {
        /// The row of logits, or the index of the token that it is to foresee.
        row: usize,
    },
    /// All logits are −∞, or there are none.
    #[error("row {row} has no logit above −∞")]
    AllMasked {
        /// The row of logits, or the index of the token that it is to foresee.
        row: usize,
    },
    /// There is no logit for the token that is to be foreseen.
    #[error("the target of row {row} is token {target}, of {vocab_size}")]
    Target {
        /// The row of logits.
        row: usize,
        /// The token.
        target: u32,
        /// The number of logits.
        vocab_size: usize,
    },
    /// A text holds a token that the model does not have.
    #[error("token {index} is {token}, of {vocab_size}")]
    Token {
        /// Its index in the text.
        index: usize,
        /// The token.
        token: u32,
        /// The number of tokens that there are.
        vocab_size: usize,
    },
    /// A buffer does not have the length that the other arguments imply.
    #[error("`{what}` has {actual} elements, expected {expected}")]
    Length {
        /// The argument, by name.
        what: &'static str,
        /// The length implied by the other arguments, or a divisor of it.
        expected: usize,
        /// The length that was given.
        actual: usize,
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
    /// The text is too short for the recipe.
    #[error("{actual} tokens, the recipe needs {expected}")]
    TooFewTokens {
        /// The least number.
        expected: usize,
        /// The number that was given.
        actual: usize,
    },
    /// The recipe feeds the model more tokens at once than it takes.
    #[error("a window feeds {n_tokens} tokens, the model takes {max_seq_len}")]
    Context {
        /// The tokens of the longest window.
        n_tokens: usize,
        /// The most that the model takes.
        max_seq_len: usize,
    },
    /// A model gave rows of logits that were not asked for, not in their order, or not all of them.
    #[error("the model gave row {actual:?}, expected {expected:?}")]
    Rows {
        /// Window of the batch and row of the window; `None` at the end of the batch.
        expected: Option<(usize, usize)>,
        /// What the model gave; `None` if it ended.
        actual: Option<(usize, usize)>,
    },
    /// A file of logits does not begin as one.
    #[error("no file of logits: it begins with {0:02x?}")]
    Magic([u8; 8]),
    /// A header field of a file of logits that cannot be, or is larger than allowed.
    #[error("`{what}` of the file is {actual}, expected {expected} at most")]
    Header {
        /// The field.
        what: &'static str,
        /// Its value.
        actual: i64,
        /// The most that it may be; not 0 or below either.
        expected: i64,
    },
    /// Reading or writing failed.
    #[error("cannot {action}: {kind}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        kind: io::ErrorKind,
    },
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, EvalError>;

impl EvalError {
    /// `Ok` if `actual` is `expected`.
    pub(crate) fn check_length(what: &'static str, expected: usize, actual: usize) -> Result<()> {
        if expected == actual { Ok(()) } else { Err(Self::Length { what, expected, actual }) }
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

    /// `Ok` if every token is below `vocab_size`.
    pub(crate) fn check_tokens(tokens: &[u32], vocab_size: usize) -> Result<()> {
        match tokens.iter().position(|&token| token as usize >= vocab_size) {
            Some(index) => Err(Self::Token { index, token: tokens[index], vocab_size }),
            None => Ok(()),
        }
    }

    pub(crate) fn io(action: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self::Io { action, kind: error.kind() }
    }
}
