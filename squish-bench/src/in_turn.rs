//! Samples of two operations that are taken in turn, so that what the machine does meanwhile falls on both.
//!
//! On a shared machine the bandwidth of the memory changes by a quarter within seconds: two operations that are timed one after the other
//! differ by that much although nothing differs. Taken in turn, their ratio is steady to some per cent.

use std::{
    str::FromStr,
    time::{Duration, Instant},
};

use crate::black_box;

/// Samples of a figure.
pub(crate) const SAMPLES: usize = 20;

/// How long a variant is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Before the first sample.
    pub(crate) warm_up: Duration,
    /// All samples together.
    pub(crate) span: Duration,
}

impl Effort {
    /// Criterion's own arguments, or half a second after 150 ms.
    pub(crate) fn of(args: impl Iterator<Item = String>) -> Self {
        let args: Vec<String> = args.collect();
        let seconds = |name: &str, default: f64| {
            let given = args.windows(2).find(|pair| pair[0] == name);
            let given = given.and_then(|pair| f64::from_str(&pair[1]).ok());
            Duration::from_secs_f64(given.filter(|s| (0.0..1e6).contains(s)).unwrap_or(default))
        };
        Self { warm_up: seconds("--warm-up-time", 0.15), span: seconds("--measurement-time", 0.5) }
    }
}

/// The least time of a turn, which is to be long beside a look at the clock.
const TURN: Duration = Duration::from_micros(50);

/// Nanoseconds of a call of each of both, sample by sample.
///
/// The samples are as long as criterion's, so that their minimum is comparable: of 1, 2, … [`SAMPLES`] times so many turns that the first
/// operation takes the span for all, or of equally many where that would take twice as long.
pub(crate) fn in_turn<A, B>(
    effort: Effort,
    mut first: impl FnMut() -> A,
    mut second: impl FnMut() -> B,
) -> [Vec<f64>; 2] {
    let (mut n_calls, mut of_first, began) = (0, Duration::ZERO, Instant::now());
    while n_calls < 3 || began.elapsed() < effort.warm_up {
        of_first += time(1, &mut first);
        time(1, &mut second);
        n_calls += 1;
    }
    let once = (of_first / n_calls).max(Duration::from_nanos(1));
    let calls = TURN.as_nanos().div_ceil(once.as_nanos()).max(1) as u32;
    let (turn, span) = ((once * calls).as_secs_f64(), effort.span.as_secs_f64());
    let counts = turns(span / turn);
    let mut out = [Vec::new(), Vec::new()];
    for n_turns in counts {
        let mut spent = [Duration::ZERO; 2];
        for _ in 0..n_turns {
            spent[0] += time(calls, &mut first);
            spent[1] += time(calls, &mut second);
        }
        for (out, spent) in out.iter_mut().zip(spent) {
            out.push(spent.as_secs_f64() * 1e9 / (f64::from(calls) * n_turns as f64));
        }
    }
    out
}

/// The turns of each sample, where about `n` take the whole span.
fn turns(n: f64) -> [usize; SAMPLES] {
    let n_steps = (SAMPLES * (SAMPLES + 1) / 2) as f64;
    let step = (n / n_steps).ceil().max(1.0);
    let grow = step * n_steps <= 2.0 * n;
    let equal = (n / SAMPLES as f64).ceil().max(1.0) as usize;
    std::array::from_fn(|i| if grow { (i + 1) * step as usize } else { equal })
}

fn time<T>(n: u32, f: &mut impl FnMut() -> T) -> Duration {
    let start = Instant::now();
    for _ in 0..n {
        black_box(f());
    }
    start.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_grow_where_they_fit_and_are_equal_elsewhere() {
        assert_eq!(turns(2100.0), std::array::from_fn(|i| 10 * (i + 1)));
        assert_eq!(turns(106.0), std::array::from_fn(|i| i + 1));
        assert_eq!(turns(100.0), [5; SAMPLES]);
        assert_eq!(turns(0.5), [1; SAMPLES]);
    }

    #[test]
    fn both_are_called_equally_often_and_timed_apart() {
        let effort = Effort { warm_up: Duration::ZERO, span: Duration::from_millis(5) };
        let (mut n_first, mut n_second) = (0, 0);
        let [first, second] = in_turn(
            effort,
            || n_first += 1,
            || {
                n_second += 1;
                let began = Instant::now();
                while began.elapsed() < Duration::from_micros(1) {}
            },
        );
        assert_eq!(n_first, n_second);
        assert_eq!((first.len(), second.len()), (SAMPLES, SAMPLES));
        assert!(first.iter().zip(&second).all(|(first, second)| *first < 1e3 && *second >= 1e3));
    }

    #[test]
    fn criterions_arguments_are_heeded() {
        let effort = |args: &[&str]| Effort::of(args.iter().map(ToString::to_string));
        let short = effort(&["--bench", "--warm-up-time", "0.05", "--measurement-time", "0.2"]);
        assert_eq!(short.warm_up, Duration::from_millis(50));
        assert_eq!(short.span, Duration::from_millis(200));
        assert_eq!(effort(&["--measurement-time", "-1"]).span, Duration::from_millis(500));
    }
}
