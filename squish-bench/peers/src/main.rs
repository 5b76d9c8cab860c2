//! Prints one JSON line per peer and row; see the README beside this package.

mod attention;
mod candle;
mod fp8;
mod model;
mod rten;
mod timing;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    // Apart from the others, since it takes two threads, and candle starts its own once.
    if let Some([_, folder]) = args.windows(2).find(|pair| pair[0] == "--model") {
        return Ok(model::all(folder.as_ref())?);
    }
    // Peers are compared on one thread; candle runs in the global pool, and rten-gemm asks for its size.
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global()?;
    for n in [128, 4096] {
        fp8::all(n);
    }
    candle::softmax()?;
    candle::rms_norm()?;
    candle::rope()?;
    attention::all()?;
    rten::products()?;
    Ok(())
}
