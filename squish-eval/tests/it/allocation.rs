use squish_bench::alloc::count_allocations;
use squish_eval::{Baseline, KlStats, Logits, PplTracker, TrackerOptions, token_nll};
use squish_kernels::Isa;

use crate::common::numbers;

#[test]
fn records_and_questions_allocate_nothing() {
    // The first call reads the environment.
    let _ = Isa::detect();
    let data = numbers(16 * 1000, 1);
    let logits = Logits::new(&data, 1000).expect("16 rows");
    let targets: [_; 16] = std::array::from_fn(|i| Some(i as u32));
    let options = TrackerOptions { window: 5, ..TrackerOptions::default() };
    let mut tracker = PplTracker::new(options).expect("sensible options");
    tracker.set_baseline(Baseline::new(1.0, 1.0).expect("a baseline"));
    let mut stats = KlStats::with_capacity(40);
    let (alerts, n) = count_allocations(|| {
        let mut alerts = 0;
        for i in 0..20 {
            alerts += tracker.record(logits, &targets).expect("finite").iter().count();
            let _ = (tracker.rolling_perplexity(), tracker.rolling(), token_nll(&data, 5));
            let (base, other) = (&data[i..i + 1000], &data[..1000]);
            stats.push(base, other, 3).expect("finite");
            stats.push_log_probs(base, other, 3).expect("finite");
        }
        alerts
    });
    assert_eq!((alerts, n), (1, 0));
}
