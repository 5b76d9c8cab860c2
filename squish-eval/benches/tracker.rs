//! The rows of the seed for its tracker of perplexity.

use squish_bench::{Limit, Row, Suite, Target, Work, black_box, input};
use squish_eval::{Baseline, Logits, PplTracker, TrackerOptions, Weighting};
use squish_kernels::log_sum_exp::log_sum_exp_scalar;

const ROWS: usize = 16;
const VOCAB: usize = 1000;
const WINDOW: usize = 50;

static RECORD: Row = Row {
    id: "ppl/record",
    module: "PplTracker",
    operation: "record(logits, targets)",
    shape: "16x1000",
    work: Work::bytes(4 * (ROWS * VOCAB) as u64, 0),
    limit: Limit::None,
    targets: &[Target::AtLeastTimesPeer { peer: "torch", times: 1.4 }],
    ..Row::SEED
};

static ROLLING: Row = Row {
    id: "ppl/rolling",
    operation: "rolling_perplexity()",
    shape: "50",
    work: Work::bytes(0, 0),
    targets: &[],
    note: "the same for every window",
    ..RECORD
};

/// A tracker with a baseline far below what it will meet, so that every record is looked at in full.
fn tracker() -> PplTracker {
    let options = TrackerOptions { window: WINDOW, ..TrackerOptions::default() };
    let mut tracker = PplTracker::new(options).expect("sensible options");
    tracker.set_baseline(Baseline::new(2.3, 2.5).expect("a baseline"));
    tracker
}

fn main() {
    let mut suite = Suite::new();
    let data = input::logits(ROWS * VOCAB, 1);
    let logits = Logits::new(&data, VOCAB).expect("whole rows");
    let targets: [_; ROWS] = std::array::from_fn(|i| Some((i * 61 % VOCAB) as u32));
    let exact = || {
        let rows = logits.rows().zip(&targets);
        let nats = rows.map(|(row, target)| {
            log_sum_exp_scalar(row) - f64::from(row[target.expect("a target") as usize])
        });
        (nats.sum::<f64>() / ROWS as f64).exp()
    };
    suite.row(&RECORD, |row| {
        let mut tracker = tracker();
        row.check(|| {
            let mut tracker = self::tracker();
            tracker.record(logits, &targets).expect("finite");
            let (got, want) = (tracker.rolling_perplexity().expect("a record"), exact());
            assert!((got / want - 1.0).abs() < 1e-5, "{got} {want}");
        })
        .ours(|bench| bench.iter(|| tracker.record(black_box(logits), black_box(&targets))))
    });
    suite.row(&ROLLING, |row| {
        let mut full = tracker();
        let options = TrackerOptions {
            window: WINDOW,
            weighting: Weighting::Records,
            ..TrackerOptions::default()
        };
        let mut by_records = PplTracker::new(options).expect("sensible options");
        for _ in 0..2 * WINDOW {
            full.record(logits, &targets).expect("finite");
            by_records.record(logits, &targets).expect("finite");
        }
        row.check(|| {
            for tracker in [&full, &by_records] {
                let (got, want) = (tracker.rolling_perplexity().expect("records"), exact());
                assert!((got / want - 1.0).abs() < 1e-5, "{got} {want}");
            }
        })
        .ours(|bench| bench.iter(|| black_box(&full).rolling_perplexity()))
        .variant("per-record", |bench| bench.iter(|| black_box(&by_records).rolling_perplexity()))
    });
    suite.finish();
}
