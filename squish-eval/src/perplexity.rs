//! Perplexity of a text by a recipe: [`perplexity`]; and every row of logits that it is made of: [`for_each_row`].
//!
//! ```text
//! perplexity = e^(Σ weight_w · mean_w / Σ weight_w)        over windows; e^(Σ nll / n) wherever weights are numbers of tokens
//! ```
//!
//! The standard error over windows takes each as one observation: `√(W / (W − 1) · Σ weight² · (mean_w − mean)²) / Σ weight`. It holds what
//! tokens of a window have in common, which that over tokens does not.

use std::fmt;

use crate::{
    CausalLm, Lead, Nll, Prompt, Recipe,
    error::{EvalError, Result},
    logits::nll_of_row,
    recipe::Window,
};

/// How well a model foresees a text, by one recipe. Those of different recipes do not compare.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Perplexity {
    /// How the text was cut.
    pub recipe: Recipe,
    /// All tokens that were scored; of [`Recipe::HfDoc`], its own perplexity is not the recipe's.
    pub nll: Nll,
    /// Windows that the model was fed.
    pub n_windows: usize,
    /// Nats per token, with the recipe's weights; infinite with an impossible token.
    pub mean: f64,
    /// Standard error of the mean over windows; `None` of fewer than two, or with an impossible token.
    pub window_std_err: Option<f64>,
}

impl Perplexity {
    /// The perplexity.
    pub fn value(&self) -> f64 {
        self.mean.exp()
    }

    /// Standard error of the perplexity, as if tokens were independent: what llama.cpp prints.
    pub fn std_err(&self) -> Option<f64> {
        self.nll.std_err().map(|error| error * self.value())
    }
}

impl fmt::Display for Perplexity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4}", self.value())?;
        if let Some(error) = self.std_err() {
            write!(f, " ± {error:.4}")?;
        }
        let (n_tokens, n_windows) = (self.nll.n_tokens(), self.n_windows);
        write!(f, " over {n_tokens} tokens in {n_windows} windows ({})", self.recipe)
    }
}

/// The perplexity of `tokens` by `recipe`.
///
/// # Errors
///
/// Those of [`for_each_row`]; [`EvalError::Nan`], [`EvalError::Infinite`] and [`EvalError::AllMasked`], which name the token.
///
/// # Examples
///
/// See [`CausalLm`].
pub fn perplexity<M: CausalLm>(
    model: &mut M,
    tokens: &[u32],
    recipe: Recipe,
) -> std::result::Result<Perplexity, M::Error> {
    let windows = recipe.windows(tokens.len())?;
    let mut sums: Vec<Weighted> = Vec::new();
    for_each_row_of(model, tokens, windows, |row| {
        if row.window == sums.len() {
            sums.push(Weighted { nll: Nll::default(), weight: row.weight as f64 });
        }
        // Rows come window by window, and every window has one.
        sums[row.window].nll.record(nll_of_row(row.index, row.logits, row.token)?)
    })?;
    let (mean, window_std_err) = mean_of(&sums);
    let nll = sums.iter().map(|sum| sum.nll).sum();
    Ok(Perplexity { recipe, nll, n_windows: sums.len(), mean, window_std_err })
}

/// A row of logits and the token that it is to foresee.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ScoredRow<'a> {
    /// The window, counted from 0.
    pub window: usize,
    /// How often the window's mean counts; see [`Window::weight`].
    pub weight: usize,
    /// The token's index in the text.
    pub index: usize,
    /// The token.
    pub token: u32,
    /// `[vocab_size]`
    pub logits: &'a [f32],
}

/// Feeds `model` the windows of `tokens`, and hands every row of logits that `recipe` scores to `sink`, in the order of the windows.
///
/// # Errors
///
/// Those of [`Recipe::windows`]; [`EvalError::Token`], [`EvalError::Context`] before the model is fed; those of the model and of `sink`;
/// [`EvalError::Rows`] or [`EvalError::Length`] of a model that does not keep to [`CausalLm`].
pub fn for_each_row<M: CausalLm>(
    model: &mut M,
    tokens: &[u32],
    recipe: Recipe,
    sink: impl FnMut(ScoredRow<'_>) -> Result<()>,
) -> std::result::Result<(), M::Error> {
    for_each_row_of(model, tokens, recipe.windows(tokens.len())?, sink)
}

/// The tokens of a window and how often its mean counts.
#[derive(Clone, Copy, Debug)]
struct Weighted {
    nll: Nll,
    weight: f64,
}

/// The weighted mean, and its standard error over windows.
fn mean_of(windows: &[Weighted]) -> (f64, Option<f64>) {
    let means = || windows.iter().filter_map(|window| Some((window.nll.mean()?, window.weight)));
    let weight: f64 = windows.iter().map(|window| window.weight).sum();
    let total: Nll = windows.iter().map(|window| window.nll).sum();
    let by_tokens = windows.iter().all(|window| window.weight == window.nll.n_tokens() as f64);
    // The same number either way, but that the exact sum does not depend on the windows.
    let mean = match total.mean() {
        Some(mean) if by_tokens || mean.is_infinite() => mean,
        _ => means().map(|(mean, weight)| mean * weight).sum::<f64>() / weight,
    };
    let n = windows.len() as f64;
    let squares: f64 = means().map(|(each, weight)| (weight * (each - mean)).powi(2)).sum();
    let std_err = (n / (n - 1.0) * squares).sqrt() / weight;
    (mean, (windows.len() > 1 && mean.is_finite()).then_some(std_err))
}

/// [`for_each_row`] of windows that may be those of a text which is too short for their recipe.
pub(crate) fn for_each_row_of<M: CausalLm>(
    model: &mut M,
    tokens: &[u32],
    mut windows: impl Iterator<Item = Window> + Clone,
    mut sink: impl FnMut(ScoredRow<'_>) -> Result<()>,
) -> std::result::Result<(), M::Error> {
    let (vocab_size, max_seq_len) = (model.vocab_size(), model.max_seq_len());
    EvalError::check_tokens(tokens, vocab_size)?;
    let leads = windows.clone().filter_map(|window| match window.lead {
        Lead::Text => None,
        Lead::Before(token) | Lead::InPlaceOfFirst(token) => Some(token),
    });
    if let Some(token) = leads.into_iter().find(|&token| token as usize >= vocab_size) {
        return Err(EvalError::Token { index: 0, token, vocab_size }.into());
    }
    let n_tokens = windows.clone().map(|window| window.n_fed()).max().unwrap_or(0);
    if n_tokens > max_seq_len {
        return Err(EvalError::Context { n_tokens, max_seq_len }.into());
    }

    let max_batch = model.max_batch().max(1);
    let (mut batch, mut fed): (Vec<Window>, Vec<u32>) = (Vec::new(), Vec::new());
    let mut n_before = 0;
    loop {
        batch.clear();
        batch.extend(windows.by_ref().take(max_batch));
        if batch.is_empty() {
            return Ok(());
        }
        fed.clear();
        for window in &batch {
            feed(window, tokens, &mut fed);
        }
        let prompts = prompts(&batch, &fed);
        let mut wanted = wanted_rows(&prompts);
        model.logits_of_batch(&prompts, &mut |i, row, logits| {
            let (expected, actual) = (wanted.next(), Some((i, row)));
            if expected != actual {
                return Err(EvalError::Rows { expected, actual });
            }
            EvalError::check_length("logits", vocab_size, logits.len())?;
            let window = &batch[i];
            let index = window.scored.start + (row - prompts[i].wanted.start);
            let (token, weight) = (tokens[index], window.weight);
            sink(ScoredRow { window: n_before + i, weight, index, token, logits })
        })?;
        if let Some(row) = wanted.next() {
            return Err(EvalError::Rows { expected: Some(row), actual: None }.into());
        }
        n_before += batch.len();
    }
}

/// Adds what a window feeds.
fn feed(window: &Window, tokens: &[u32], fed: &mut Vec<u32>) {
    let text = &tokens[window.tokens.start..window.tokens.end - 1];
    match window.lead {
        Lead::Text => fed.extend(text),
        Lead::Before(token) => {
            fed.push(token);
            fed.extend(text);
        }
        Lead::InPlaceOfFirst(token) => {
            fed.push(token);
            fed.extend(&text[1..]);
        }
    }
}

fn prompts<'a>(windows: &[Window], mut fed: &'a [u32]) -> Vec<Prompt<'a>> {
    let prompt = |window: &Window| {
        let (tokens, rest) = fed.split_at(window.n_fed());
        fed = rest;
        let first = window.row_before(window.scored.start);
        Prompt { tokens, wanted: first..first + window.scored.len() }
    };
    windows.iter().map(prompt).collect()
}

/// Prompt and row, in the order that a model has to keep.
fn wanted_rows(prompts: &[Prompt<'_>]) -> impl Iterator<Item = (usize, usize)> {
    let rows = |(i, prompt): (usize, &Prompt<'_>)| prompt.wanted.clone().map(move |row| (i, row));
    prompts.iter().enumerate().flat_map(rows)
}
