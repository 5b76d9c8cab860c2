//! A row of logits has the same bits whether its token is decoded alone, in a batch, in a piece of a prompt or as a node of a tree; over
//! every kind of cache, and on any number of threads.

use std::{fmt, sync::Arc};

use squish_kernels::{Isa, SimdLevel};
use squish_model::{
    Activation, KvLayout, KvOptions, KvType, LoadOptions, Model, Part, Positions, Runner,
    RunnerOptions, SequenceId, StreamingSinks, Wanted, WeightFormat, Windows,
};

use crate::{
    common::{FIXTURE, MODEL},
    models::{
        VOCAB, WINDOW, assert_same, at_once, biased, bits_of, decoded, gemma, llama, load, mistral,
        options, qwen3, runner, text,
    },
};

/// Tokens that both texts begin with: past the first tile of attention.
const SHARED: usize = 70;

/// Tokens of a text, past the second tile.
const LEN: usize = 150;

/// Levels of the tree: less than a window, with more nodes than it has tokens.
const DEPTH: usize = 8;

/// Two texts that part after [`SHARED`] tokens, with the logits behind each of their tokens when decoded alone.
struct Texts {
    tokens: [Vec<u32>; 2],
    rows: [Vec<Vec<u32>>; 2],
}

/// How a model is run, beside its way through the text.
#[derive(Clone, Copy)]
struct Setup {
    layout: KvLayout,
    windows: Windows,
    n_threads: usize,
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layout, windows, n_threads } = self;
        write!(f, "{layout:?}, {windows:?}, {n_threads} threads")
    }
}

const fn paged(block_size: usize, n_threads: usize) -> Setup {
    Setup { layout: KvLayout::Paged { block_size }, windows: Windows::Paged, n_threads }
}

const CONTIGUOUS: Setup =
    Setup { layout: KvLayout::Contiguous, windows: Windows::Paged, n_threads: 2 };

const RING: Windows = Windows::Ring { sinks: None };

const SINKS: Windows =
    Windows::Ring { sinks: Some(StreamingSinks { n_sinks: 3, positions: Positions::Absolute }) };

/// As in the paper: sinks are met at positions in the cache.
const RELATIVE: Windows = Windows::Ring {
    sinks: Some(StreamingSinks { n_sinks: 3, positions: Positions::CacheRelative }),
};

impl Setup {
    /// With room for 16 texts.
    fn options(self, kv_type: KvType) -> RunnerOptions {
        let Self { layout, windows, n_threads } = self;
        let kv = KvOptions { kv_type, layout, windows, n_tokens: 16 * 160, n_sequences: 16 };
        RunnerOptions { kv, n_threads, chunk: LEN, ..RunnerOptions::default() }
    }
}

impl Texts {
    fn new(model: &Arc<Model>, options: &RunnerOptions) -> Self {
        let vocab_size = model.config().vocab_size;
        let a = text(LEN, vocab_size, 1);
        let b = [&a[..SHARED], &text(LEN - SHARED, vocab_size, 2)].concat();
        assert_ne!(a[SHARED], b[SHARED]);
        let rows = [&a, &b].map(|text| decoded(model, options, text));
        Self { tokens: [a, b], rows }
    }

    /// The rows of one part with all logits, which continues text `of` behind `len` tokens.
    fn check(&self, what: &str, of: usize, len: usize, got: &[Vec<u32>]) {
        let what = format!("{what}, text {of} behind {len}");
        assert_same(&what, got, &self.rows[of][len..len + got.len()]);
    }
}

/// Takes both texts through a model by every way, and compares all rows to those of decoding.
fn check(what: &str, texts: &Texts, model: &Arc<Model>, kv_type: KvType, setup: Setup) {
    let what = format!("{what}, keys and values in {kv_type}, {setup:?}");
    let mut runner = runner(model, &setup.options(kv_type));
    let chunks = if setup.n_threads == 2 { [3, LEN] } else { [1, 65] };
    for chunk in chunks {
        in_chunks(&format!("{what}, pieces of {chunk}"), texts, &mut runner, chunk);
    }
    in_batches(&format!("{what}, in a batch"), texts, &mut runner);
    in_trees(&format!("{what}, in a tree"), texts, &mut runner);
    in_company(&format!("{what}, in mixed company"), texts, &mut runner);
}

fn in_chunks(what: &str, texts: &Texts, runner: &mut Runner, chunk: usize) {
    for of in 0..2 {
        let id = runner.create().unwrap();
        for tokens in texts.tokens[of].chunks(chunk) {
            let len = runner.len(id).unwrap();
            let mut output =
                runner.forward(&[Part::new(id, tokens).with_logits(Wanted::All)]).unwrap();
            texts.check(what, of, len, &bits_of(output.logits().unwrap()));
            output.commit().unwrap();
        }
        runner.free(id).unwrap();
    }
}

/// 16 sequences of different lengths: two pieces of a prompt each, and then steps of a token.
fn in_batches(what: &str, texts: &Texts, runner: &mut Runner) {
    // Most of them short, some past a tile of attention.
    let len = |i: usize| if i < 13 { 2 + 3 * i } else { 31 * i - 331 };
    let mut sequences: Vec<(SequenceId, usize, usize)> =
        (0..16).map(|i| (runner.create().unwrap(), i % 2, len(i))).collect();
    let halves = |len: usize| [0..len / 2, len / 2..len];
    for half in 0..2 {
        let parts: Vec<Part<'_>> = sequences
            .iter()
            .map(|&(id, of, len)| Part::new(id, &texts.tokens[of][halves(len)[half].clone()]))
            .collect();
        let mut output = runner.forward(&parts).unwrap();
        let got = bits_of(output.logits().unwrap());
        for (row, &(_, of, len)) in got.iter().zip(&sequences) {
            texts.check(what, of, halves(len)[half].end - 1, std::slice::from_ref(row));
        }
        output.commit().unwrap();
    }
    for _ in 0..4 {
        sequences.rotate_left(5);
        let parts: Vec<Part<'_>> = sequences
            .iter()
            .map(|&(id, of, len)| Part::new(id, &texts.tokens[of][len..=len]))
            .collect();
        let mut output = runner.forward(&parts).unwrap();
        let got = bits_of(output.logits().unwrap());
        for (row, &(_, of, len)) in got.iter().zip(&sequences) {
            texts.check(what, of, len, std::slice::from_ref(row));
        }
        output.commit().unwrap();
        for (_, _, len) in &mut sequences {
            *len += 1;
        }
    }
    for (id, ..) in sequences {
        runner.free(id).unwrap();
    }
}

/// A tree of both texts behind the tokens that they share, and at every level a node of neither.
struct Tree {
    tokens: Vec<u32>,
    parents: Vec<Option<u32>>,
}

impl Tree {
    fn new(texts: &Texts) -> Self {
        let (mut tokens, mut parents) = (Vec::new(), Vec::new());
        for level in 0..DEPTH {
            let before = |of: u32| (level as u32).checked_sub(1).map(|level| 3 * level + of);
            let [a, b] = [0, 1].map(|of: usize| texts.tokens[of][SHARED + level]);
            tokens.extend([a, b, 0]);
            // The third is a child of each text by turns.
            parents.extend([before(0), before(1), before(level as u32 % 2)]);
        }
        Self { tokens, parents }
    }

    fn part(&self, id: SequenceId) -> Part<'_> {
        Part::tree(id, &self.tokens, &self.parents)
    }

    /// The nodes of a text.
    fn path(of: usize, len: usize) -> Vec<usize> {
        (0..len).map(|level| 3 * level + of).collect()
    }

    fn check(what: &str, texts: &Texts, got: &[Vec<u32>]) {
        for of in 0..2 {
            let rows: Vec<_> =
                Self::path(of, DEPTH).into_iter().map(|node| got[node].clone()).collect();
            texts.check(what, of, SHARED, &rows);
        }
    }
}

fn in_trees(what: &str, texts: &Texts, runner: &mut Runner) {
    let tree = Tree::new(texts);
    let id = runner.create().unwrap();
    runner.extend(id, &texts.tokens[0][..SHARED]).unwrap();
    let mut output = runner.forward(&[tree.part(id)]).unwrap();
    Tree::check(what, texts, &bits_of(output.logits().unwrap()));
    drop(output);
    runner.free(id).unwrap();
}

/// A tree, a piece of a prompt, a whole prompt and a decoded token in one pass.
fn in_company(what: &str, texts: &Texts, runner: &mut Runner) {
    let ids = [(); 4].map(|()| runner.create().unwrap());
    let [a, b] = &texts.tokens;
    runner.extend(ids[0], &a[..SHARED]).unwrap();
    runner.extend(ids[1], &b[..75]).unwrap();
    runner.extend(ids[2], &b[..130]).unwrap();
    let tree = Tree::new(texts);
    let parts = [
        Part::new(ids[2], &b[130..131]),
        Part::new(ids[3], &a[..90]).with_logits(Wanted::All),
        tree.part(ids[0]),
        Part::new(ids[1], &b[75..95]).with_logits(Wanted::All),
    ];
    let mut output = runner.forward(&parts).unwrap();
    let got = bits_of(output.logits().unwrap());
    drop(output);
    let (decoded, got) = got.split_at(1);
    let (prompt, got) = got.split_at(90);
    let (nodes, piece) = got.split_at(3 * DEPTH);
    texts.check(what, 1, 130, decoded);
    texts.check(what, 0, 0, prompt);
    Tree::check(what, texts, nodes);
    texts.check(what, 1, 75, piece);
    for id in ids {
        runner.free(id).unwrap();
    }
}

/// What the inputs of products with a format can be rounded to.
fn activations(format: WeightFormat) -> &'static [Activation] {
    match format {
        WeightFormat::F32 | WeightFormat::F16 => &[Activation::F32],
        WeightFormat::Stored
        | WeightFormat::Bf16
        | WeightFormat::Fp8E4M3
        | WeightFormat::Fp8E5M2
        | WeightFormat::MxFp8E4M3
        | WeightFormat::MxFp8E5M2
        | WeightFormat::MxFp6E3M2
        | WeightFormat::MxFp6E2M3 => &[Activation::F32, Activation::Bf16],
        WeightFormat::MxFp4
        | WeightFormat::MxInt8
        | WeightFormat::NvFp4
        | WeightFormat::Int8
        | WeightFormat::Int4 => &[Activation::F32, Activation::Bf16, Activation::Q8],
        _ => panic!("{format} is not in the table of activations"),
    }
}

#[test]
fn every_weight_format_with_every_activation() {
    let setups = [paged(7, 2), paged(32, 1), paged(1, 3), CONTIGUOUS];
    let mut n = 0;
    for format in WeightFormat::ALL {
        for &activation in activations(format) {
            let options = LoadOptions { activation: Some(activation), ..LoadOptions::of(format) };
            let config = if n % 2 == 0 { llama(64) } else { biased(128) };
            let model = load(config, options);
            let texts = Texts::new(&model, &paged(32, 1).options(KvType::Bf16));
            let what = format!("{format} by {activation:?}");
            check(&what, &texts, &model, KvType::Bf16, setups[n % setups.len()]);
            n += 1;
        }
    }
    assert_eq!(n, 33);
}

#[test]
fn every_type_of_keys_and_values() {
    for (kv_type, format) in KvType::ALL
        .into_iter()
        .flat_map(|kv_type| [WeightFormat::Bf16, WeightFormat::MxFp4].map(|f| (kv_type, f)))
    {
        for config in [qwen3(128), gemma(64)] {
            let model = load(config, LoadOptions::of(format));
            let texts = Texts::new(&model, &paged(32, 1).options(kv_type));
            let rings = Setup { windows: RING, ..paged(7, 1) };
            check(&format!("{format}"), &texts, &model, kv_type, rings);
        }
    }
}

#[test]
fn every_cache_on_one_to_three_threads() {
    for (name, config) in [("gemma", gemma(128)), ("mistral", mistral(64)), ("llama", llama(128))] {
        let model = load(config, LoadOptions::default());
        let texts = Texts::new(&model, &paged(32, 1).options(KvType::Bf16));
        for setup in [paged(1, 1), paged(7, 2), paged(32, 3), CONTIGUOUS] {
            check(name, &texts, &model, KvType::Bf16, setup);
            if name != "llama" {
                check(name, &texts, &model, KvType::Bf16, Setup { windows: RING, ..setup });
            }
        }
    }
}

/// Its products and its attention are large enough to be shared out among threads.
#[test]
fn the_trained_model_in_three_formats() {
    let open = |format| Arc::new(Model::open(FIXTURE, &LoadOptions::of(format)).unwrap());
    let cases = [
        (open(WeightFormat::Stored), KvType::Bf16, &[paged(7, 3), CONTIGUOUS][..]),
        (open(WeightFormat::MxFp4), KvType::Int8, &[paged(1, 2)]),
        (Arc::clone(&MODEL), KvType::F32, &[paged(32, 3)]),
    ];
    // Without vectors a case takes a minute.
    let n_cases = if Isa::detect().level() == SimdLevel::Scalar { 1 } else { cases.len() };
    for (model, kv_type, setups) in cases.into_iter().take(n_cases) {
        let texts = Texts::new(&model, &paged(32, 1).options(kv_type));
        for &setup in setups {
            check("trained", &texts, &model, kv_type, setup);
        }
    }
}

/// Attention is cut into splits there.
#[test]
fn texts_of_more_than_a_thousand_tokens() {
    let model = load(llama(64), LoadOptions::default());
    let kv = KvOptions { n_tokens: 1200, ..KvOptions::default() };
    let options = |n_threads, chunk| RunnerOptions { kv, n_threads, chunk, ..Default::default() };
    let text = text(1100, VOCAB, 3);
    let want = decoded(&model, &options(1, 1), &text);
    for (n_threads, chunk) in [(1, 1100), (2, 1), (2, 511), (3, 1100)] {
        let mut runner = runner(&model, &options(n_threads, chunk));
        let id = runner.create().unwrap();
        for tokens in text.chunks(chunk) {
            let len = runner.len(id).unwrap();
            let what = format!("pieces of {chunk}, {n_threads} threads, behind {len}");
            let mut output =
                runner.forward(&[Part::new(id, tokens).with_logits(Wanted::All)]).unwrap();
            let got = bits_of(output.logits().unwrap());
            assert_same(&what, &got, &want[len..len + tokens.len()]);
            output.commit().unwrap();
        }
    }
}

/// Sinks are seen by every row, so the way of a ring with them is its own; the rows agree all the same.
#[test]
fn rings_whose_first_tokens_stay() {
    let model = load(gemma(64), LoadOptions::default());
    let texts = [SINKS, RELATIVE].map(|windows| {
        let rings = |setup| Setup { windows, ..setup };
        let texts = Texts::new(&model, &rings(paged(32, 1)).options(KvType::Bf16));
        for setup in [paged(7, 2), CONTIGUOUS] {
            check("sinks", &texts, &model, KvType::Bf16, rings(setup));
        }
        texts
    });
    let without = at_once(&model, &options(KvType::Bf16), &texts[0].tokens[0]);
    let same = without.iter().zip(&texts[0].rows[0]).take_while(|(a, b)| a == b).count();
    assert_eq!(same, WINDOW, "rows that see the same with and without sinks");
}

/// Every kind of cache of a model with a layer with a window and one without.
fn caches() -> [Setup; 6] {
    [
        paged(1, 1),
        paged(7, 1),
        CONTIGUOUS,
        Setup { windows: RING, ..paged(32, 1) },
        Setup { windows: SINKS, ..paged(32, 1) },
        Setup { windows: RELATIVE, ..paged(32, 1) },
    ]
}

/// The rows behind the next tokens of text `of`, which are decoded until a window has moved on.
fn check_decoding(what: &str, texts: &Texts, runner: &mut Runner, id: SequenceId, of: usize) {
    for _ in 0..2 * WINDOW {
        let len = runner.len(id).unwrap();
        let row = runner.extend(id, &texts.tokens[of][len..=len]).unwrap();
        let row = row.iter().map(|x| x.to_bits()).collect();
        texts.check(what, of, len, &[row]);
    }
}

#[test]
fn an_accepted_path_leaves_what_decoding_it_leaves() {
    for kv_type in [KvType::Bf16, KvType::Int8] {
        let model = load(gemma(64), LoadOptions::default());
        for setup in caches() {
            let options = setup.options(kv_type);
            let texts = Texts::new(&model, &setup.options(kv_type));
            let tree = Tree::new(&texts);
            for (of, len) in [(0, DEPTH), (1, DEPTH), (1, 1), (0, 5), (0, 0)] {
                let what = format!("{kv_type}, {setup:?}, {len} nodes of text {of}");
                let mut runner = runner(&model, &options);
                let [id, other] = [(); 2].map(|()| runner.create().unwrap());
                runner.extend(id, &texts.tokens[0][..SHARED]).unwrap();
                runner.extend(other, &texts.tokens[1][..100]).unwrap();
                // The other part stays a whole.
                let parts = [Part::new(other, &texts.tokens[1][100..103]), tree.part(id)];
                let mut output = runner.forward(&parts).unwrap();
                output.accept(1, &Tree::path(of, len)).unwrap();
                output.commit().unwrap();
                // Logits can be had after the commit, too.
                Tree::check(&what, &texts, &bits_of(output.logits().unwrap())[1..]);
                drop(output);
                assert_eq!(runner.len(id).unwrap(), SHARED + len);
                check_decoding(&what, &texts, &mut runner, id, of);
                check_decoding(&what, &texts, &mut runner, other, 1);
            }
        }
    }
}

/// Two trees in one pass, of which different paths stay.
#[test]
fn paths_of_two_trees_are_accepted_apart() {
    let model = load(gemma(64), LoadOptions::default());
    for setup in caches() {
        let options = setup.options(KvType::Bf16);
        let texts = Texts::new(&model, &options);
        let tree = Tree::new(&texts);
        let mut runner = runner(&model, &options);
        let ids = [(); 2].map(|()| runner.create().unwrap());
        for id in ids {
            runner.extend(id, &texts.tokens[0][..SHARED]).unwrap();
        }
        let mut output = runner.forward(&ids.map(|id| tree.part(id))).unwrap();
        output.accept(0, &Tree::path(1, 6)).unwrap();
        output.accept(1, &Tree::path(0, 4)).unwrap();
        output.commit().unwrap();
        drop(output);
        let lens = ids.map(|id| runner.len(id).unwrap());
        assert_eq!(lens, [SHARED + 6, SHARED + 4]);
        check_decoding(&format!("{setup:?}"), &texts, &mut runner, ids[0], 1);
        check_decoding(&format!("{setup:?}"), &texts, &mut runner, ids[1], 0);
    }
}

#[test]
fn a_dropped_output_leaves_no_trace() {
    let model = load(gemma(64), LoadOptions::default());
    for setup in caches() {
        let options = setup.options(KvType::Bf16);
        let texts = Texts::new(&model, &options);
        let (tree, noise) = (Tree::new(&texts), text(40, VOCAB, 9));
        let mut runner = runner(&model, &options);
        let ids = [(); 2].map(|()| runner.create().unwrap());
        for (of, id) in ids.into_iter().enumerate() {
            runner.extend(id, &texts.tokens[of][..SHARED]).unwrap();
        }
        for parts in [
            &[Part::new(ids[0], &noise)][..],
            &[Part::new(ids[1], &noise[..1]), Part::new(ids[0], &noise[..17])],
            &[tree.part(ids[0]), tree.part(ids[1])],
        ] {
            drop(runner.forward(parts).unwrap());
            // Not even one of which a path was accepted.
            let mut output = runner.forward(parts).unwrap();
            output.accept(0, &[0]).unwrap();
            let _ = output.logits().unwrap();
            drop(output);
            assert_eq!(ids.map(|id| runner.len(id).unwrap()), [SHARED; 2]);
        }
        for (of, id) in ids.into_iter().enumerate() {
            check_decoding(&format!("{setup:?}"), &texts, &mut runner, id, of);
        }
    }
}
