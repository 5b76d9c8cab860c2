//! What hooks see and change: adapters, recorders, observers, rounding, sparsity.

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use squish_kernels::rms_norm_into;
use squish_model::{
    Adapter, Config, Dense, DenseTensor, Error, Gate, Hooks, KvType, LoadOptions, Model, Observer,
    Part, Projection, RandomCheckpoint, Recorder, Rounding, Runner, RunnerOptions, SequenceId,
    Site, Sparsity, TensorSource, Wanted, WeightFormat,
    ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis},
};

use crate::{
    common::EXACT,
    models::{
        VOCAB, assert_same, at_once, biased, bits_of, gemma, llama, load, options, qwen3, runner,
        text,
    },
};

/// The sites of 2 layers that are asked about or shown, in their order: those whose inputs are those of their neighbors are left out.
const SHOWN: [Projection; 4] = [Projection::Q, Projection::O, Projection::Gate, Projection::Down];

/// The site that is shown for a matrix.
fn shown(site: Site) -> Site {
    let projection = match site.projection {
        Projection::K | Projection::V => Projection::Q,
        Projection::Up => Projection::Gate,
        projection => projection,
    };
    Site { projection, ..site }
}

fn sites(config: &Config, projections: &[Projection]) -> Vec<Site> {
    let of = |layer| projections.iter().map(move |&projection| Site { layer, projection });
    (0..config.n_layers()).flat_map(of).collect()
}

/// The logits of all tokens of some texts, each a sequence of its own, in one pass.
fn logits(
    model: &Arc<Model>,
    options: &RunnerOptions,
    texts: &[&[u32]],
    hooks: &mut Hooks<'_>,
) -> Array2<f32> {
    let mut runner = runner(model, options);
    let ids: Vec<SequenceId> = texts.iter().map(|_| runner.create().unwrap()).collect();
    let parts: Vec<Part<'_>> = texts
        .iter()
        .zip(&ids)
        .map(|(text, &id)| Part::new(id, text).with_logits(Wanted::All))
        .collect();
    let mut output = runner.forward_with(&parts, hooks).unwrap();
    output.logits().unwrap().to_owned()
}

/// A weight that depends on its place, around 1 / `n`.
fn weight(site: Site, i: usize, n: usize) -> f32 {
    let place = 31 * i + 7 * site.layer + site.projection as usize;
    ((place * place % 97) as f32 / 48.5 - 1.0) / (n as f32).sqrt()
}

/// `y += b (a · x)` for the sites of each adapter, of which `of_parts` says which one a part has.
struct RankOne {
    adapters: Vec<HashMap<Site, [Vec<f32>; 2]>>,
    of_parts: Vec<Option<usize>>,
    calls: RefCell<Vec<Site>>,
}

impl RankOne {
    /// One adapter of all parts.
    fn of_all(adapter: HashMap<Site, [Vec<f32>; 2]>) -> Self {
        Self::new(vec![adapter], vec![Some(0); 8])
    }

    fn new(adapters: Vec<HashMap<Site, [Vec<f32>; 2]>>, of_parts: Vec<Option<usize>>) -> Self {
        Self { adapters, of_parts, calls: RefCell::default() }
    }
}

/// An adapter of these sites, times `factor`.
fn adapter(config: &Config, sites: &[Site], factor: f32) -> HashMap<Site, [Vec<f32>; 2]> {
    let of = |&site: &Site| {
        let [n_out, n_in] = site.projection.shape(config);
        let a = (0..n_in).map(|i| weight(site, i, n_in)).collect();
        let b = (0..n_out).map(|i| factor * weight(site, i + 1000, 1)).collect();
        (site, [a, b])
    };
    sites.iter().map(of).collect()
}

impl Adapter for RankOne {
    fn add(
        &self,
        site: Site,
        part_of: &[usize],
        x: ArrayView2<'_, f32>,
        mut y: ArrayViewMut2<'_, f32>,
    ) {
        self.calls.borrow_mut().push(site);
        assert_eq!((x.nrows(), y.nrows()), (part_of.len(), part_of.len()), "{site:?}");
        for ((&part, x), mut y) in part_of.iter().zip(x.outer_iter()).zip(y.outer_iter_mut()) {
            let Some(adapter) = self.of_parts[part] else { continue };
            let Some([a, b]) = self.adapters[adapter].get(&site) else { continue };
            let dot: f32 = x.iter().zip(a).map(|(x, a)| x * a).sum();
            y.iter_mut().zip(b).for_each(|(y, b)| *y += b * dot);
        }
    }
}

/// A random checkpoint in `f32` with `b aᵀ` added to one matrix.
struct Changed<'a> {
    random: &'a RandomCheckpoint,
    name: String,
    change: &'a [Vec<f32>; 2],
}

impl TensorSource for Changed<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<DenseTensor, Error> {
        let mut values = self.random.tensor(name, shape)?.to_f32();
        if name == self.name {
            let [a, b] = self.change;
            for (row, b) in values.chunks_exact_mut(shape[1]).zip(b) {
                row.iter_mut().zip(a).for_each(|(w, a)| *w += a * b);
            }
        }
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Ok(DenseTensor::new(Dense::F32, bytes))
    }

    fn has(&self, name: &str) -> bool {
        self.random.has(name)
    }
}

fn largest_difference(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> f32 {
    assert_eq!(a.dim(), b.dim());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

// Adapters.

#[test]
fn an_adapter_of_rank_one_is_a_change_of_the_weights() {
    for config in [llama(16), biased(16), gemma(16)] {
        let random = RandomCheckpoint { config: config.clone(), seed: 5 };
        let model = load(config.clone(), EXACT);
        let text = text(12, VOCAB, 1);
        let options = options(KvType::F32);
        let plain = logits(&model, &options, &[&text], &mut Hooks::default());
        for site in sites(&config, &Projection::OF_LAYER) {
            let adapter = adapter(&config, &[site], 0.5);
            let name = format!("{}.weight", site.projection.module(site.layer));
            let changed = Changed { random: &random, name, change: &adapter[&site] };
            let changed = Arc::new(Model::load(&changed, &config, &EXACT).unwrap());
            let want = logits(&changed, &options, &[&text], &mut Hooks::default());
            let adapter = RankOne::of_all(adapter);
            let mut hooks = Hooks { adapter: Some(&adapter), ..Hooks::default() };
            let got = logits(&model, &options, &[&text], &mut hooks);
            let difference = largest_difference(got.view(), want.view());
            let effect = largest_difference(plain.view(), want.view());
            assert!(effect > 1e-2, "{site:?} changes {effect}");
            assert!(difference <= 1e-5, "{site:?}: {difference}, of {effect} that it changes");
        }
    }
}

#[test]
fn adapters_are_asked_once_for_every_matrix_of_a_layer() {
    for config in [llama(16), biased(16), gemma(16)] {
        let model = load(config.clone(), LoadOptions::default());
        let adapter = RankOne::of_all(HashMap::new());
        let mut hooks = Hooks { adapter: Some(&adapter), ..Hooks::default() };
        logits(&model, &options(KvType::Bf16), &[&[1, 2, 3]], &mut hooks);
        assert_eq!(*adapter.calls.borrow(), sites(&config, &Projection::OF_LAYER));
    }
}

#[test]
fn an_adapter_that_adds_zeros_changes_no_bit() {
    for config in [llama(16), biased(16), gemma(16), qwen3(16)] {
        for format in [WeightFormat::Bf16, WeightFormat::F32, WeightFormat::MxFp4] {
            let model = load(config.clone(), LoadOptions::of(format));
            let options = options(KvType::Bf16);
            let zero =
                RankOne::of_all(adapter(&config, &sites(&config, &Projection::OF_LAYER), 0.0));
            for texts in [&[&[1_u32, 2, 3][..]][..], &[&[5]], &[&[7, 8], &[9]]] {
                let want = logits(&model, &options, texts, &mut Hooks::default());
                let mut hooks = Hooks { adapter: Some(&zero), ..Hooks::default() };
                let got = logits(&model, &options, texts, &mut hooks);
                let what = format!("{format}, {texts:?}");
                assert_same(&what, &bits_of(got.view()), &bits_of(want.view()));
            }
        }
    }
}

#[test]
fn sequences_of_a_batch_have_adapters_of_their_own() {
    for config in [llama(16), biased(16), gemma(16)] {
        let model = load(config.clone(), LoadOptions::default());
        let options = options(KvType::Bf16);
        let all = sites(&config, &Projection::OF_LAYER);
        let adapters = vec![adapter(&config, &all, 0.1), adapter(&config, &all, -0.2)];
        let texts = [text(5, VOCAB, 1), text(1, VOCAB, 2), text(9, VOCAB, 3), text(2, VOCAB, 4)];
        let of_parts = [Some(1), None, Some(0), Some(1)];
        let run = |texts: &[&[u32]], of_parts: &[Option<usize>]| {
            let adapter = RankOne::new(adapters.clone(), of_parts.to_vec());
            let mut hooks = Hooks { adapter: Some(&adapter), ..Hooks::default() };
            bits_of(logits(&model, &options, texts, &mut hooks).view())
        };
        let together = run(&texts.each_ref().map(|text| &text[..]), &of_parts);
        let mut rest = &together[..];
        for (text, of_part) in texts.iter().zip(of_parts) {
            let (own, others) = rest.split_at(text.len());
            rest = others;
            let what = format!("adapter {of_part:?}");
            assert_same(&what, own, &run(&[text], &[of_part]));
            let plain = at_once(&model, &options, text);
            assert_eq!(own == plain, of_part.is_none(), "{what}");
        }
    }
}

// Recorders and observers.

/// Keeps what it is shown.
#[derive(Default)]
struct Inputs(Vec<(Site, Array2<f32>)>);

impl Recorder for Inputs {
    fn record(&mut self, site: Site, x: ArrayView2<'_, f32>) {
        self.0.push((site, x.to_owned()));
    }
}

impl Inputs {
    fn of(&self, site: Site) -> &Array2<f32> {
        let (_, x) = self.0.iter().find(|(other, _)| *other == site).unwrap();
        x
    }
}

#[derive(Default)]
struct Stream(Vec<Array2<f32>>);

impl Observer for Stream {
    fn observe(&mut self, layer: usize, x: ArrayView2<'_, f32>) {
        assert_eq!(layer, self.0.len());
        self.0.push(x.to_owned());
    }
}

/// What recorder and observer see of 3 sequences, and the logits.
fn seen(model: &Arc<Model>, kv_type: KvType) -> (Inputs, Stream, Array2<f32>) {
    let (mut inputs, mut stream) = (Inputs::default(), Stream::default());
    let mut hooks =
        Hooks { recorder: Some(&mut inputs), observer: Some(&mut stream), ..Hooks::default() };
    let logits = logits(model, &options(kv_type), &TEXTS, &mut hooks);
    (inputs, stream, logits)
}

const TEXTS: [&[u32]; 3] = [&[5, 6, 7, 8], &[9], &[10, 11]];

const N_ROWS: usize = 7;

#[test]
fn a_recorder_is_shown_every_input_once_and_in_order() {
    for config in [llama(16), biased(16), gemma(16)] {
        let model = load(config.clone(), LoadOptions::default());
        let (inputs, ..) = seen(&model, KvType::Bf16);
        let got: Vec<_> = inputs.0.iter().map(|(site, x)| (*site, x.dim())).collect();
        let shape = |site: Site| (site, (N_ROWS, site.projection.shape(&config)[1]));
        let want: Vec<_> = sites(&config, &SHOWN).into_iter().map(shape).collect();
        assert_eq!(got, want);
    }
}

#[test]
fn an_observer_is_shown_the_stream_before_every_layer_and_after_the_last() {
    for config in [llama(16), gemma(16)] {
        let model = load(config.clone(), LoadOptions::default());
        let (_, stream, _) = seen(&model, KvType::Bf16);
        assert_eq!(stream.0.len(), config.n_layers() + 1);
        assert!(stream.0.iter().all(|x| x.dim() == (N_ROWS, config.hidden_size)));
        // First embeddings.
        let random = RandomCheckpoint { config: config.clone(), seed: 5 };
        let shape = [config.vocab_size, config.hidden_size];
        let embedding = random.tensor("model.embed_tokens.weight", &shape).unwrap().to_f32();
        let tokens = TEXTS.concat();
        for (row, token) in stream.0[0].outer_iter().zip(tokens) {
            let at = token as usize * config.hidden_size;
            let want = embedding[at..at + config.hidden_size].iter();
            assert!(
                row.iter().eq(want.map(|x| x * config.embedding_scale).collect::<Vec<_>>().iter())
            );
        }
        // Last what the final norm is of.
        let norm = random.tensor("model.norm.weight", &[config.hidden_size]).unwrap().to_f32();
        let last = stream.0.last().unwrap();
        let normed = normed(&config, last, &norm);
        let mut runner = runner(&model, &options(KvType::Bf16));
        let parts =
            TEXTS.map(|text| Part::new(runner.create().unwrap(), text).with_logits(Wanted::All));
        let output = runner.forward(&parts).unwrap();
        assert_same("final norm", &bits_of(output.hidden()), &bits_of(normed.view()));
    }
}

fn normed(config: &Config, x: &Array2<f32>, weight: &[f32]) -> Array2<f32> {
    let mut out = Array2::zeros(x.dim());
    let (x, y) = (x.as_slice().unwrap(), out.as_slice_mut().unwrap());
    rms_norm_into(x, weight, config.rms_norm_eps, config.norm, y);
    out
}

#[test]
fn watching_changes_no_bit() {
    for config in [llama(16), biased(16), gemma(16)] {
        for format in [WeightFormat::Bf16, WeightFormat::Int4] {
            let model = load(config.clone(), LoadOptions::of(format));
            let (_, _, got) = seen(&model, KvType::Int8);
            let want = logits(&model, &options(KvType::Int8), &TEXTS, &mut Hooks::default());
            assert_same(&format!("{format}"), &bits_of(got.view()), &bits_of(want.view()));
        }
    }
}

/// `x Wᵀ + b` in `f64`, from the checkpoint.
fn product(random: &RandomCheckpoint, site: Site, x: &Array2<f32>) -> Array2<f64> {
    let [n_out, n_in] = site.projection.shape(&random.config);
    let module = site.projection.module(site.layer);
    let weights = random.tensor(&format!("{module}.weight"), &[n_out, n_in]).unwrap().to_f32();
    let bias = if random.config.mlp_bias {
        random.tensor(&format!("{module}.bias"), &[n_out]).unwrap().to_f32()
    } else {
        vec![0.0; n_out]
    };
    Array2::from_shape_fn((x.nrows(), n_out), |(row, out)| {
        let weights = weights[out * n_in..(out + 1) * n_in].iter();
        let products = x.row(row).to_vec().into_iter().zip(weights);
        products.map(|(x, &w)| f64::from(x) * f64::from(w)).sum::<f64>() + f64::from(bias[out])
    })
}

fn assert_close(what: &str, got: &Array2<f32>, want: &Array2<f64>) {
    assert_eq!(got.dim(), want.dim(), "{what}");
    let largest = want.iter().fold(0_f64, |most, x| most.max(x.abs()));
    for (place, want) in want.indexed_iter() {
        let difference = (f64::from(got[place]) - want).abs();
        assert!(difference <= 2e-6 * largest, "{what}, {place:?}: {} is not {want}", got[place]);
    }
}

#[test]
fn recorded_inputs_are_those_of_the_definition() {
    for config in [llama(16), biased(16), gemma(16)] {
        let random = RandomCheckpoint { config: config.clone(), seed: 5 };
        let model = load(config.clone(), EXACT);
        let (inputs, stream, _) = seen(&model, KvType::F32);
        for layer in 0..config.n_layers() {
            let at = |projection| Site { layer, projection };
            let name = format!("model.layers.{layer}.input_layernorm.weight");
            let norm = random.tensor(&name, &[config.hidden_size]).unwrap().to_f32();
            let want = normed(&config, &stream.0[layer], &norm);
            let queries = inputs.of(at(Projection::Q));
            assert_same("queries", &bits_of(queries.view()), &bits_of(want.view()));

            // The first token of a sequence sees itself alone, so its attention is its value.
            let values = product(&random, at(Projection::V), queries);
            let (attended, n_shared) =
                (inputs.of(at(Projection::O)), config.n_heads / config.n_kv_heads);
            for row in [0, 4, 5] {
                let want = Array2::from_shape_fn((1, config.q_dim()), |(_, i)| {
                    let (head, i) = (i / config.head_dim, i % config.head_dim);
                    values[[row, head / n_shared * config.head_dim + i]]
                });
                let got = attended.row(row).insert_axis(Axis(0)).to_owned();
                assert_close(&format!("attention of row {row}"), &got, &want);
            }

            let x = inputs.of(at(Projection::Gate));
            let gate = product(&random, at(Projection::Gate), x).mapv(|x| match config.gate {
                Gate::Silu => x / (1.0 + (-x).exp()),
                Gate::GeluTanh => {
                    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                    0.5 * x * (1.0 + inner.tanh())
                }
            });
            let want = gate * product(&random, at(Projection::Up), x);
            assert_close("gated", inputs.of(at(Projection::Down)), &want);
        }
    }
}

// Rounding.

/// Applies a function to the inputs of some sites.
struct Rounded<F>(F);

impl<F: Fn(Site, f32) -> f32> Rounding for Rounded<F> {
    fn round(&self, site: Site, mut x: ArrayViewMut2<'_, f32>) {
        assert_eq!(site, shown(site), "a neighbor was asked about");
        assert_eq!(x.nrows(), TEXTS.concat().len());
        x.mapv_inplace(|x| (self.0)(site, x));
    }
}

#[test]
fn rounding_to_what_there_is_changes_no_bit() {
    for config in [llama(16), biased(16), gemma(16)] {
        for format in [WeightFormat::Bf16, WeightFormat::Int4] {
            let model = load(config.clone(), LoadOptions::of(format));
            let rounding = Rounded(|_, x| x);
            let mut hooks = Hooks { rounding: Some(&rounding), ..Hooks::default() };
            let got = logits(&model, &options(KvType::Bf16), &TEXTS, &mut hooks);
            let want = logits(&model, &options(KvType::Bf16), &TEXTS, &mut Hooks::default());
            assert_same(&format!("{format}"), &bits_of(got.view()), &bits_of(want.view()));
        }
    }
}

#[test]
fn what_is_rounded_is_multiplied_and_what_was_before_is_recorded() {
    let halves = |x: f32| (2.0 * x).round() / 2.0;
    for config in [llama(16), biased(16), gemma(16)] {
        let model = load(config.clone(), LoadOptions::default());
        for chosen in sites(&config, &SHOWN) {
            let rounding = Rounded(|site, x| if site == chosen { halves(x) } else { x });
            let (mut inputs, probe) = (Inputs::default(), Probe::default());
            let mut hooks = Hooks {
                recorder: Some(&mut inputs),
                rounding: Some(&rounding),
                adapter: Some(&probe),
                ..Hooks::default()
            };
            logits(&model, &options(KvType::Bf16), &TEXTS, &mut hooks);
            for (site, x) in probe.0.into_inner() {
                let all = inputs.of(shown(site));
                let is_chosen = shown(site) == chosen;
                assert_eq!(x, all.mapv(|x| if is_chosen { halves(x) } else { x }), "{site:?}");
                assert_eq!(x != *all, is_chosen, "{site:?}");
            }
        }
    }
}

#[test]
fn a_layer_whose_inputs_are_rounded_to_zero_adds_nothing() {
    for config in [llama(16), gemma(16)] {
        let model = load(config.clone(), LoadOptions::default());
        let rounding = Rounded(|site: Site, x| match site.projection {
            Projection::O | Projection::Down => 0.0,
            _ => x,
        });
        let mut stream = Stream::default();
        let mut hooks =
            Hooks { observer: Some(&mut stream), rounding: Some(&rounding), ..Hooks::default() };
        logits(&model, &options(KvType::Bf16), &TEXTS, &mut hooks);
        assert!(stream.0.iter().all(|x| x == stream.0[0]));
    }
}

// Evaluation.

#[cfg(feature = "eval")]
#[test]
fn evaluation_has_the_hooks_in_every_pass_and_in_the_head() {
    use squish_eval::{CausalLm, Prompt};
    use squish_model::Hooked;

    fn rows(model: &mut impl CausalLm<Error = Error>) -> Vec<Vec<u32>> {
        // More than fit into a piece.
        let texts = [text(150, VOCAB, 1), text(90, VOCAB, 2), text(7, VOCAB, 3)];
        let prompts: Vec<_> =
            texts.iter().map(|tokens| Prompt { tokens, wanted: 0..tokens.len() }).collect();
        let mut rows = Vec::new();
        let mut sink = |_: usize, _: usize, logits: &[f32]| {
            rows.push(crate::models::bits(logits));
            Ok(())
        };
        model.logits_of_batch(&prompts, &mut sink).unwrap();
        rows
    }

    for config in [llama(16), gemma(16)] {
        let model = load(config.clone(), LoadOptions::default());
        let mut runner = runner(&model, &options(KvType::Bf16));
        let plain = rows(&mut runner);
        let mut recorder = Inputs::default();
        let hooks = Hooks { recorder: Some(&mut recorder), ..Hooks::default() };
        assert_same("recorded", &rows(&mut Hooked { runner: &mut runner, hooks }), &plain);
        let recorded = |projection| {
            let of = |(site, x): &(Site, Array2<f32>)| {
                if site.projection == projection { x.nrows() } else { 0 }
            };
            recorder.0.iter().map(of).sum::<usize>()
        };
        assert_eq!(recorded(Projection::Q), config.n_layers() * plain.len());
        assert_eq!(recorded(Projection::Head), plain.len());

        let sparsity = Thresholds(|_| f32::INFINITY);
        let hooks = Hooks { sparsity: Some(&sparsity), ..Hooks::default() };
        assert_ne!(rows(&mut Hooked { runner: &mut runner, hooks }), plain);
    }
}

// Sparsity.

/// One threshold for some sites.
struct Thresholds<F>(F);

impl<F: Fn(Site) -> f32> Sparsity for Thresholds<F> {
    fn threshold(&self, site: Site) -> f32 {
        assert_eq!(site, shown(site), "a neighbor was asked about");
        (self.0)(site)
    }
}

/// The next logits of two sequences, each in a pass of its own or both in one.
fn next_two(
    runner: &mut Runner,
    ids: &[SequenceId],
    sparsity: Option<&dyn Sparsity>,
) -> [Vec<Vec<u32>>; 2] {
    let mut rows = |parts: &[Part<'_>]| {
        let mut hooks = Hooks { sparsity, ..Hooks::default() };
        let mut output = runner.forward_with(parts, &mut hooks).unwrap();
        bits_of(output.logits().unwrap())
    };
    let parts = [Part::new(ids[0], &[3]), Part::new(ids[1], &[4])];
    let alone = [rows(&parts[..1]), rows(&parts[1..])].concat();
    [alone, rows(&parts)]
}

#[test]
fn a_sparse_row_has_the_bits_of_a_dense_product_with_zeros() {
    for config in [llama(64), biased(16), gemma(16)] {
        for (format, mlp_by_input) in
            WeightFormat::ALL.into_iter().flat_map(|format| [(format, false), (format, true)])
        {
            let options_of = LoadOptions { mlp_by_input, ..LoadOptions::of(format) };
            let model = load(config.clone(), options_of);
            let mut runner = runner(&model, &options(KvType::Bf16));
            let ids = [1, 2].map(|seed| {
                let id = runner.create().unwrap();
                runner.extend(id, &text(20, VOCAB, seed)).unwrap();
                id
            });
            let [dense, both] = next_two(&mut runner, &ids, None);
            assert_same("dense", &both, &dense);
            for threshold in [0.0, 0.3, 1e9] {
                let sparsity = Thresholds(|_| threshold);
                // Two rows are multiplied as a whole.
                let [alone, both] = next_two(&mut runner, &ids, Some(&sparsity));
                assert_same(&format!("{format}, {threshold}"), &alone, &both);
                assert_eq!(alone == dense, threshold == 0.0, "{format}, {threshold}");
            }
        }
    }
}

/// A weight that is NaN shows wherever it is read, whatever its input.
#[test]
fn weights_of_inputs_that_are_left_out_are_not_read() {
    for config in [llama(64), biased(16), gemma(16)] {
        let random = RandomCheckpoint { config: config.clone(), seed: 5 };
        for format in [WeightFormat::F32, WeightFormat::Bf16] {
            for projection in [Projection::Gate, Projection::Up, Projection::Down] {
                let site = Site { layer: 1, projection };
                let broken = NanColumn { random: &random, site, input: 5 };
                let by_input = LoadOptions { mlp_by_input: true, ..LoadOptions::of(format) };
                let model = Arc::new(Model::load(&broken, &config, &by_input).unwrap());
                let next =
                    |hooks: &mut Hooks<'_>| logits(&model, &options(KvType::Bf16), &[&[3]], hooks);
                let mut inputs = Inputs::default();
                next(&mut Hooks { recorder: Some(&mut inputs), ..Hooks::default() });
                let x = inputs.of(shown(site)).row(0);
                let threshold = x[5].abs().next_up();

                for (threshold, is_read) in [(threshold, false), (x[5].abs(), true)] {
                    let of = |at| if at == shown(site) { threshold } else { 0.0 };
                    let sparsity = Thresholds(of);
                    let got = next(&mut Hooks { sparsity: Some(&sparsity), ..Hooks::default() });
                    let is_nan = got.iter().any(|x| x.is_nan());
                    assert_eq!(is_nan, is_read, "{format}, {site:?}, {threshold}");
                }
            }
        }
    }
}

/// A random checkpoint whose weights of one input of a matrix are NaN.
struct NanColumn<'a> {
    random: &'a RandomCheckpoint,
    site: Site,
    input: usize,
}

impl TensorSource for NanColumn<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<DenseTensor, Error> {
        let mut values = self.random.tensor(name, shape)?.to_f32();
        if name == format!("{}.weight", self.site.projection.module(self.site.layer)) {
            for row in values.chunks_exact_mut(shape[1]) {
                row[self.input] = f32::NAN;
            }
        }
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Ok(DenseTensor::new(Dense::F32, bytes))
    }

    fn has(&self, name: &str) -> bool {
        self.random.has(name)
    }
}

/// Sees what products multiply after inputs were left out.
#[derive(Default)]
struct Probe(RefCell<Vec<(Site, Array2<f32>)>>);

impl Adapter for Probe {
    fn add(&self, site: Site, _: &[usize], x: ArrayView2<'_, f32>, _: ArrayViewMut2<'_, f32>) {
        self.0.borrow_mut().push((site, x.to_owned()));
    }
}

#[test]
fn inputs_below_a_threshold_count_as_zeros_and_no_others_do() {
    for config in [llama(16), gemma(16)] {
        let model = load(config.clone(), LoadOptions::default());
        for texts in [&TEXTS[..], &[&[5]]] {
            for chosen in sites(&config, &SHOWN) {
                // One that some inputs reach exactly.
                let mut inputs = Inputs::default();
                let mut hooks = Hooks { recorder: Some(&mut inputs), ..Hooks::default() };
                logits(&model, &options(KvType::Bf16), texts, &mut hooks);
                let threshold = inputs.of(chosen)[[0, 7]].abs();
                assert!(threshold > 0.0);
                let sparsity = Thresholds(|site| if site == chosen { threshold } else { 0.0 });
                let (mut inputs, probe) = (Inputs::default(), Probe::default());
                let mut hooks = Hooks {
                    recorder: Some(&mut inputs),
                    sparsity: Some(&sparsity),
                    adapter: Some(&probe),
                    ..Hooks::default()
                };
                logits(&model, &options(KvType::Bf16), texts, &mut hooks);
                for (site, x) in probe.0.into_inner() {
                    let all = inputs.of(shown(site));
                    let is_chosen = shown(site) == chosen;
                    let want = all.mapv(|x| if is_chosen && x.abs() < threshold { 0.0 } else { x });
                    assert_eq!(x, want, "{site:?}, threshold {threshold} at {chosen:?}");
                    assert_eq!(x != *all, is_chosen, "{site:?}");
                    assert_eq!(x[[0, 7]], all[[0, 7]], "{site:?}");
                }
            }
        }
    }
}

#[test]
fn without_any_input_a_layer_adds_nothing() {
    for config in [llama(16), gemma(16)] {
        let model = load(config.clone(), LoadOptions::default());
        for texts in [&TEXTS[..], &[&[5]]] {
            let sparsity = Thresholds(|site: Site| match site.projection {
                Projection::O | Projection::Down => f32::INFINITY,
                _ => 0.0,
            });
            let mut stream = Stream::default();
            let mut hooks = Hooks {
                observer: Some(&mut stream),
                sparsity: Some(&sparsity),
                ..Hooks::default()
            };
            logits(&model, &options(KvType::Bf16), texts, &mut hooks);
            assert!(stream.0.iter().all(|x| x == stream.0[0]));
        }
    }
}

/// Sums of inputs are not finite where an input is not; it is not left out.
#[test]
fn numbers_that_are_none_are_not_left_out() {
    let mut config = llama(16);
    config.embedding_scale = f32::MAX;
    let model = load(config, LoadOptions::default());
    let sparsity = Thresholds(|_| 0.1);
    for texts in [&TEXTS[..], &[&[5]]] {
        let mut hooks = Hooks { sparsity: Some(&sparsity), ..Hooks::default() };
        let got = logits(&model, &options(KvType::Bf16), texts, &mut hooks);
        let want = logits(&model, &options(KvType::Bf16), texts, &mut Hooks::default());
        for (got, want) in got.iter().zip(&want) {
            assert_eq!(got.is_finite(), want.is_finite());
        }
    }
}

/// Two texts of which only the second has an adapter, on the head.
#[test]
fn the_head_is_asked_about_with_the_logits() {
    let config = gemma(16);
    let head = Site { layer: config.n_layers(), projection: Projection::Head };
    let model = load(config.clone(), LoadOptions::default());
    let adapters = RankOne::new(vec![adapter(&config, &[head], 0.1)], vec![None, Some(0)]);
    let (first, second) = (text(5, VOCAB, 1), text(4, VOCAB, 2));
    let mut runner = runner(&model, &options(KvType::Bf16));
    let ids = [(); 2].map(|()| runner.create().unwrap());
    let parts = [
        Part::new(ids[0], &first).with_logits(Wanted::From(3)),
        Part::new(ids[1], &second).with_logits(Wanted::All),
    ];
    let mut output = runner.forward(&parts).unwrap();
    let (hidden, without) = (output.hidden().to_owned(), output.logits().unwrap().to_owned());
    let mut recorder = Inputs::default();
    let mut hooks =
        Hooks { adapter: Some(&adapters), recorder: Some(&mut recorder), ..Hooks::default() };
    let with = output.logits_with(&mut hooks).unwrap();
    assert_eq!(*adapters.calls.borrow(), [head]);
    assert_eq!(recorder.0, [(head, hidden.clone())]);

    let cap = config.logit_softcap.unwrap();
    let [a, b] = &adapters.adapters[0][&head];
    let mut moved = 0.0_f32;
    for (row, (with, without)) in with.outer_iter().zip(without.outer_iter()).enumerate() {
        let dot: f32 = hidden.row(row).iter().zip(a).map(|(x, a)| x * a).sum();
        for ((with, without), b) in with.iter().zip(without).zip(b) {
            if row < 2 {
                assert_eq!(with.to_bits(), without.to_bits());
                continue;
            }
            // The cap comes behind the adapter.
            let want = cap * ((without / cap).atanh() + b * dot / cap).tanh();
            assert!((with - want).abs() < 1e-3, "row {row}: {with}, not {want}");
            moved = moved.max((with - without).abs());
        }
    }
    assert!(moved > 0.01, "{moved}");
}
