//! Criterion's files: `benchmark.json` says what was measured, `sample.json` how long each sample took.
//!
//! The layout is no documented interface, so every field may be absent here, and what is needed and missing is named.

use serde::Deserialize;

/// One measured function of one launch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measured {
    /// Group: the id of the row.
    pub(crate) id: String,
    /// Function: the variant.
    pub(crate) variant: String,
    /// Value: the shape.
    pub(crate) shape: String,
    /// Nanoseconds per iteration, one per sample.
    pub(crate) ns: Vec<f64>,
}

#[derive(Deserialize)]
struct Benchmark {
    group_id: Option<String>,
    function_id: Option<String>,
    value_str: Option<String>,
}

#[derive(Deserialize)]
struct Sample {
    iters: Option<Vec<f64>>,
    times: Option<Vec<f64>>,
}

/// Joins the two files of one function.
///
/// # Errors
///
/// What is missing or makes no sense.
pub(crate) fn parse(benchmark: &str, sample: &str) -> Result<Measured, String> {
    let benchmark: Benchmark =
        serde_json::from_str(benchmark).map_err(|error| format!("benchmark.json: {error}"))?;
    let sample: Sample =
        serde_json::from_str(sample).map_err(|error| format!("sample.json: {error}"))?;
    let id = benchmark.group_id.ok_or("no `group_id`")?;
    let (iters, times) = (sample.iters.ok_or("no `iters`")?, sample.times.ok_or("no `times`")?);
    if iters.len() != times.len() || iters.is_empty() {
        return Err(format!("{} iteration counts for {} times", iters.len(), times.len()));
    }
    let ns: Vec<f64> = times.iter().zip(&iters).map(|(time, iters)| time / iters).collect();
    if ns.iter().any(|ns| !ns.is_finite() || *ns < 0.0) {
        return Err(format!("a sample of `{id}` is no duration"));
    }
    let (variant, shape) =
        (benchmark.function_id.unwrap_or_default(), benchmark.value_str.unwrap_or_default());
    Ok(Measured { id, variant, shape, ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BENCHMARK: &str = r#"{"group_id":"fp8/decode","function_id":"ours","value_str":"128x128","throughput":{"Bytes":81920},
        "full_id":"fp8/decode/ours/128x128","directory_name":"fp8_decode/ours/128x128","title":"fp8/decode/ours/128x128"}"#;

    #[test]
    fn samples_are_divided_by_their_iterations() {
        let measured = parse(
            BENCHMARK,
            r#"{"sampling_mode":"Linear","iters":[1.0,2.0,4.0],"times":[10.0,18.0,44.0]}"#,
        )
        .unwrap();
        assert_eq!(
            (measured.id.as_str(), measured.variant.as_str(), measured.shape.as_str()),
            ("fp8/decode", "ours", "128x128")
        );
        assert_eq!(measured.ns, [10.0, 9.0, 11.0]);
    }

    #[test]
    fn a_function_without_variant_or_value_is_kept_for_the_check_to_refuse() {
        let measured =
            parse(r#"{"group_id":"raw","function_id":null}"#, r#"{"iters":[1.0],"times":[5.0]}"#)
                .unwrap();
        assert_eq!((measured.variant.as_str(), measured.shape.as_str()), ("", ""));
    }

    #[test]
    fn missing_fields_and_uneven_lists_are_named() {
        assert_eq!(parse("{}", r#"{"iters":[],"times":[]}"#).unwrap_err(), "no `group_id`");
        assert_eq!(parse(BENCHMARK, "{}").unwrap_err(), "no `iters`");
        assert_eq!(
            parse(BENCHMARK, r#"{"iters":[1.0],"times":[]}"#).unwrap_err(),
            "1 iteration counts for 0 times"
        );
        assert_eq!(
            parse(BENCHMARK, r#"{"iters":[0.0],"times":[1.0]}"#).unwrap_err(),
            "a sample of `fp8/decode` is no duration"
        );
    }
}
