//! Reading on and on with the cache of a window: likelihoods by position, and bytes.

use squish_bench::{Cell, Format, Section, alloc::held_bytes};
use squish_eval::{Nll, Recipe, for_each_row, token_nll};
use squish_kv::{GqaCache, KvShape, Scaling, SlidingWindowKv, ndarray::Array3};
use squish_model::{KvOptions, KvType, Positions, Runner, RunnerOptions, StreamingSinks, Windows};

use crate::setup::{Setup, load, ppl};

/// First tokens that stay.
const N_SINKS: usize = 4;

/// Ranges of positions.
const N_RANGES: usize = 8;

pub(crate) fn sections(setup: &Setup) -> Vec<Section> {
    let context = setup.effort.context;
    let (window, len) = (context / 2, setup.effort.stream_len());
    let streams = setup.streams();
    let note = format!(
        "Perplexity by position in {} texts of {len} tokens: held-out texts one behind the other, prose and code in turn; {} tokens in each \
         column, in the first one less the first token of each text. The model was trained for {context} positions. Weights as \
         stored, f32 inputs, keys and values. A window counts the token itself and the sinks. \"In the text\" sinks are ever farther away \
         than in training, \"in the cache\" (arXiv 2309.17453) as far as in a text of {window} tokens. \"Recomputed\" reads every window of \
         {context} tokens anew and scores its second half ({}): what a model without a cache does, at a multiple of the work. Bytes are \
         those that a cache of the text holds, counted by the allocator after {context} tokens and after {len}; what is recomputed keeps \
         none.",
        streams.len(),
        streams.len() * context,
        recomputed(context)
    );
    let ranges: Vec<String> = (0..N_RANGES).map(|i| format!("to {}", (i + 1) * context)).collect();
    let (first, last) = (format!("bytes at {context}"), format!("bytes at {len}"));
    let mut columns = vec![("cache", Format::Text)];
    columns.extend(ranges.iter().map(|range| (range.as_str(), Format::Fixed(2))));
    columns.extend([(first.as_str(), Format::Count), (last.as_str(), Format::Count)]);
    let mut section = Section::new("sinks", "A long text through a window", note, &columns);

    let whole = Recipe::Strided { max_len: len, stride: len, prefix: None };
    let [in_text, in_cache] = [Positions::Absolute, Positions::CacheRelative]
        .map(|positions| Some(StreamingSinks { n_sinks: N_SINKS, positions }));
    let of_them = format!("window of {window}, {N_SINKS} of them sinks");
    let shape =
        KvShape::new(setup.config.n_layers(), setup.config.n_kv_heads, setup.config.head_dim);
    for (name, recipe, window, sinks) in [
        ("recomputed".to_owned(), recomputed(context), None, None),
        ("all tokens".to_owned(), whole, None, None),
        (format!("window of {window}"), whole, Some(window), None),
        (format!("{of_them}, in the text"), whole, Some(window), in_text),
        (format!("{of_them}, in the cache"), whole, Some(window), in_cache),
    ] {
        let mut runner = runner(setup, window, sinks);
        let by_range = by_range(&mut runner, &streams, recipe, context);
        let n_bytes = match (window, recipe == whole) {
            (_, false) => [Cell::Empty, Cell::Empty],
            (None, _) => [context, len].map(|n| all_tokens_bytes(shape, n).into()),
            (Some(window), _) => window_bytes(shape, window, sinks, [context, len]).map(Cell::from),
        };
        let ppls = by_range.into_iter().map(|nll| ppl(nll).into());
        section.push([name.into()].into_iter().chain(ppls).chain(n_bytes));
    }
    vec![section]
}

/// Half a context before each token at least, after the first one.
fn recomputed(context: usize) -> Recipe {
    Recipe::Strided { max_len: context, stride: context / 2, prefix: None }
}

/// The model with this window in all layers.
fn runner(setup: &Setup, window: Option<usize>, sinks: Option<StreamingSinks>) -> Runner {
    let (context, len) = (setup.effort.context, setup.effort.stream_len());
    let mut config = setup.config.clone();
    config.max_position_embeddings = len;
    for layer in &mut config.layers {
        layer.window = window;
    }
    let model = load(setup.source(), &config);
    let windows = Windows::Ring { sinks };
    let kv = KvOptions { kv_type: KvType::F32, n_tokens: len, windows, ..KvOptions::default() };
    let options = RunnerOptions { kv, chunk: context, ..RunnerOptions::default() };
    setup.runner_with(model, &options)
}

/// Likelihoods of all streams by the position of the token.
fn by_range(
    runner: &mut Runner,
    streams: &[&[u32]],
    recipe: Recipe,
    context: usize,
) -> [Nll; N_RANGES] {
    let mut by_range = [Nll::default(); N_RANGES];
    for stream in streams {
        let scored = for_each_row(runner, stream, recipe, |row| {
            by_range[row.index / context].record(token_nll(row.logits, row.token)?)
        });
        scored.expect("streams fit the model");
    }
    by_range
}

/// Bytes of a cache of all tokens.
fn all_tokens_bytes(shape: KvShape, n_tokens: usize) -> usize {
    let (cache, n_bytes) = held_bytes(|| GqaCache::<f32>::new(shape, n_tokens, Scaling::Dynamic));
    drop(cache.expect("room"));
    usize::try_from(n_bytes).expect("a cache holds memory")
}

/// Bytes of the cache of a window after so many tokens, one by one.
fn window_bytes(
    shape: KvShape,
    window: usize,
    sinks: Option<StreamingSinks>,
    lens: [usize; 2],
) -> [usize; 2] {
    let rows = Array3::<f32>::zeros((1, shape.n_heads, shape.key_dim));
    let n_bytes = |len: usize| {
        let (cache, n_bytes) = held_bytes(|| {
            let mut cache = match sinks {
                None => SlidingWindowKv::<f32>::new(shape, window, Scaling::Dynamic),
                Some(sinks) => SlidingWindowKv::with_sinks(shape, window, sinks, Scaling::Dynamic),
            }
            .expect("room");
            for _ in 0..len {
                let mut step = cache.begin(1).expect("room");
                for layer in 0..shape.n_layers {
                    step.write(layer, rows.view(), rows.view()).expect("rows of the shape");
                }
                step.commit().expect("all layers are written");
            }
            cache
        });
        drop(cache);
        usize::try_from(n_bytes).expect("a cache holds memory")
    };
    lens.map(n_bytes)
}
