//! What a context does to logits before they are a distribution: bias and penalties.

use super::{Context, Sampling};
use crate::Error;

/// Whether all tokens of the context have a logit.
pub(super) fn check_tokens(context: &Context<'_>, vocab_size: usize) -> Result<(), Error> {
    for tokens in [context.prompt, context.generated] {
        // A maximum first, because it takes less time than a search, and there is nothing to find.
        if tokens.iter().copied().max().is_some_and(|max| max as usize >= vocab_size) {
            check_each(tokens.iter().copied(), vocab_size)?;
        }
    }
    check_each(context.logit_bias.iter().map(|&(token, _)| token), vocab_size)
}

fn check_each(tokens: impl Iterator<Item = u32>, vocab_size: usize) -> Result<(), Error> {
    for (index, token) in tokens.enumerate() {
        if token as usize >= vocab_size {
            return Err(Error::Token { token, index, vocab_size });
        }
    }
    Ok(())
}

/// Bias, then the repetition penalty, then frequency and presence, each of which changes a token's score once.
///
/// `counts` `[vocab_size]` is 0, and is so again afterwards.
pub(super) fn apply(
    scores: &mut [f32],
    context: &Context<'_>,
    sampling: &Sampling,
    counts: &mut [u32],
) {
    for &(token, bias) in context.logit_bias {
        scores[token as usize] += bias;
    }
    if sampling.repetition_penalty != 1.0 {
        let penalty = sampling.repetition_penalty as f32;
        let tokens = || context.prompt.iter().chain(context.generated);
        for_each_distinct(tokens, counts, |token, _| {
            let score = &mut scores[token];
            *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
        });
    }
    let (frequency, presence) = (sampling.frequency_penalty, sampling.presence_penalty);
    if frequency != 0.0 || presence != 0.0 {
        for_each_distinct(
            || context.generated.iter(),
            counts,
            |token, count| {
                scores[token] -= frequency as f32 * count as f32;
                scores[token] -= presence as f32;
            },
        );
    }
}

/// Calls `visit` once for each token with the number of times that it occurs.
fn for_each_distinct<'a, I: Iterator<Item = &'a u32>>(
    tokens: impl Fn() -> I,
    counts: &mut [u32],
    mut visit: impl FnMut(usize, u32),
) {
    for &token in tokens() {
        counts[token as usize] += 1;
    }
    for &token in tokens() {
        let count = std::mem::take(&mut counts[token as usize]);
        if count > 0 {
            visit(token as usize, count);
        }
    }
}
