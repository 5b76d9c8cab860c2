//! How Python prints values that are no texts: `repr` of lists, maps and what is in them.

use std::fmt::Write;

use minijinja::{Error as EngineError, ErrorKind, State, Value, value::ValueKind};

/// Values within values at most; Python's own limit is near a thousand.
const MAX_DEPTH: usize = 200;

/// Appends `value` as Python writes it within a list. Each value costs fuel before it is written, since one list may hold another many
/// times.
pub(super) fn append(
    state: &State,
    value: &Value,
    out: &mut String,
    depth: usize,
) -> Result<(), EngineError> {
    if depth > MAX_DEPTH {
        let reason = format!("a value of more than {MAX_DEPTH} levels is not printed");
        return Err(EngineError::new(ErrorKind::InvalidOperation, reason));
    }
    state.consume_fuel(1 + value.as_str().map_or(0, |text| text.len() as u64 / 64))?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let is_tuple = value.is_tuple();
            out.push(if is_tuple { '(' } else { '[' });
            let mut n = 0;
            for item in value.try_iter()? {
                separate(n, out);
                append(state, &item, out, depth + 1)?;
                n += 1;
            }
            if is_tuple && n == 1 {
                out.push(',');
            }
            out.push(if is_tuple { ')' } else { ']' });
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                separate(i, out);
                append(state, &key, out, depth + 1)?;
                out.push_str(": ");
                append(state, &value.get_item(&key)?, out, depth + 1)?;
            }
            out.push('}');
        }
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&float(f64::try_from(value.clone())?));
        }
        // Strings and scalars: the engine writes these as Python does.
        ValueKind::String => _ = write!(out, "{value:?}"),
        _ => _ = write!(out, "{value}"),
    }
    Ok(())
}

fn separate(index: usize, out: &mut String) {
    if index > 0 {
        out.push_str(", ");
    }
}

/// `repr` of a float: the fewest digits that read back as `x`, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() { "nan".to_owned() } else { x.to_string() };
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').expect("`{:e}` writes one");
    let exponent: i32 = exponent.parse().expect("an integer");
    if (-4..16).contains(&exponent) {
        let plain = x.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::float;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (x, want) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (9999999999999998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (1e22, "1e+22"),
            (-2.5e100, "-2.5e+100"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(float(x), want);
        }
    }
}
