//! The file in which llama.cpp keeps the logits of a base model: [`LogitsReader`], [`LogitsWriter`]; and both at work,
//! [`write_base`] and [`compare_with_base`].
//!
//! Numbers are little-endian (llama.cpp: those of the machine).
//!
//! | field | type |
//! |---|---|
//! | `_logits_` | 8 bytes |
//! | `n_ctx`, `vocab_size`, `n_chunks` | i32 each |
//! | tokens | i32 `[n_chunks, n_ctx]` |
//! | rows `[n_chunks, n_ctx - 1 - n_ctx / 2]`, each: scale, least log-probability, codes, padding | f32, f32, u16 `[vocab_size]`, u16 if `vocab_size` is odd |
//!
//! ```text
//! least = max(min z, max z − 16)        scale = (max z − least) / 65535        code = round((z − least) / scale), 0 at or below least
//! log-probability = scale · code + (least − ln Σ e^z)
//! ```
//!
//! Row `r` of a chunk foresees its token `n_ctx / 2 + 1 + r`. Steps are of 2.4e-4 nat, and what is 16 nats below the largest is lost, so
//! that divergences through the file are good to some 1e-4 and no better. A row takes 2 bytes per token of the vocabulary.
//!
//! (llama.cpp, `tools/perplexity/perplexity.cpp`.)

mod layout;

use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};

use squish_kernels::{log_sum_exp_f64, max, min};

use self::layout::{Layout, Place};
use crate::{
    CausalLm, KlStats, Recipe,
    error::{EvalError, Result},
    perplexity::for_each_row_of,
    recipe::Windows,
};

const MAGIC: [u8; 8] = *b"_logits_";

/// Nats below the largest logit that are kept.
const RANGE: f32 = 16.0;

/// The most that a file may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Elements of a row, of which a reader takes 6 bytes each.
    pub vocab_size: usize,
    /// Tokens of all chunks, of which a reader takes 4 bytes each.
    pub n_tokens: usize,
}

impl Default for Limits {
    /// 4 million elements, 64 million tokens.
    fn default() -> Self {
        Self { vocab_size: 1 << 22, n_tokens: 1 << 26 }
    }
}

/// A row of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct BaseRow<'a> {
    /// Index among the tokens of the file of the one that the row is to foresee.
    pub index: usize,
    /// That token.
    pub token: u32,
    /// Logarithms of probabilities `[vocab_size]`, for [`KlStats::push_log_probs`].
    pub log_probs: &'a [f32],
}

/// Reads a file row by row.
///
/// # Examples
///
/// ```
/// use squish_eval::{LogitsReader, LogitsWriter};
///
/// let mut writer = LogitsWriter::new(Vec::new(), 3, 2, &[0, 1, 1])?;
/// writer.write_row(&[0.0, 1.0])?;
/// let file = writer.finish()?;
///
/// let mut reader = LogitsReader::new(&file[..])?;
/// assert_eq!(reader.tokens(), [0, 1, 1]);
/// let row = reader.next_row()?.expect("the one that was written");
/// assert!(row.token == 1 && (row.log_probs[1] - -0.3133).abs() < 1e-4);
/// # Ok::<(), squish_eval::EvalError>(())
/// ```
#[derive(Debug)]
pub struct LogitsReader<R> {
    source: R,
    layout: Layout,
    tokens: Vec<u32>,
    next: Place,
    bytes: Vec<u8>,
    log_probs: Vec<f32>,
}

/// Writes a file row by row.
///
/// # Examples
///
/// See [`LogitsReader`].
#[derive(Debug)]
pub struct LogitsWriter<W> {
    sink: W,
    layout: Layout,
    next: Place,
    bytes: Vec<u8>,
}

/// Writes the logits of `model` on windows of `n_ctx` of `tokens`, each with `bos` in the place of its first token if there is one, and
/// returns `sink`. Tokens that do not fill a window are left out.
///
/// # Errors
///
/// Those of [`Recipe::windows`], the model and [`LogitsWriter`].
pub fn write_base<M: CausalLm, W: Write>(
    model: &mut M,
    tokens: &[u32],
    n_ctx: usize,
    bos: Option<u32>,
    sink: W,
) -> std::result::Result<W, M::Error> {
    let windows = Recipe::LlamaCpp { n_ctx, bos }.windows(tokens.len())?;
    let tokens = &tokens[..tokens.len() / n_ctx * n_ctx];
    EvalError::check_tokens(tokens, model.vocab_size())?;
    let mut writer = LogitsWriter::new(sink, n_ctx, model.vocab_size(), tokens)?;
    for_each_row_of(model, tokens, windows, |row| writer.write_row(row.logits))?;
    Ok(writer.finish()?)
}

/// Compares `model` with the one whose logits are in the file, on its tokens, each window with `bos` in the place of its first token if
/// there is one.
///
/// # Errors
///
/// [`EvalError::Length`] if the model's vocabulary is of another size; those of the model, of [`LogitsReader`] and of
/// [`KlStats::push_log_probs`].
pub fn compare_with_base<M: CausalLm, R: Read>(
    model: &mut M,
    base: &mut LogitsReader<R>,
    bos: Option<u32>,
) -> std::result::Result<KlStats, M::Error> {
    EvalError::check_length("base", model.vocab_size(), base.vocab_size())?;
    let tokens = base.tokens.clone();
    let mut stats = KlStats::default();
    let windows = Windows::new(Recipe::LlamaCpp { n_ctx: base.n_ctx(), bos }, tokens.len());
    for_each_row_of(model, &tokens, windows, |row| {
        let Some(base) = base.next_row()? else {
            return Err(EvalError::TooFewTokens { expected: row.index + 1, actual: row.index });
        };
        EvalError::check_length("base", row.index, base.index)?;
        stats.push_log_probs(base.log_probs, row.logits, row.token)
    })?;
    Ok(stats)
}

impl<R: Read> LogitsReader<R> {
    /// Reads the header and the tokens, within the default [`Limits`].
    ///
    /// # Errors
    ///
    /// [`EvalError::Magic`], [`EvalError::Header`], [`EvalError::Token`]; [`EvalError::Io`], also of a file that is too short.
    pub fn new(source: R) -> Result<Self> {
        Self::with_limits(source, Limits::default())
    }

    /// [`new`](Self::new) within other limits. Memory grows with what was read, so that a short file cannot ask for much.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn with_limits(mut source: R, limits: Limits) -> Result<Self> {
        let mut magic = MAGIC;
        source.read_exact(&mut magic).map_err(EvalError::io("read the header"))?;
        if magic != MAGIC {
            return Err(EvalError::Magic(magic));
        }
        let mut field = |what, most: usize| {
            let mut bytes = [0; 4];
            source.read_exact(&mut bytes).map_err(EvalError::io("read the header"))?;
            let actual = i64::from(i32::from_le_bytes(bytes));
            let expected = i64::try_from(most).unwrap_or(i64::MAX);
            let holds = actual > 0 && actual <= expected;
            if holds {
                Ok(actual as usize)
            } else {
                Err(EvalError::Header { what, actual, expected })
            }
        };
        let n_ctx = field("n_ctx", limits.n_tokens)?;
        let vocab_size = field("vocab_size", limits.vocab_size)?;
        let n_chunks = field("n_chunks", limits.n_tokens / n_ctx)?;
        let layout = Layout { n_ctx, vocab_size, n_chunks };
        layout.check()?;
        let tokens = read_tokens(&mut source, n_ctx * n_chunks)?;
        EvalError::check_tokens(&tokens, vocab_size)?;
        let (bytes, log_probs) = (Vec::new(), Vec::new());
        Ok(Self { source, layout, tokens, next: Place::default(), bytes, log_probs })
    }

    /// Tokens of a chunk.
    pub fn n_ctx(&self) -> usize {
        self.layout.n_ctx
    }

    /// Elements of a row.
    pub fn vocab_size(&self) -> usize {
        self.layout.vocab_size
    }

    /// The tokens of all chunks.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The next row; `None` after the last one.
    ///
    /// # Errors
    ///
    /// [`EvalError::Io`], also of a file that is too short; [`EvalError::Value`] of a row whose numbers are not finite. The reader is of no
    /// use then.
    pub fn next_row(&mut self) -> Result<Option<BaseRow<'_>>> {
        let Some(index) = self.next.index(self.layout) else { return Ok(None) };
        // Memory grows with what was read here, too.
        let n_bytes = self.layout.row_bytes();
        self.bytes.clear();
        let read = self.source.by_ref().take(n_bytes as u64).read_to_end(&mut self.bytes);
        let read = read.map_err(EvalError::io("read a row"))?;
        if read < n_bytes {
            let (action, kind) = ("read a row", ErrorKind::UnexpectedEof);
            return Err(EvalError::Io { action, kind });
        }
        let (numbers, codes) = self.bytes.split_at(8);
        let [scale, least] = [0, 4]
            .map(|at| numbers[at..].first_chunk().map_or(f32::NAN, |b| f32::from_le_bytes(*b)));
        let holds = scale.is_finite() && scale >= 0.0;
        EvalError::check_value("scale", f64::from(scale), holds, "0 or more, finite")?;
        EvalError::check_value("least", f64::from(least), least.is_finite(), "finite")?;
        let codes = codes.as_chunks().0.iter().take(self.layout.vocab_size);
        self.log_probs.clear();
        self.log_probs.extend(codes.map(|b| scale * f32::from(u16::from_le_bytes(*b)) + least));
        self.next.advance(self.layout);
        Ok(Some(BaseRow { index, token: self.tokens[index], log_probs: &self.log_probs }))
    }
}

impl<R: Read + Seek> LogitsReader<R> {
    /// Goes to the first row of a chunk, counted from 0; to the end, if there is no such chunk.
    ///
    /// # Errors
    ///
    /// [`EvalError::Io`].
    pub fn seek_to_chunk(&mut self, chunk: usize) -> Result<()> {
        let place = Place { chunk: chunk.min(self.layout.n_chunks), row: 0 };
        // Rows and their bytes each fit an i64 by far, but a file's product of both need not.
        let at = |place: Place| {
            i128::from(place.rows_before(self.layout)) * self.layout.row_bytes() as i128
        };
        let too_far = EvalError::Io { action: "seek", kind: ErrorKind::FileTooLarge };
        let by = i64::try_from(at(place) - at(self.next)).map_err(|_| too_far)?;
        self.source.seek(SeekFrom::Current(by)).map_err(EvalError::io("seek"))?;
        self.next = place;
        Ok(())
    }
}

impl<W: Write> LogitsWriter<W> {
    /// Writes the header and the tokens of chunks of `n_ctx`, for rows of `vocab_size`.
    ///
    /// # Errors
    ///
    /// [`EvalError::Length`] of no chunk, or a part of one; [`EvalError::Value`], [`EvalError::Header`] of sizes that no file can have;
    /// [`EvalError::Token`], [`EvalError::Io`].
    pub fn new(mut sink: W, n_ctx: usize, vocab_size: usize, tokens: &[u32]) -> Result<Self> {
        let layout =
            Layout { n_ctx, vocab_size, n_chunks: tokens.len().checked_div(n_ctx).unwrap_or(0) };
        layout.check()?;
        if tokens.is_empty() || !tokens.len().is_multiple_of(n_ctx) {
            let (expected, actual) = (n_ctx, tokens.len());
            return Err(EvalError::Length { what: "tokens", expected, actual });
        }
        EvalError::check_tokens(tokens, vocab_size)?;
        let mut header = MAGIC.to_vec();
        for (what, number) in
            [("n_ctx", n_ctx), ("vocab_size", vocab_size), ("n_chunks", layout.n_chunks)]
        {
            let number = i32::try_from(number).map_err(|_| {
                let actual = i64::try_from(number).unwrap_or(i64::MAX);
                EvalError::Header { what, actual, expected: i64::from(i32::MAX) }
            })?;
            header.extend(number.to_le_bytes());
        }
        let mut write =
            |bytes: &[u8]| sink.write_all(bytes).map_err(EvalError::io("write the header"));
        write(&header)?;
        for tokens in tokens.chunks(PIECE) {
            header.clear();
            header.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
            write(&header)?;
        }
        Ok(Self { sink, layout, next: Place::default(), bytes: header })
    }

    /// Writes the next row of logits `[vocab_size]`. Those of −∞ become the least that is kept.
    ///
    /// # Errors
    ///
    /// [`EvalError::Length`], [`EvalError::Nan`], [`EvalError::Infinite`], [`EvalError::AllMasked`]; [`EvalError::Rows`] after the last row;
    /// [`EvalError::Io`].
    pub fn write_row(&mut self, logits: &[f32]) -> Result<()> {
        let Some(row) = self.next.index(self.layout) else {
            let actual = Some((self.next.chunk, self.next.row));
            return Err(EvalError::Rows { expected: None, actual });
        };
        EvalError::check_length("logits", self.layout.vocab_size, logits.len())?;
        let log_sum = log_sum_exp_f64(logits);
        match log_sum {
            f64::INFINITY => return Err(EvalError::Infinite { row }),
            f64::NEG_INFINITY => return Err(EvalError::AllMasked { row }),
            _ if log_sum.is_nan() => return Err(EvalError::Nan { row }),
            _ => {}
        }
        let most = max(logits);
        let least = min(logits).max(most - RANGE);
        let scale = (most - least) / 65535.0;
        let least_log_prob = (f64::from(least) - log_sum) as f32;
        self.bytes.clear();
        self.bytes.extend([scale, least_log_prob].into_iter().flat_map(f32::to_le_bytes));
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        self.bytes.extend(logits.iter().flat_map(|&z| {
            let code = if z > least { (inverse * (z - least)).round_ties_even() as u16 } else { 0 };
            code.to_le_bytes()
        }));
        self.bytes.resize(self.layout.row_bytes(), 0);
        self.sink.write_all(&self.bytes).map_err(EvalError::io("write a row"))?;
        self.next.advance(self.layout);
        Ok(())
    }

    /// Flushes, and returns where the file was written to.
    ///
    /// # Errors
    ///
    /// [`EvalError::Rows`] if rows are missing; [`EvalError::Io`].
    pub fn finish(mut self) -> Result<W> {
        if self.next.index(self.layout).is_some() {
            let expected = Some((self.next.chunk, self.next.row));
            return Err(EvalError::Rows { expected, actual: None });
        }
        self.sink.flush().map_err(EvalError::io("write a row"))?;
        Ok(self.sink)
    }
}

/// Tokens that are read or written at once.
const PIECE: usize = 1 << 14;

fn read_tokens(source: &mut impl Read, n_tokens: usize) -> Result<Vec<u32>> {
    let (mut tokens, mut piece) = (Vec::new(), vec![0; 4 * PIECE.min(n_tokens)]);
    while tokens.len() < n_tokens {
        let piece = &mut piece[..4 * PIECE.min(n_tokens - tokens.len())];
        source.read_exact(piece).map_err(EvalError::io("read the tokens"))?;
        // A negative one is larger than every vocabulary.
        tokens.extend(piece.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)));
    }
    Ok(tokens)
}
