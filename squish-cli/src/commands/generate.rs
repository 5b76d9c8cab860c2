//! `squish generate`: a prompt goes on, or a message is answered.

use std::{
    io::{self, Write},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use squish_model::{
    ChatTemplate, Finish, GenerateOptions, Generation, GenerationConfig, SamplingOverrides,
    chat::{ChatOptions, ChatValue, LocalTime},
};

use crate::{
    args::GenerateArgs,
    error::Error,
    load::{Loaded, runner},
    output::print_json,
};

/// Tokens to generate where nobody says.
const MAX_NEW_TOKENS: usize = 256;

/// The object of `--json`.
#[derive(Serialize)]
struct Report {
    text: String,
    finish: &'static str,
    prompt_tokens: usize,
    tokens: usize,
    seconds_to_first_token: f64,
    prompt_tokens_per_second: f64,
    tokens_per_second: Option<f64>,
}

/// When tokens came.
struct Times {
    began: Instant,
    first: Option<Duration>,
    last: Duration,
}

pub(crate) fn generate(args: &GenerateArgs) -> Result<(), Error> {
    let loaded = Loaded::open(&args.model)?;
    let generation = GenerationConfig::open(&args.model.model)?;
    let prompt = prompt(args, &loaded, &generation)?;
    let context = loaded.model.config().max_position_embeddings;
    let room = context.saturating_sub(prompt.len());
    let wanted = args.max_tokens.or(generation.max_new_tokens).unwrap_or(MAX_NEW_TOKENS);
    let max_new_tokens = wanted.min(room);
    let overrides = SamplingOverrides {
        temperature: if args.greedy { Some(0.0) } else { args.temperature },
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        ..SamplingOverrides::default()
    };
    let options = GenerateOptions {
        sampling: generation.sampling_with(overrides),
        seed: args.seed,
        max_new_tokens,
        eos_token_ids: &generation.eos_token_ids,
        stop: &args.stop,
    };
    let n_tokens = (prompt.len() + max_new_tokens).max(1);
    let mut runner = runner(&args.model, &loaded.model, n_tokens, 1)?;
    let mut times = Times { began: Instant::now(), first: None, last: Duration::ZERO };
    let mut generation = Generation::new(&mut runner, &loaded.tokenizer, &prompt, &options)?;
    let (mut all, mut piece) = (String::new(), String::new());
    while generation.step(&mut piece)?.is_some() {
        times.last = times.began.elapsed();
        times.first.get_or_insert(times.last);
        if !args.json {
            let mut stdout = io::stdout().lock();
            stdout.write_all(piece.as_bytes())?;
            stdout.flush()?;
        }
        all.push_str(&piece);
        piece.clear();
    }
    let report = report(&generation, &times, all);
    if args.json { print_json(&report) } else { close(&report) }
}

/// The tokens to go on with.
fn prompt(
    args: &GenerateArgs,
    loaded: &Loaded,
    generation: &GenerationConfig,
) -> Result<Vec<u32>, Error> {
    if let Some(message) = &args.chat {
        let template = ChatTemplate::open(&args.model.model)?;
        let turn =
            |role: &str, content: &str| serde_json::json!({ "role": role, "content": content });
        let system = args.system.iter().map(|system| turn("system", system));
        let messages: Vec<_> = system.chain([turn("user", message)]).collect();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let options = ChatOptions {
            add_generation_prompt: true,
            now: Some(LocalTime::from_unix(since.as_secs() as i64)),
            ..ChatOptions::default()
        };
        let text = template.render(&ChatValue::from_serialize(&messages)?, &options)?;
        // The template has written the special tokens.
        return Ok(loaded.tokenizer.encode_plain(&text)?);
    }
    let tokens = loaded.tokenizer.encode(args.prompt.as_deref().unwrap_or_default())?;
    if tokens.is_empty() {
        // A text has to begin with something.
        return Ok(generation
            .bos_token_id
            .or(generation.eos_token_ids.first().copied())
            .into_iter()
            .collect());
    }
    Ok(tokens)
}

fn report(generation: &Generation<'_>, times: &Times, text: String) -> Report {
    let (n_prompt, n_tokens) = (generation.prompt().len(), generation.tokens().len());
    let first = times.first.unwrap_or_default().as_secs_f64();
    let later = times.last.as_secs_f64() - first;
    Report {
        text,
        finish: match generation.finish() {
            Some(Finish::Eos) => "eos",
            Some(Finish::Stop(_)) => "stop",
            Some(Finish::Length) | None => "length",
        },
        prompt_tokens: n_prompt,
        tokens: n_tokens,
        seconds_to_first_token: first,
        prompt_tokens_per_second: n_prompt as f64 / first,
        tokens_per_second: (n_tokens > 1).then(|| (n_tokens - 1) as f64 / later),
    }
}

/// Ends the text, and says on the error stream how fast it came.
fn close(report: &Report) -> Result<(), Error> {
    writeln!(io::stdout().lock())?;
    let rate = report
        .tokens_per_second
        .map_or_else(String::new, |rate| format!(", then {rate:.1} tokens/s"));
    writeln!(
        io::stderr().lock(),
        "\n{} tokens of prompt, first token after {:.0} ms ({:.0} tokens/s){rate}; {} tokens, ended by {}",
        report.prompt_tokens,
        1e3 * report.seconds_to_first_token,
        report.prompt_tokens_per_second,
        report.tokens,
        report.finish,
    )?;
    Ok(())
}
