//! Memory that stays unused while requests come and go: in blocks, and with a piece of the greatest length for each.
//!
//! ```text
//! each step:   requests that have arrived wait, first come first served
//!              the first one starts while there are free blocks for its prompt; nothing else is reserved
//!              every running request gets a token; where no block is free for it, the one that started last goes back to the head of
//!              the queue, to be computed again with what it has written as prompt
//!              requests with all their tokens end
//! ```
//!
//! That is how servers use blocks (W. Kwon et al., arXiv 2309.06180). With pieces, a request starts while a piece is free.

use std::collections::VecDeque;

use squish_bench::{Cell, Format, Section, input::Rng};
use squish_kv::{BlockTables, Error, Retention, SequenceId};

use crate::setup::Setup;

/// Slots of the memory.
const N_SLOTS: usize = 16384;

/// Tokens of a request at most, prompt and answer together.
const MOST_TOKENS: usize = 2048;

/// Requests that arrive in a step on average.
const RATE: f32 = 0.5;

/// Block sizes.
const BLOCK_SIZES: [usize; 4] = [8, 16, 32, 64];

const SEED: u64 = 20_240_601;

pub(crate) fn sections(setup: &Setup) -> Vec<Section> {
    let trace = trace(setup.effort.n_requests);
    let mean =
        |of: fn(&Request) -> usize| trace.iter().map(of).sum::<usize>() as f64 / trace.len() as f64;
    let note = format!(
        "{} requests (seed {SEED}): prompts of {:.0} tokens and answers of {:.0} on average, both log-normal (medians 128 and 96, sigma 1), \
         {MOST_TOKENS} tokens at most together; {RATE} requests arrive per step (Poisson), a step gives every running request a token. Memory \
         for {N_SLOTS} tokens; a request starts while there are free blocks for its prompt, and one that finds no block for its next token \
         sends the one that started last back to the queue. Unused are slots that are allocated and hold no token: over all steps, and in \
         the step with most tokens. Refused with room are starts and tokens that were refused although as many slots were free in all. No \
         prefix is shared.",
        trace.len(),
        mean(|request| request.n_prompt),
        mean(|request| request.n_answer),
    );
    let mut section = Section::new(
        "paged",
        "Memory that blocks leave unused",
        note,
        &[
            ("memory in", Format::Text),
            ("unused, %", Format::Percent(2)),
            ("unused at the peak, %", Format::Percent(2)),
            ("refused with room", Format::Count),
            ("requests at once, mean", Format::Fixed(1)),
            ("most", Format::Count),
            ("sent back", Format::Count),
            ("steps", Format::Count),
        ],
    );
    for block_size in BLOCK_SIZES {
        let usage = run(&trace, block_size);
        // A sequence leaves no more unused than its last block but for one token.
        let most = usage.n_running_sum * (block_size - 1);
        assert!(usage.n_unused <= most, "{} unused slots, {most} at most", usage.n_unused);
        section.push(usage.cells(format!("blocks of {block_size}")));
    }
    // A piece is a block that holds the longest request.
    let usage = run(&trace, MOST_TOKENS);
    section.push(usage.cells(format!("pieces of {MOST_TOKENS}")));
    vec![section]
}

#[derive(Clone, Copy, Debug)]
struct Request {
    /// The step in which it arrives.
    arrival: usize,
    n_prompt: usize,
    /// Tokens that it gets.
    n_answer: usize,
}

fn trace(n_requests: usize) -> Vec<Request> {
    let mut rng = Rng::new(SEED);
    let mut time = 0.0;
    let requests = (0..n_requests).map(|_| {
        time -= (1.0 - rng.uniform()).ln() / RATE;
        let mut log_normal =
            |median: f32| ((median * rng.normal().exp()) as usize).clamp(1, MOST_TOKENS / 2);
        let (n_prompt, n_answer) = (log_normal(128.0), log_normal(96.0));
        Request { arrival: time as usize, n_prompt, n_answer }
    });
    requests.collect()
}

/// What a run came to.
#[derive(Default)]
struct Usage {
    n_allocated: usize,
    n_unused: usize,
    /// Of the step with most tokens.
    peak: Step,
    n_running_sum: usize,
    most_running: usize,
    n_sent_back: usize,
    n_refused_with_room: usize,
    n_steps: usize,
}

/// What is there after a step.
#[derive(Clone, Copy, Default)]
struct Step {
    n_tokens: usize,
    n_allocated: usize,
}

impl Usage {
    fn cells(&self, name: String) -> [Cell; 8] {
        let Step { n_tokens, n_allocated } = self.peak;
        [
            name.into(),
            (self.n_unused as f64 / self.n_allocated as f64).into(),
            (1.0 - n_tokens as f64 / n_allocated as f64).into(),
            self.n_refused_with_room.into(),
            (self.n_running_sum as f64 / self.n_steps as f64).into(),
            self.most_running.into(),
            self.n_sent_back.into(),
            self.n_steps.into(),
        ]
    }

    fn record(&mut self, tables: &BlockTables, running: &[Running]) {
        let n_used = tables.pool().n_blocks() - tables.pool().n_free();
        let of = |running: &Running| tables.len(running.id).expect("it runs");
        let step = Step {
            n_tokens: running.iter().map(of).sum(),
            n_allocated: n_used * tables.block_size(),
        };
        self.n_allocated += step.n_allocated;
        self.n_unused += step.n_allocated - step.n_tokens;
        self.n_running_sum += running.len();
        self.most_running = self.most_running.max(running.len());
        self.n_steps += 1;
        if step.n_tokens > self.peak.n_tokens {
            self.peak = step;
        }
    }
}

/// A request with a sequence.
struct Running {
    request: Request,
    id: SequenceId,
    /// Tokens that it has when it ends.
    n_end: usize,
}

/// Serves all requests from blocks of this size.
fn run(trace: &[Request], block_size: usize) -> Usage {
    let mut tables = BlockTables::new(N_SLOTS / block_size, block_size).expect("blocks");
    let mut arrivals = trace.iter().copied().peekable();
    // With the tokens that it starts with.
    let mut waiting: VecDeque<(Request, usize)> = VecDeque::new();
    let mut running: Vec<Running> = Vec::new();
    let mut usage = Usage::default();
    for step in 0.. {
        while let Some(request) = arrivals.next_if(|request| request.arrival <= step) {
            waiting.push_back((request, request.n_prompt));
        }
        while let Some(&(request, n_tokens)) = waiting.front() {
            let id = tables.create(Retention::All).expect("room for a sequence");
            if !grow(&mut tables, id, n_tokens, &mut usage) {
                tables.free(id).expect("it was just made");
                break;
            }
            waiting.pop_front();
            running.push(Running { request, id, n_end: request.n_prompt + request.n_answer });
        }
        let mut at = 0;
        while at < running.len() {
            if grow(&mut tables, running[at].id, 1, &mut usage) {
                at += 1;
                continue;
            }
            // It may be the one that needs the token.
            let last = running.pop().expect("the one that needs the token at least");
            let n_tokens = tables.len(last.id).expect("it ran");
            tables.free(last.id).expect("it ran");
            waiting.push_front((last.request, n_tokens));
            usage.n_sent_back += 1;
        }
        if !running.is_empty() {
            usage.record(&tables, &running);
        }
        running.retain(|running| {
            let has_more = tables.len(running.id).expect("it ran") < running.n_end;
            if !has_more {
                tables.free(running.id).expect("it ran");
            }
            has_more
        });
        if running.is_empty() && waiting.is_empty() && arrivals.peek().is_none() {
            break;
        }
    }
    assert_eq!(tables.pool().n_free(), tables.pool().n_blocks(), "all blocks came back");
    usage
}

/// Appends tokens to a sequence, if there are blocks for them.
fn grow(tables: &mut BlockTables, id: SequenceId, n_new: usize, usage: &mut Usage) -> bool {
    match tables.begin(&[(id, n_new)]) {
        Ok(step) => {
            step.commit();
            true
        }
        Err(Error::PoolExhausted { needed, free }) => {
            usage.n_refused_with_room += usize::from(needed <= free);
            false
        }
        Err(error) => panic!("a step of {n_new} tokens: {error}"),
    }
}
