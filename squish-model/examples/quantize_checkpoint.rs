//! Writes a quantized copy of a checkpoint: `FROM TO FORMAT [LAYOUT]`, where the layout is `compressed-tensors` or `squish`.

use squish_model::{QuantizeOptions, SavedLayout, quantize_with};

#[expect(clippy::print_stdout, reason = "what the example is for")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [from, to, format, layout @ ..] = &args[..] else {
        return Err("expected FROM TO FORMAT [compressed-tensors | squish]".into());
    };
    let layout = match layout {
        [] => SavedLayout::CompressedTensors,
        [layout] => layout.parse()?,
        _ => return Err("expected no more than a layout".into()),
    };
    let options = QuantizeOptions::of(format.parse()?).laid_out(layout);
    let mut percent = 0;
    let report = quantize_with(from, to, &options, &mut |progress| {
        let now = progress.n_written * 100 / progress.n_bytes.max(1);
        if now >= percent + 10 {
            percent = now;
            println!("{now} % {}", progress.tensor);
        }
    })?;
    let (read, written) = (report.n_bytes_read, report.n_bytes);
    println!("{read} bytes to {written}, {:.2} bits per weight", report.bits_per_weight());
    Ok(())
}
