//! The checkpoint, the held-out texts, and how likelihoods are taken of them.

use std::{fs, sync::Arc};

use serde_json::Value;
use squish_bench::Cell;
use squish_eval::{
    CausalLm, Estimate, KlReport, KlStats, Nll, Recipe, ScoredRow, for_each_row, perplexity,
};
use squish_model::{
    Activation, Checkpoint, Config, Error, KvOptions, KvType, LoadOptions, Model, Runner,
    RunnerOptions, Team, TensorSource, Tokenizer,
};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tiny");

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Effort {
    /// Texts of each kind.
    pub(crate) texts_per_kind: usize,
    /// Tokens of a text at most; what the model was trained for.
    pub(crate) context: usize,
    /// Long texts.
    pub(crate) n_streams: usize,
    /// Requests of the trace.
    pub(crate) n_requests: usize,
}

impl Effort {
    pub(crate) const FULL: Self =
        Self { texts_per_kind: 16, context: 512, n_streams: 12, n_requests: 200 };
    pub(crate) const QUICK: Self = Self { texts_per_kind: 2, n_streams: 2, ..Self::FULL };
    pub(crate) const TEST: Self =
        Self { texts_per_kind: 1, context: 32, n_streams: 2, n_requests: 20 };

    /// Tokens of a long text.
    pub(crate) const fn stream_len(self) -> usize {
        8 * self.context
    }
}

/// A kind of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Prose,
    Code,
    Tool,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Prose, Self::Code, Self::Tool];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Prose => "prose",
            Self::Code => "code",
            Self::Tool => "tool",
        }
    }
}

/// What every section works with.
pub(crate) struct Setup {
    pub(crate) effort: Effort,
    checkpoint: Checkpoint,
    pub(crate) config: Config,
    /// Beginnings of texts, by kind.
    texts: [Vec<Vec<u32>>; 3],
    /// Beginnings of other texts, of all kinds.
    unscored: Vec<Vec<u32>>,
    /// All texts of a kind one behind the other, by kind.
    joined: [Vec<u32>; 3],
    team: Arc<Team>,
}

impl Setup {
    pub(crate) fn new(effort: Effort) -> Self {
        let base = format!("{FIXTURES}/base");
        let tokenizer = Tokenizer::from_file(format!("{base}/tokenizer.json"));
        let tokenizer = tokenizer.expect("the fixture has a tokenizer");
        let all = Kind::ALL.map(|kind| texts(kind, &tokenizer));
        let texts = all.each_ref().map(|texts| spread(texts, effort));
        let unscored = all.iter().flat_map(|texts| spread(&others(texts, effort), effort));
        let unscored = unscored.collect();
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            effort,
            checkpoint: Checkpoint::open(&base).expect("the fixture is a checkpoint"),
            config: Config::open(&base).expect("the fixture has a configuration"),
            texts,
            unscored,
            joined: all.map(|texts| texts.concat()),
            team: Arc::new(Team::new(n_threads).expect("threads")),
        }
    }

    /// The tensors of the checkpoint.
    pub(crate) fn source(&self) -> &dyn TensorSource {
        &self.checkpoint
    }

    /// The beginnings of some texts.
    pub(crate) fn texts(&self, kind: Kind) -> &[Vec<u32>] {
        &self.texts[kind as usize]
    }

    /// The beginnings of texts that none of [`texts`](Self::texts) is of, of all kinds: for calibration.
    pub(crate) fn unscored(&self) -> &[Vec<u32>] {
        &self.unscored
    }

    /// Long texts: pieces of all texts of a kind one behind the other, prose and code in turn. Each text begins with BOS, which stands
    /// between documents in training, too.
    pub(crate) fn streams(&self) -> Vec<&[u32]> {
        let (n, len) = (self.effort.n_streams, self.effort.stream_len());
        let of_kind = |kind: Kind| self.joined[kind as usize].chunks_exact(len);
        let streams = of_kind(Kind::Prose).zip(of_kind(Kind::Code));
        let streams: Vec<&[u32]> =
            streams.flat_map(|(prose, code)| [prose, code]).take(n).collect();
        assert_eq!(streams.len(), n, "the held-out texts are long enough");
        streams
    }

    /// How the beginnings of texts are scored: each is one window.
    pub(crate) fn recipe(&self) -> Recipe {
        let context = self.effort.context;
        Recipe::Strided { max_len: context, stride: context, prefix: None }
    }

    /// What was scored, in words.
    pub(crate) fn texts_note(&self, kinds: &[Kind]) -> String {
        let of_kind = |kind: &Kind| {
            let texts = self.texts(*kind);
            let n_scored: usize = texts.iter().map(|text| text.len() - 1).sum();
            format!("{} of {} ({n_scored} tokens scored)", texts.len(), kind.name())
        };
        let texts: Vec<String> = kinds.iter().map(of_kind).collect();
        format!(
            "the first {} tokens at most of held-out texts, {}, each text one window (recipe: {})",
            self.effort.context,
            texts.join(", "),
            self.recipe()
        )
    }

    /// The model as it is.
    pub(crate) fn exact_model(&self) -> Model {
        load(self.source(), &self.config)
    }

    /// One sequence of `model` with keys and values of this type.
    pub(crate) fn runner(&self, model: impl Into<Arc<Model>>, kv_type: KvType) -> Runner {
        let kv = KvOptions { kv_type, n_tokens: self.effort.stream_len(), ..KvOptions::default() };
        self.runner_with(model, &RunnerOptions { kv, ..RunnerOptions::default() })
    }

    pub(crate) fn runner_with(
        &self,
        model: impl Into<Arc<Model>>,
        options: &RunnerOptions,
    ) -> Runner {
        Runner::with_team(model, Arc::clone(&self.team), options).expect("options of the model")
    }

    /// The likelihood of the beginnings of texts of a kind.
    pub(crate) fn nll(&self, runner: &mut Runner, kind: Kind) -> Nll {
        let of_text = |text: &Vec<u32>| {
            perplexity(runner, text, self.recipe()).expect("texts fit the model").nll
        };
        self.texts(kind).iter().map(of_text).sum()
    }

    /// All logits of the beginnings of texts of a kind, row after row.
    pub(crate) fn logits(&self, runner: &mut Runner, kind: Kind) -> Vec<f32> {
        let mut logits = Vec::new();
        self.each_row(runner, kind, |row| {
            logits.extend_from_slice(row.logits);
            Ok(())
        });
        logits
    }

    /// How far a model is from one with these logits.
    pub(crate) fn compare(
        &self,
        runner: &mut impl CausalLm<Error = Error>,
        kind: Kind,
        base: &[f32],
    ) -> KlReport {
        let mut stats = KlStats::default();
        let mut base = base.chunks_exact(self.config.vocab_size);
        self.each_row(runner, kind, |row| {
            let base = base.next().expect("as many rows of both models");
            stats.push(base, row.logits, row.token)
        });
        stats.report().expect("texts have tokens")
    }

    fn each_row(
        &self,
        runner: &mut impl CausalLm<Error = Error>,
        kind: Kind,
        mut sink: impl FnMut(ScoredRow<'_>) -> squish_eval::Result<()>,
    ) {
        for text in self.texts(kind) {
            for_each_row(runner, text, self.recipe(), &mut sink).expect("texts fit the model");
        }
    }
}

/// A model with weights as they are stored, of the checkpoint or of another source, and inputs that are not rounded.
pub(crate) fn load(source: &dyn TensorSource, config: &Config) -> Model {
    let exact = LoadOptions { activation: Some(Activation::F32), ..LoadOptions::default() };
    Model::load(source, config, &exact).expect("the fixture's tensors")
}

/// The perplexity of tokens that are all possible.
pub(crate) fn ppl(nll: Nll) -> f64 {
    nll.perplexity().expect("tokens were scored")
}

/// Perplexity, its difference from that of the base, divergence, and how often both prefer the same token: cells of a row.
pub(crate) fn cells_of(report: &KlReport) -> [Cell; 4] {
    let perplexities = report.perplexities.expect("logits are finite");
    [
        ppl(report.other).into(),
        estimate(perplexities.difference),
        estimate(report.kl.mean),
        report.same_top.value.into(),
    ]
}

/// A number with its error.
fn estimate(Estimate { value, std_err }: Estimate) -> Cell {
    std_err.map_or(Cell::Number(value), |std_err| Cell::Estimate { value, std_err })
}

/// The tokens of all texts of a kind.
fn texts(kind: Kind, tokenizer: &Tokenizer) -> Vec<Vec<u32>> {
    let lines = fs::read_to_string(format!("{FIXTURES}/heldout/{}.jsonl", kind.name()));
    let lines = lines.expect("the fixture has held-out texts");
    let tokens = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("each line is a JSON object");
        let text = line["text"].as_str().expect("each object has a text");
        tokenizer.encode(text).expect("any text can be encoded")
    };
    lines.lines().map(tokens).collect()
}

/// Beginnings of texts spread over all, so that they are of different documents.
fn spread(texts: &[Vec<u32>], effort: Effort) -> Vec<Vec<u32>> {
    let of = |i: usize| {
        let text = &texts[place(i, texts.len(), effort)];
        text[..text.len().min(effort.context)].to_vec()
    };
    (0..effort.texts_per_kind).map(of).collect()
}

/// Texts that [`spread`] leaves out.
fn others(texts: &[Vec<u32>], effort: Effort) -> Vec<Vec<u32>> {
    let n = effort.texts_per_kind;
    let is_taken = |idx| (0..n).any(|i| place(i, texts.len(), effort) == idx);
    let others = texts.iter().enumerate().filter(|(idx, _)| !is_taken(*idx));
    others.map(|(_, text)| text.clone()).collect()
}

/// Where text number `i` of those that are spread over `n_texts` stands.
fn place(i: usize, n_texts: usize, effort: Effort) -> usize {
    i * n_texts / effort.texts_per_kind
}
