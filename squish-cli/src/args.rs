//! The command line.

use std::{fmt::Debug, path::PathBuf, str::FromStr};

use clap::{
    Parser, Subcommand, ValueEnum, builder::PossibleValuesParser, builder::TypedValueParser,
};
use squish_model::{KvType, SavedLayout, WeightFormat};

/// Llama-type checkpoints on CPUs: generate, evaluate, quantize, inspect.
#[derive(Debug, Parser)]
#[command(name = "squish", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  squish inspect MODEL                                   what is in a checkpoint, and the memory it takes
  squish generate MODEL --prompt \"Once upon a time\"      a text goes on
  squish generate MODEL --chat \"What is a mutex?\"        an answer, by the model's template
  squish eval ppl MODEL texts.jsonl --weights mxfp4      perplexity with weights of four bits
  squish quantize MODEL OUT --to int4                    a checkpoint of four bits

MODEL is a folder as on the Hugging Face hub: config.json, tokenizer.json, safetensors files.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Goes on with a prompt or answers a message, as a stream.
    Generate(GenerateArgs),
    /// Measures a model on texts: perplexity, or how far it is from another.
    Eval(EvalArgs),
    /// Writes a checkpoint whose matrices are in another format.
    Quantize(QuantizeArgs),
    /// Lists tensors, parameters and the memory that a model takes.
    Inspect(InspectArgs),
}

/// A model and how it is packed.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ModelArgs {
    /// Folder of the checkpoint.
    pub(crate) model: PathBuf,
    /// Format of the layers' matrices: as they are stored, or repacked while loading.
    #[arg(long, value_name = "FORMAT", default_value = "stored", value_parser = formats())]
    pub(crate) weights: WeightFormat,
    /// Format of the head; by default as it is stored.
    #[arg(long, value_name = "FORMAT", default_value = "stored", value_parser = formats())]
    pub(crate) head: WeightFormat,
    /// Type of keys and values.
    #[arg(long, value_name = "TYPE", default_value = "bf16", value_parser = kv_types())]
    pub(crate) kv: KvType,
    /// Products with inputs that are not rounded, and keys and values in f32: slower, and exact.
    #[arg(long)]
    pub(crate) exact: bool,
    /// Threads; by default as many as the machine has.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
}

fn formats() -> impl TypedValueParser<Value = WeightFormat> {
    named(WeightFormat::ALL.map(WeightFormat::name))
}

fn kv_types() -> impl TypedValueParser<Value = KvType> {
    named(KvType::ALL.map(KvType::name))
}

fn layouts() -> impl TypedValueParser<Value = SavedLayout> {
    named(SavedLayout::ALL.map(SavedLayout::name))
}

/// What has one of these names.
fn named<T, const N: usize>(names: [&'static str; N]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: Debug> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).map(|name| name.parse().expect("one of the possible values"))
}

#[derive(Debug, clap::Args)]
#[command(after_help = GENERATE_EXAMPLES)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Text to go on with; without one, and without a chat, the model begins by itself.
    #[arg(long, short, value_name = "TEXT", conflicts_with = "chat")]
    pub(crate) prompt: Option<String>,
    /// A message to answer, by the model's chat template.
    #[arg(long, short, value_name = "MESSAGE")]
    pub(crate) chat: Option<String>,
    /// What the model is told before the message.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
    /// Tokens to generate at most; by default as many as fit the context, 256 at most.
    #[arg(long, short = 'n', value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// The likeliest token each time.
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p"])]
    pub(crate) greedy: bool,
    /// Divides logits; 0 is greedy.
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f64>,
    /// Of the likeliest N tokens.
    #[arg(long, value_name = "N")]
    pub(crate) top_k: Option<usize>,
    /// Of the likeliest tokens that have this probability together.
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f64>,
    /// Of tokens that are at least this likely, beside the likeliest.
    #[arg(long, value_name = "P")]
    pub(crate) min_p: Option<f64>,
    /// Above 1, what was said becomes less likely.
    #[arg(long, value_name = "X")]
    pub(crate) repetition_penalty: Option<f64>,
    /// The same seed gives the same text.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Ends the text before this; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// One JSON object at the end instead of a stream.
    #[arg(long)]
    pub(crate) json: bool,
}

const GENERATE_EXAMPLES: &str = "\
Examples:
  squish generate MODEL --prompt \"fn main() {\" --greedy -n 64
  squish generate MODEL --chat \"Name three fruits.\" --temperature 0.7 --seed 1
  squish generate MODEL --prompt \"1, 2, 3,\" --weights mxfp4 --kv fp8-e4m3 --threads 2 --json";

#[derive(Debug, clap::Args)]
pub(crate) struct EvalArgs {
    #[command(subcommand)]
    pub(crate) measure: Measure,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Measure {
    /// Perplexity by a named recipe.
    #[command(after_help = PPL_EXAMPLES)]
    Ppl(PplArgs),
    /// Divergence from a base: of the same model as it is stored, of another, or of logits in a file.
    #[command(after_help = KL_EXAMPLES)]
    Kl(KlArgs),
}

/// Texts, and how they are cut.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TextArgs {
    /// A text file, or one JSON object with a `text` on each line (`.jsonl`).
    pub(crate) file: PathBuf,
    /// How a text is cut into windows.
    #[arg(long, value_enum, default_value_t = RecipeName::Strided)]
    pub(crate) recipe: RecipeName,
    /// Tokens of a window; by default the model's context, 2048 at most.
    #[arg(long, value_name = "N")]
    pub(crate) window: Option<usize>,
    /// Tokens from a window to the next; by default half a window.
    #[arg(long, value_name = "N")]
    pub(crate) stride: Option<usize>,
    /// Texts of the file at most.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// One JSON object instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Recipes by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RecipeName {
    /// Windows that overlap, every token once.
    Strided,
    /// As in the documentation of transformers, which weighs windows.
    HfDoc,
    /// The second half of windows that do not overlap.
    LlamaCpp,
    /// As lm-evaluation-harness rolls over a text.
    LmEval,
}

#[derive(Debug, clap::Args)]
pub(crate) struct PplArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) texts: TextArgs,
}

const PPL_EXAMPLES: &str = "\
Examples:
  squish eval ppl MODEL wiki.txt
  squish eval ppl MODEL texts.jsonl --recipe llama-cpp --window 512
  squish eval ppl MODEL texts.jsonl --weights int4 --json";

#[derive(Debug, clap::Args)]
pub(crate) struct KlArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) texts: TextArgs,
    /// Folder of the base; by default the same model as it is stored, with nothing rounded.
    #[arg(long, value_name = "MODEL", conflicts_with = "base_logits")]
    pub(crate) base: Option<PathBuf>,
    /// The base's logits in a file of llama.cpp's format; the texts are the tokens that it holds.
    #[arg(long, value_name = "FILE", conflicts_with = "save_logits")]
    pub(crate) base_logits: Option<PathBuf>,
    /// Writes the base's logits to a file of llama.cpp's format.
    #[arg(long, value_name = "FILE")]
    pub(crate) save_logits: Option<PathBuf>,
}

const KL_EXAMPLES: &str = "\
Examples:
  squish eval kl MODEL texts.jsonl --weights mxfp4
  squish eval kl QUANTIZED texts.jsonl --base MODEL
  squish eval kl MODEL wiki.txt --weights int4 --base-logits base.kld";

#[derive(Debug, clap::Args)]
#[command(after_help = QUANTIZE_EXAMPLES)]
pub(crate) struct QuantizeArgs {
    /// Folder of the checkpoint.
    pub(crate) model: PathBuf,
    /// Folder to write; must not exist.
    pub(crate) out: PathBuf,
    /// Format of the layers' matrices.
    #[arg(long, value_name = "FORMAT", default_value = "int4", value_parser = formats())]
    pub(crate) to: WeightFormat,
    /// Format of the head; by default as it is stored.
    #[arg(long, value_name = "FORMAT", default_value = "stored", value_parser = formats())]
    pub(crate) head: WeightFormat,
    /// How the weights are laid out: for vLLM, transformers and this program, or as products read it, for this program alone, which
    /// maps it.
    #[arg(long, value_name = "LAYOUT", default_value = "compressed-tensors", value_parser = layouts())]
    pub(crate) layout: SavedLayout,
    /// Texts to calibrate with, which the model reads first: a text file, or one JSON object with a `text` on each line (`.jsonl`).
    #[arg(long, value_name = "FILE", requires = "method")]
    pub(crate) calib: Option<PathBuf>,
    /// What is calibrated: weights (awq, smooth), or scales that inputs are rounded with, of fp8-e4m3 and int8 (the others).
    #[arg(long, value_enum, requires = "calib")]
    pub(crate) method: Option<MethodName>,
    /// Texts of the file at most.
    #[arg(long, value_name = "N", requires = "calib")]
    pub(crate) calib_limit: Option<usize>,
    /// Tokens of a window, which longer texts are cut into; by default the model's context, 2048 at most.
    #[arg(long, value_name = "N", requires = "calib")]
    pub(crate) calib_window: Option<usize>,
    /// One JSON object instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

const QUANTIZE_EXAMPLES: &str = "\
Examples:
  squish quantize MODEL MODEL-int4 --to int4
  squish quantize MODEL MODEL-fp8 --to fp8-e4m3
  squish quantize MODEL MODEL-awq --to int4 --calib texts.jsonl --method awq
  squish quantize MODEL MODEL-mapped --to mxfp4 --layout squish";

/// Methods of calibration by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MethodName {
    /// Scales of input channels with which rounded weights multiply samples best.
    Awq,
    /// Scales of input channels that share outliers of inputs with the weights.
    Smooth,
    /// Inputs up to their largest magnitude.
    Minmax,
    /// Inputs up to the 99.99th percentile of their magnitudes.
    Percentile,
    /// Inputs up to where their squared error is least.
    Mse,
    /// Inputs up to where the divergence of their distribution is least.
    Entropy,
}

#[derive(Debug, clap::Args)]
#[command(after_help = INSPECT_EXAMPLES)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Tokens of context that memory is estimated for; by default the model's context.
    #[arg(long, value_name = "N")]
    pub(crate) context: Option<usize>,
    /// Every tensor, not only their kinds.
    #[arg(long)]
    pub(crate) tensors: bool,
    /// One JSON object instead of tables.
    #[arg(long)]
    pub(crate) json: bool,
}

const INSPECT_EXAMPLES: &str = "\
Examples:
  squish inspect MODEL
  squish inspect MODEL --weights mxfp4 --kv fp8-e4m3 --context 8192
  squish inspect MODEL --tensors --json";
