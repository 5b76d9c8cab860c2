//! What must hold of any bytes as a chat template; the fuzz target `chat` runs this same function.

use squish_model::{
    ChatTemplate, Error,
    chat::{ChatOptions, ChatValue, LocalTime},
};

/// Runs `source` on a conversation with a tool; whether it writes a prompt.
///
/// # Panics
///
/// If it makes the engine panic, or fails with an error that is not one of templates or is long.
pub(crate) fn walk_chat(source: &[u8]) -> bool {
    let source = String::from_utf8_lossy(source);
    let json = r#"[{"role": "system", "content": " a "}, {"role": "user", "content": [{"type": "text", "text": "é"}]},
        {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1.5}}}]}]"#;
    let value = |json: &str| ChatValue::from_json(json).expect("JSON");
    let (messages, tools) = (value(json), value(r#"[{"type": "function", "n": [1, null]}]"#));
    let options = ChatOptions {
        tools: Some(&tools),
        add_generation_prompt: true,
        now: Some(LocalTime::from_unix(0)),
        ..ChatOptions::default()
    };
    let template = ChatTemplate::new(&source, &[("bos_token", "<s>")]);
    match template.and_then(|template| template.render(&messages, &options)) {
        Ok(_) => true,
        Err(error) => {
            assert!(matches!(error, Error::Chat { .. } | Error::ChatRefused { .. }), "{error:?}");
            let n_bytes = error.to_string().len();
            assert!(n_bytes < 5000, "a message of {n_bytes} bytes");
            false
        }
    }
}
