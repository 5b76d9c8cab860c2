//! A `config.json` with a `quantization_config`, everything else as it stands.

use serde_json::{Map, Value};

use crate::{Error, error::clip};

const FIELD: &str = "quantization_config";

/// The bytes of a `config.json`, to the last field as they are, and `quantization` after these, if it is one.
pub(super) fn with_quantization(
    json: &[u8],
    quantization: Option<Value>,
) -> Result<Vec<u8>, Error> {
    let error = |error: serde_json::Error| Error::ConfigJson { reason: clip(&error.to_string()) };
    let mut fields: Map<String, Value> = serde_json::from_slice(json).map_err(error)?;
    let Some(quantization) = quantization else { return Ok(json.to_vec()) };
    if fields.contains_key(FIELD) {
        // A null, which has to go: the one case in which fields are written anew.
        fields.insert(FIELD.to_owned(), quantization);
        return Ok(serde_json::to_vec_pretty(&fields).expect("text and numbers are valid JSON"));
    }
    let text = serde_json::to_string_pretty(&quantization).expect("text is valid JSON");
    // An object ends with a brace, and what is before it with a field or another one.
    let end = json.trim_ascii_end();
    let body = end[..end.len() - 1].trim_ascii_end();
    let comma = if fields.is_empty() { "" } else { "," };
    let added = format!("{comma}\n  \"{FIELD}\": {}\n}}\n", text.replace('\n', "\n  "));
    Ok([body, added.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_before_the_new_field_stays_as_it_is() {
        let value = || Some(json!({"quant_method": "x"}));
        let with = |json: &str| {
            String::from_utf8(with_quantization(json.as_bytes(), value()).unwrap()).unwrap()
        };
        assert_eq!(
            with("{\n \"eps\" : 1e-05,\"b\": {\"c\": 1.0}\n}\n"),
            "{\n \"eps\" : 1e-05,\"b\": {\"c\": 1.0},\n  \"quantization_config\": {\n    \"quant_method\": \"x\"\n  }\n}\n"
        );
        for (before, n_fields) in
            [("{}", 1), (" { } ", 1), (r#"{"a": 1}"#, 2), (r#"{"quantization_config": null}"#, 1)]
        {
            let fields: Map<String, Value> = serde_json::from_str(&with(before)).unwrap();
            assert_eq!(fields.len(), n_fields, "{before}");
            assert_eq!(fields[FIELD], value().unwrap(), "{before}");
        }
        assert_eq!(with_quantization(b" {} ", None).unwrap(), b" {} ");
        assert!(matches!(with_quantization(b"[]", value()), Err(Error::ConfigJson { .. })));
    }
}
