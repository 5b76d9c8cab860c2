//! `squish eval`: perplexity, and divergence from a base.

use std::{
    fs::File,
    io::{BufReader, BufWriter},
    path::Path,
};

use serde::Serialize;
use squish_eval::{
    EvalError, KlReport, KlStats, LogitsReader, Nll, Recipe, compare_with_base, divergence,
    perplexity, write_base,
};
use squish_model::{GenerationConfig, Runner};

use crate::{
    args::{EvalArgs, KlArgs, Measure, ModelArgs, PplArgs, RecipeName, TextArgs},
    error::Error,
    load::{Loaded, kv_type, runner},
    output::{count, print, print_json, progress, table},
    texts,
};

pub(crate) fn eval(args: &EvalArgs) -> Result<(), Error> {
    match &args.measure {
        Measure::Ppl(args) => ppl(args),
        Measure::Kl(args) => kl(args),
    }
}

/// A text as a recipe wants it.
struct Text {
    tokens: Vec<u32>,
    n_bytes: usize,
}

/// The recipe of a command, and the texts that are long enough for it.
struct Plan {
    recipe: Recipe,
    texts: Vec<Text>,
    n_too_short: usize,
}

impl Plan {
    fn new(args: &TextArgs, model: &ModelArgs, loaded: &Loaded) -> Result<Self, Error> {
        let config = loaded.model.config();
        let window = args.window.unwrap_or(config.max_position_embeddings.min(2048));
        let stride = args.stride.unwrap_or((window / 2).max(1));
        let generation = GenerationConfig::open(&model.model)?;
        let tokenizer = &loaded.tokenizer;
        // What the tokenizer puts before an empty text.
        let bos = tokenizer.encode("")?.first().copied();
        let (recipe, with_bos) = match args.recipe {
            RecipeName::Strided => {
                (Recipe::Strided { max_len: window, stride, prefix: None }, true)
            }
            RecipeName::HfDoc => (Recipe::HfDoc { max_len: window, stride }, true),
            RecipeName::LlamaCpp => (Recipe::LlamaCpp { n_ctx: window, bos }, true),
            RecipeName::LmEval => {
                let eos = || generation.eos_token_ids.first().copied();
                let prefix = bos.or(generation.bos_token_id).or_else(eos).unwrap_or(0);
                (Recipe::LmEvalRolling { max_len: window, context_len: 1, prefix }, false)
            }
        };
        let (mut long_enough, mut n_too_short) = (Vec::new(), 0);
        for text in texts::read(&args.file, args.limit)? {
            let tokens =
                if with_bos { tokenizer.encode(&text)? } else { tokenizer.encode_plain(&text)? };
            if recipe.windows(tokens.len()).is_ok() {
                long_enough.push(Text { tokens, n_bytes: text.len() });
            } else {
                // The recipe's own numbers are wrong, or the text is too short.
                recipe.windows(usize::MAX / 4)?;
                n_too_short += 1;
            }
        }
        if long_enough.is_empty() {
            let n_tokens = match recipe.windows(0) {
                Err(EvalError::TooFewTokens { expected, .. }) => expected,
                _ => 1,
            };
            return Err(Error::NoText { path: args.file.clone(), n_tokens });
        }
        Ok(Self { recipe, texts: long_enough, n_too_short })
    }

    /// A runner whose caches hold a piece of the longest windows, or a batch of short ones.
    fn runner(&self, args: &ModelArgs, loaded: &Loaded) -> Result<Runner, Error> {
        let longest = self.texts.iter().map(|text| text.tokens.len()).max().unwrap_or(1);
        let n_fed = match self.recipe {
            Recipe::LlamaCpp { n_ctx, .. } => n_ctx,
            Recipe::Strided { max_len, .. }
            | Recipe::HfDoc { max_len, .. }
            | Recipe::LmEvalRolling { max_len, .. } => max_len + 1,
            _ => longest,
        };
        runner(args, &loaded.model, n_fed.min(longest + 1).max(512), 8)
    }
}

/// The object of `--json` of `ppl`.
#[derive(Serialize)]
struct PplReport {
    perplexity: f64,
    std_err: Option<f64>,
    nats_per_token: f64,
    bits_per_byte: Option<f64>,
    tokens: u64,
    impossible: u64,
    texts: usize,
    too_short: usize,
    recipe: String,
    weights: String,
    kv: &'static str,
    exact: bool,
}

fn ppl(args: &PplArgs) -> Result<(), Error> {
    let loaded = Loaded::open(&args.model)?;
    let plan = Plan::new(&args.texts, &args.model, &loaded)?;
    let mut runner = plan.runner(&args.model, &loaded)?;
    let bar = progress("texts", plan.texts.len() as u64);
    let mut nll = Nll::default();
    let (mut weighted, mut n_bytes) = ((0.0, 0.0), 0);
    for text in &plan.texts {
        let of_text = perplexity(&mut runner, &text.tokens, plan.recipe)?;
        nll += of_text.nll;
        let weight = of_text.nll.n_tokens() as f64;
        weighted = (weighted.0 + of_text.mean * weight, weighted.1 + weight);
        n_bytes += text.n_bytes;
        bar.inc(1);
    }
    bar.finish_and_clear();
    // The recipe's own mean of each text, as often as the text has tokens.
    let mean = weighted.0 / weighted.1;
    let scores_all = !matches!(plan.recipe, Recipe::LlamaCpp { .. });
    let report = PplReport {
        perplexity: mean.exp(),
        std_err: nll.std_err().map(|error| error * mean.exp()),
        nats_per_token: mean,
        bits_per_byte: if scores_all { nll.bits_per_byte(n_bytes as u64) } else { None },
        tokens: nll.n_tokens(),
        impossible: nll.n_impossible(),
        texts: plan.texts.len(),
        too_short: plan.n_too_short,
        recipe: plan.recipe.to_string(),
        weights: args.model.weights.to_string(),
        kv: kv_type(&args.model).name(),
        exact: args.model.exact,
    };
    if args.texts.json {
        return print_json(&report);
    }
    let mut rows = table(["", "value"], &[1]);
    let error = report.std_err.map_or_else(String::new, |error| format!(" ± {error:.4}"));
    rows.add_row(["perplexity", &format!("{:.4}{error}", report.perplexity)]);
    rows.add_row(["nats per token", &format!("{:.4}", report.nats_per_token)]);
    if let Some(bits) = report.bits_per_byte {
        rows.add_row(["bits per byte", &format!("{bits:.4}")]);
    }
    rows.add_row(["tokens scored", &count(report.tokens as usize)]);
    if report.impossible > 0 {
        rows.add_row(["impossible tokens", &count(report.impossible as usize)]);
    }
    rows.add_row(["texts", &count(report.texts)]);
    if report.too_short > 0 {
        rows.add_row(["texts too short", &count(report.too_short)]);
    }
    rows.add_row(["recipe", &report.recipe]);
    rows.add_row(["weights, keys and values", &format!("{}, {}", report.weights, report.kv)]);
    print(rows)
}

/// The object of `--json` of `kl`.
#[derive(Serialize)]
struct KlObject {
    mean_kl: f64,
    mean_kl_std_err: Option<f64>,
    median_kl: f64,
    p99_kl: f64,
    max_kl: f64,
    same_top: f64,
    same_top_std_err: Option<f64>,
    rms_delta_p: f64,
    base_perplexity: Option<f64>,
    perplexity: Option<f64>,
    perplexity_ratio: Option<f64>,
    perplexity_ratio_std_err: Option<f64>,
    tokens: u64,
    recipe: String,
    base: String,
}

fn kl(args: &KlArgs) -> Result<(), Error> {
    let loaded = Loaded::open(&args.model)?;
    let (report, recipe, base) = match &args.base_logits {
        Some(file) => from_file(args, &loaded, file)?,
        None => from_model(args, &loaded)?,
    };
    let object = object(&report, recipe.to_string(), base);
    if args.texts.json { print_json(&object) } else { show(&object) }
}

fn from_file(
    args: &KlArgs,
    loaded: &Loaded,
    file: &Path,
) -> Result<(KlReport, Recipe, String), Error> {
    let source = BufReader::new(File::open(file).map_err(Error::file("open", file))?);
    let mut reader = LogitsReader::new(source)?;
    let bos = loaded.tokenizer.encode("")?.first().copied();
    let n_ctx = reader.n_ctx();
    let mut runner = runner(&args.model, &loaded.model, n_ctx.max(512), 8)?;
    let stats = compare_with_base(&mut runner, &mut reader, bos)?;
    let report =
        stats.report().ok_or_else(|| Error::NoText { path: file.to_owned(), n_tokens: 1 })?;
    Ok((report, Recipe::LlamaCpp { n_ctx, bos }, file.display().to_string()))
}

fn from_model(args: &KlArgs, loaded: &Loaded) -> Result<(KlReport, Recipe, String), Error> {
    let plan = Plan::new(&args.texts, &args.model, loaded)?;
    // As it is stored, with nothing rounded.
    let base_args = ModelArgs {
        model: args.base.clone().unwrap_or_else(|| args.model.model.clone()),
        weights: squish_model::WeightFormat::Stored,
        head: squish_model::WeightFormat::Stored,
        exact: true,
        ..args.model.clone()
    };
    let base = Loaded::open(&base_args)?;
    let [base_vocab, vocab] = [&base, loaded].map(|loaded| loaded.model.config().vocab_size);
    if base_vocab != vocab {
        return Err(Error::Vocabulary { base: base_vocab, model: vocab });
    }
    let mut base_runner = plan.runner(&base_args, &base)?;
    let mut runner = plan.runner(&args.model, loaded)?;
    if let Some(path) = &args.save_logits {
        save(&mut base_runner, &plan, path)?;
    }
    let bar = progress("texts", plan.texts.len() as u64);
    let mut stats = KlStats::default();
    for text in &plan.texts {
        divergence(&mut base_runner, &mut runner, &text.tokens, plan.recipe, &mut stats)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let report = stats.report().expect("every text has a token that is scored");
    Ok((report, plan.recipe, format!("{}, exact", base_args.model.display())))
}

/// The logits of all texts, one behind the other, in windows that do not overlap.
fn save(base: &mut Runner, plan: &Plan, path: &Path) -> Result<(), Error> {
    let (n_ctx, bos) = match plan.recipe {
        Recipe::LlamaCpp { n_ctx, bos } => (n_ctx, bos),
        Recipe::Strided { max_len, .. }
        | Recipe::HfDoc { max_len, .. }
        | Recipe::LmEvalRolling { max_len, .. } => (max_len, None),
        _ => (512, None),
    };
    let tokens: Vec<u32> = plan.texts.iter().flat_map(|text| &text.tokens).copied().collect();
    let file = BufWriter::new(File::create_new(path).map_err(Error::file("create", path))?);
    let file = write_base(base, &tokens, n_ctx, bos, file)?;
    file.into_inner().map_err(|error| Error::file("write", path)(error.into_error()))?;
    Ok(())
}

fn object(report: &KlReport, recipe: String, base: String) -> KlObject {
    let ratio = report.perplexities.map(|perplexities| perplexities.ratio);
    KlObject {
        mean_kl: report.kl.mean.value,
        mean_kl_std_err: report.kl.mean.std_err,
        median_kl: report.kl.percentile(0.5),
        p99_kl: report.kl.percentile(0.99),
        max_kl: report.kl.percentile(1.0),
        same_top: report.same_top.value,
        same_top_std_err: report.same_top.std_err,
        rms_delta_p: report.delta_p_rms.value,
        base_perplexity: report.base.perplexity(),
        perplexity: report.other.perplexity(),
        perplexity_ratio: ratio.map(|ratio| ratio.value),
        perplexity_ratio_std_err: ratio.and_then(|ratio| ratio.std_err),
        tokens: report.base.n_tokens(),
        recipe,
        base,
    }
}

fn show(object: &KlObject) -> Result<(), Error> {
    let with_error = |value: f64, error: Option<f64>, digits: usize| match error {
        Some(error) => format!("{value:.digits$} ± {error:.digits$}"),
        None => format!("{value:.digits$}"),
    };
    let number = |value: Option<f64>| value.map_or_else(|| "—".to_owned(), |x| format!("{x:.4}"));
    let mut rows = table(["", "value"], &[1]);
    rows.add_row(["mean KL", &with_error(object.mean_kl, object.mean_kl_std_err, 6)]);
    rows.add_row(["median KL", &format!("{:.6}", object.median_kl)]);
    rows.add_row(["99 % of tokens below", &format!("{:.6}", object.p99_kl)]);
    rows.add_row(["largest KL", &format!("{:.6}", object.max_kl)]);
    let percent = |x: f64| 100.0 * x;
    let same = with_error(percent(object.same_top), object.same_top_std_err.map(percent), 2);
    rows.add_row(["same likeliest token, %", &same]);
    rows.add_row([
        "RMS of change in probability, %",
        &format!("{:.3}", percent(object.rms_delta_p)),
    ]);
    rows.add_row(["perplexity of the base", &number(object.base_perplexity)]);
    rows.add_row(["perplexity", &number(object.perplexity)]);
    if let Some(ratio) = object.perplexity_ratio {
        rows.add_row(["ratio", &with_error(ratio, object.perplexity_ratio_std_err, 5)]);
    }
    rows.add_row(["tokens", &count(object.tokens as usize)]);
    rows.add_row(["recipe", &object.recipe]);
    rows.add_row(["base", &object.base]);
    print(rows)
}
