//! The text of tokens that come one by one: each character as soon as it is certain.
//!
//! The text of a token depends on its neighbors: a character may be spread over several tokens, and the first token of a text
//! loses its leading space with vocabularies of `SentencePiece`. What is emitted adds up to [`Tokenizer::decode`] of all tokens.
//! Special tokens have no text, and are left out before anything else, as there. How, depends on the tokenizer's decoder:
//!
//! - **Byte-level** (GPT-2, Llama 3, Qwen): a token is a string of bytes, so that the text of many is the decoding of all bytes. Bytes
//!   that may be the beginning of a character wait for the next token; bytes that cannot be become a replacement character.
//! - **Others**: a window of the last tokens is decoded, whose front was emitted already and is there for its influence on what follows;
//!   what its text has beyond the text that was emitted is new. The window is cut back to [`CONTEXT`] tokens when it
//!   reaches [`WINDOW`], so that a token costs the decoding of no more than these.
//! - **Byte fallback** (Llama 2, Gemma) is among the others, with single bytes, `<0x0A>`, for what the vocabulary lacks. The tokenizer
//!   decodes a run of them as a whole: if it is not UTF-8, every byte of it is a replacement character. So a run waits until
//!   another token ends it, without being decoded before.
//!
//! A token costs time that does not depend on those before it: bytes and runs are decoded once.

use std::{
    collections::HashMap,
    fmt,
    str::{Utf8Error, from_utf8},
    sync::LazyLock,
};

use tokenizers::DecoderWrapper;

use crate::{Error, Tokenizer};

/// The text of tokens that come one by one.
///
/// # Examples
///
/// ```
/// use squish_model::Tokenizer;
///
/// let tokenizer = Tokenizer::from_json(br#"{
///     "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null, "post_processor": null,
///     "added_tokens": [], "decoder": {"type": "ByteFallback"},
///     "model": {"type": "WordLevel", "vocab": {"snow ": 0, "<0xE2>": 1, "<0x98>": 2, "<0x83>": 3, "!": 4}, "unk_token": "!"}
/// }"#)?;
/// let mut stream = tokenizer.stream();
/// assert_eq!(stream.push(0)?, "snow ");
/// for byte in [1, 2, 3] {
///     assert_eq!(stream.push(byte)?, ""); // inside of a character
/// }
/// assert_eq!(stream.push(4)?, "\u{2603}!");
/// assert_eq!(stream.finish()?, "");
/// # Ok::<(), squish_model::Error>(())
/// ```
pub struct TextStream {
    tokenizer: Tokenizer,
    decoding: Decoding,
    out: String,
}

/// What is kept of the tokens so far.
enum Decoding {
    /// Bytes that may be the beginning of a character.
    Bytes(Vec<u8>),
    Window {
        tokens: Vec<u32>,
        /// Bytes of the window's text that were emitted.
        n_emitted: usize,
        waits: Waits,
    },
}

/// What of a window's text is not certain yet.
#[derive(Clone, Copy, PartialEq)]
enum Waits {
    Never,
    /// A run of bytes waits for its end.
    ForRuns,
    /// A replacement character at the end may be a character that is not complete.
    ForCharacters,
}

/// Tokens that stay in a window for their influence on those that follow.
const CONTEXT: usize = 8;

/// Tokens at which a window is cut back.
const WINDOW: usize = 24;

impl fmt::Debug for TextStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextStream").field("tokenizer", &self.tokenizer).finish_non_exhaustive()
    }
}

impl TextStream {
    /// A text without tokens.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let window = |waits| Decoding::Window { tokens: Vec::new(), n_emitted: 0, waits };
        let decoding = match tokenizer.decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => Decoding::Bytes(Vec::new()),
            Some(DecoderWrapper::Sequence(sequence)) => {
                let all = sequence.get_decoders();
                let any = |is: fn(&DecoderWrapper) -> bool| all.iter().any(is);
                if matches!(all, [DecoderWrapper::ByteLevel(_)]) {
                    Decoding::Bytes(Vec::new())
                } else if any(|decoder| matches!(decoder, DecoderWrapper::ByteFallback(_))) {
                    window(Waits::ForRuns)
                } else if any(|decoder| matches!(decoder, DecoderWrapper::ByteLevel(_))) {
                    window(Waits::ForCharacters)
                } else {
                    window(Waits::Never)
                }
            }
            Some(DecoderWrapper::ByteFallback(_)) => window(Waits::ForRuns),
            _ => window(Waits::Never),
        };
        Self { tokenizer: tokenizer.clone(), decoding, out: String::new() }
    }

    /// The text that follows `prompt`: its first token is not the first of a text and keeps its leading space.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`].
    pub fn after(tokenizer: &Tokenizer, prompt: &[u32]) -> Result<Self, Error> {
        let mut stream = Self::new(tokenizer);
        let mut last: Vec<u32> = prompt.iter().rev().copied().take(2 * WINDOW).collect();
        while let Some(token) = last.pop() {
            stream.push(token)?;
        }
        Ok(stream)
    }

    /// The text that is certain now that `token` follows, and was not emitted yet. A token that the vocabulary lacks has no text.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`].
    pub fn push(&mut self, token: u32) -> Result<&str, Error> {
        self.out.clear();
        let Some(piece) = self.tokenizer.token_of(token) else { return Ok("") };
        if self.tokenizer.is_special_piece(&piece) {
            return Ok("");
        }
        match &mut self.decoding {
            Decoding::Bytes(pending) => {
                append_bytes(&piece, pending);
                emit_complete(pending, &mut self.out);
            }
            Decoding::Window { tokens, n_emitted, waits } => {
                tokens.push(token);
                if *waits == Waits::ForRuns && is_byte(&piece) {
                    return Ok("");
                }
                let text = self.tokenizer.decode(tokens)?;
                let certain = match waits {
                    Waits::ForCharacters => text.strip_suffix('\u{fffd}').unwrap_or(&text),
                    _ => &text,
                };
                // Nothing is new where a decoder takes back what it said, which none of these does.
                self.out.push_str(certain.get(*n_emitted..).unwrap_or_default());
                *n_emitted = certain.len().max(*n_emitted);
                if tokens.len() >= WINDOW && certain.len() == text.len() {
                    tokens.drain(..tokens.len() - CONTEXT);
                    *n_emitted = self.tokenizer.decode(tokens)?.len();
                }
            }
        }
        Ok(&self.out)
    }

    /// The rest of the text, when no token follows: what waited, with a replacement character for one that is not complete.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`].
    pub fn finish(self) -> Result<String, Error> {
        match self.decoding {
            Decoding::Bytes(pending) => Ok(String::from_utf8_lossy(&pending).into_owned()),
            Decoding::Window { tokens, n_emitted, .. } => {
                let text = self.tokenizer.decode(&tokens)?;
                Ok(text.get(n_emitted..).unwrap_or_default().to_owned())
            }
        }
    }
}

/// Moves what is certain of `pending` to `out`: all but a beginning of a character at the end.
fn emit_complete(pending: &mut Vec<u8>, out: &mut String) {
    let mut start = 0;
    loop {
        let rest = &pending[start..];
        let error: Option<Utf8Error> = from_utf8(rest).err();
        let n_valid = error.map_or(rest.len(), |error| error.valid_up_to());
        out.push_str(from_utf8(&rest[..n_valid]).expect("valid up to there"));
        start += n_valid;
        match error.map(|error| error.error_len()) {
            Some(Some(n_bad)) => {
                out.push('\u{fffd}');
                start += n_bad;
            }
            Some(None) | None => break,
        }
    }
    pending.drain(..start);
}

/// Appends the bytes that a byte-level token is written for; a token with a character for no byte, an added one, is its own text.
fn append_bytes(piece: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for c in piece.chars() {
        if let Some(&byte) = BYTES.get(&c) {
            bytes.push(byte);
        } else {
            bytes.truncate(start);
            bytes.extend_from_slice(piece.as_bytes());
            return;
        }
    }
}

/// The characters that GPT-2's vocabulary writes bytes with: printable ones of Latin-1 for themselves, and those from U+0100 on, in
/// order, for the others.
static BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let mut others = '\u{100}'..;
    let characters = (0..=u8::MAX).map(|byte| {
        let is_printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let c = if is_printable { char::from(byte) } else { others.next().expect("68 of them") };
        (c, byte)
    });
    characters.collect()
});

/// Whether the token is written as a byte: `<0x0A>`.
fn is_byte(piece: &str) -> bool {
    let digits = piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}
