//! What can be wrong with a checkpoint, its configuration, or a call.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use squish_checkpoint::Dtype;

/// Why a model was not loaded, or a call was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // The configuration.
    /// `config.json` is no JSON, lacks a field, or has one of the wrong type.
    #[error("no configuration: {reason}")]
    ConfigJson {
        /// The parser's reason, with line and column.
        reason: String,
    },
    /// The configuration asks for something that this crate does not compute.
    #[error("`{field}` is {actual}, supported: {supported}")]
    Unsupported {
        /// The field of `config.json`.
        field: &'static str,
        /// Its value, as JSON.
        actual: String,
        /// The values that would do.
        supported: &'static str,
    },
    /// A number is outside its range.
    #[error("`{field}` is {actual}, expected {expected}")]
    ConfigValue {
        /// The field of `config.json`.
        field: &'static str,
        /// Its value.
        actual: f64,
        /// The range.
        expected: &'static str,
    },
    /// A number is no multiple of another.
    #[error("`{field}` is {actual}, no multiple of `{divisor_field}`, which is {divisor}")]
    NotDivisible {
        /// The field of `config.json`.
        field: &'static str,
        /// Its value.
        actual: usize,
        /// The field that should divide it.
        divisor_field: &'static str,
        /// The value of that one.
        divisor: usize,
    },
    /// The product of two numbers does not fit into a machine word.
    #[error("`{first_field}` {first} times `{second_field}` {second} overflows")]
    Overflow {
        /// A field of `config.json`.
        first_field: &'static str,
        /// Its value.
        first: usize,
        /// Another field.
        second_field: &'static str,
        /// Its value.
        second: usize,
    },

    // The weights.
    /// The checkpoint cannot be read, or a tensor is missing or has another shape than the configuration says.
    #[error(transparent)]
    Checkpoint(#[from] squish_checkpoint::Error),
    /// A tensor's elements are none of the floats that are widened to `f32`.
    #[error("`{tensor}` is {actual}, expected F32, F16 or BF16")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// Its type.
        actual: Dtype,
    },
    /// A tensor was given with the wrong number of elements.
    #[error("`{tensor}` has {actual} elements, shape {shape:?} needs {expected}")]
    Length {
        /// The tensor.
        tensor: String,
        /// The shape that the configuration implies.
        shape: Vec<usize>,
        /// The number of elements of that shape.
        expected: usize,
        /// The number of elements that were given.
        actual: usize,
    },

    /// A format cannot hold a tensor.
    #[error("`{tensor}`: {error}")]
    Pack {
        /// The tensor.
        tensor: String,
        /// What the format says.
        error: squish_quant::Error,
    },

    /// Weights that are saved as panels can be used as they are and in no other way.
    #[error("`{tensor}` holds panels for {actual}, asked for {asked}")]
    Panels {
        /// The tensor.
        tensor: String,
        /// What they are for.
        actual: String,
        /// What they were to be for.
        asked: String,
    },
    /// A pattern among the names of modules cannot be used.
    #[error("`{pattern}` is no pattern of module names that can be matched: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A calibration is of another model.
    #[error("the calibration has {actual} inputs of `{module}`, the model {expected}")]
    Calibration {
        /// The layer.
        module: String,
        /// Inputs that the model's matrix has.
        expected: usize,
        /// Inputs that were recorded; 0 if there is no such layer.
        actual: usize,
    },

    // A call.
    /// A name that stands for nothing.
    #[error("no {what} is called `{actual}`, expected {expected}")]
    Name {
        /// What was to be named.
        what: &'static str,
        /// The name.
        actual: String,
        /// Those that there are.
        expected: &'static str,
    },
    /// A number that has to be at least 1.
    #[error("`{what}` is 0, expected at least 1")]
    Zero {
        /// The number, by name.
        what: &'static str,
    },
    /// A sequence that cannot be used so.
    #[error("the sequence is {what}")]
    Sequence {
        /// What is wrong with it.
        what: &'static str,
    },
    /// Rings hold one sequence each, and share nothing.
    #[error("sequences whose windows are rings cannot be forked")]
    NoFork,
    /// Rings take a limited number of sequences in a step.
    #[error("{n_parts} parts in a step of rings, expected at most {max}")]
    RingParts {
        /// Parts of the call.
        n_parts: usize,
        /// The most.
        max: usize,
    },
    /// A tree has another number of parents than tokens.
    #[error("{actual} parents for {expected} tokens")]
    Parents {
        /// The number of tokens.
        expected: usize,
        /// The number of parents.
        actual: usize,
    },
    /// A node of a tree stands before its parent.
    #[error("node {node} of the tree has parent {parent}, expected a node before it")]
    Parent {
        /// The node.
        node: usize,
        /// What it has as a parent.
        parent: u32,
    },
    /// The caches refuse: most often there is no room.
    #[error(transparent)]
    Kv(#[from] squish_kv::Error),
    /// Rotary embeddings or attention refuse.
    #[error(transparent)]
    Attention(#[from] squish_attn::AttnError),
    /// A product refuses.
    #[error(transparent)]
    Product(#[from] squish_quant::Error),
    /// An evaluation refuses.
    #[cfg(feature = "eval")]
    #[error(transparent)]
    Eval(#[from] squish_eval::EvalError),
    /// Threads cannot be started.
    #[error("cannot start threads: {source}")]
    Threads {
        /// The system's reason.
        source: io::Error,
    },
    /// There is nothing to compute.
    #[error("{actual} tokens, expected at least {expected}")]
    TooFewTokens {
        /// The fewest that make sense.
        expected: usize,
        /// The number given.
        actual: usize,
    },
    /// A token that is not in the vocabulary.
    #[error("token {token} at index {index} is outside the vocabulary of {vocab_size}")]
    Token {
        /// The token.
        token: u32,
        /// Where it stands in the call's tokens.
        index: usize,
        /// The number of tokens that there are.
        vocab_size: usize,
    },
    /// More positions than the model has.
    #[error("{actual} tokens exceed the model's context of {max}")]
    Context {
        /// Positions taken already and those of the call.
        actual: usize,
        /// `max_position_embeddings`.
        max: usize,
    },
    /// A runner's configuration is not that of its model, and not only in windows, rotary embeddings and the longest context.
    #[error(
        "a runner can override windows, rotary embeddings and the longest context of its model, and nothing else"
    )]
    Override,
    /// The new tokens of a pass belong to their sequences already.
    #[error("the output was committed before")]
    Committed,
    /// Logits from which no probability follows: a NaN, a positive infinity, or nothing but negative infinities.
    #[error("logits have no normalization: their log-sum-exp is {log_sum_exp}")]
    Logits {
        /// NaN or infinite.
        log_sum_exp: f32,
    },

    // Sampling and text.
    /// An option of sampling is outside its range.
    #[error("`{field}` is {actual}, expected {expected}")]
    Sampling {
        /// The option.
        field: &'static str,
        /// Its value.
        actual: f64,
        /// The range.
        expected: &'static str,
    },
    /// A row of logits is not that of the vocabulary.
    #[error("{actual} logits, expected {expected}, one for each token")]
    LogitCount {
        /// The size of the vocabulary.
        expected: usize,
        /// The number given.
        actual: usize,
    },
    /// A logit that no probability follows from.
    #[error("the logit of token {token} is {logit}, expected a finite number or negative infinity")]
    Logit {
        /// The token.
        token: u32,
        /// NaN or positive infinity.
        logit: f32,
    },
    /// All logits are negative infinity.
    #[error("none of {vocab_size} tokens can be drawn: all logits are negative infinity")]
    NoToken {
        /// The number of tokens that there are.
        vocab_size: usize,
    },
    /// A stop string that is empty, or stop strings that are too long together.
    #[error("stop string {index} has {actual} bytes, expected {expected}")]
    StopString {
        /// Where it stands in the list.
        index: usize,
        /// Its length.
        actual: usize,
        /// The lengths that would do.
        expected: &'static str,
    },

    // Chats.
    /// There is no chat template, or none of the name that was asked for.
    #[error("no chat template{}, there are {available:?}", name.as_ref().map_or(String::new(), |name| format!(" `{name}`")))]
    NoChatTemplate {
        /// The name that was asked for.
        name: Option<String>,
        /// The names that there are.
        available: Vec<String>,
    },
    /// A chat template is none, fails, or does more than it may.
    #[error("chat template `{template}`: {reason}")]
    Chat {
        /// The name of the template.
        template: String,
        /// The engine's reason, with the line.
        reason: String,
    },
    /// A chat template refuses the messages.
    #[error("the chat template refuses: {message}")]
    ChatRefused {
        /// What it says.
        message: String,
    },
    /// Messages, tools or a variable are not what templates compute with.
    #[error("for a chat template: {reason}")]
    ChatValue {
        /// What is wrong.
        reason: String,
    },

    /// The operating system has no thread for a chat template to run on, or the engine panicked there.
    #[error("the thread of a chat template: {source}")]
    Thread {
        /// The system's reason.
        source: io::Error,
    },

    // Files.
    /// The operating system refused.
    #[error("cannot read `{path}`: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file `path` is at fault, for the reason in `error`.
    #[error("`{path}`: {error}", path = path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<Error>,
    },
    /// A tokenizer's JSON is none, or a text cannot be encoded or decoded.
    #[error("tokenizer: {reason}")]
    Tokenizer {
        /// The tokenizer library's reason.
        reason: String,
    },
}

impl Error {
    /// Says which tensor a format cannot hold.
    pub(crate) fn pack(tensor: &str) -> impl FnOnce(squish_quant::Error) -> Self {
        move |error| Self::Pack { tensor: tensor.to_owned(), error }
    }

    /// Says which file is at fault.
    pub(crate) fn in_file(path: &Path) -> impl FnOnce(Self) -> Self {
        move |error| Self::InFile { path: path.to_owned(), error: Box::new(error) }
    }
}

/// The bytes of a file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// Text of a foreign file, cut to what a message can show.
pub(crate) fn clip(text: &str) -> String {
    const MAX: usize = 256;
    match text.char_indices().nth(MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
