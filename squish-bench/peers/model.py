"""Times llama.cpp and transformers on a whole model, on two threads, and prints one JSON object per line, as peers.py does:

    {"row": "runtime/decode", "peer": "transformers 5.23.0", "shape": "bf16_m1_t2", "ns_min": 9e7, "ns_median": 9.1e7, "threads": 2,
     "form": "sdpa"}

CHECKPOINT is a folder that squish-model's example `random_checkpoint` wrote. What llama.cpp and candle read of it is put into the same
folder on first use: `bf16.gguf` and `q4_0.gguf` with all layers, `bf16-prefill.gguf` and `q4_0-prefill.gguf` with the first few. Their
matrices, the embedding included, are all in that format, norms in f32.

Decode is one token after the 512 of the prompt, which is then taken out of the cache again; prefill the 512 tokens of the prompt with
the logits of the last. Logits are compared with those of CHECKPOINT before anything is timed, and wrong ones end the program. A library
that is not installed is left out, with a line on stderr.

    python model.py CHECKPOINT [--prepare] [--filter TEXT] [--quick]
"""

import ctypes
import functools
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import sys

THREADS = 2
# Read when the libraries are imported.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = str(THREADS)
os.environ |= {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}

# Before a library pins this thread.
PROCESSORS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))

import numpy as np  # noqa: E402

from timing import parser, print_fastest  # noqa: E402

DECODE, PREFILL = "runtime/decode", "runtime/prefill"
CONTEXT, PREFILL_LAYERS = 512, 4
# Formats in shapes, and in file names.
FORMATS = [("bf16", "bf16"), ("fp4", "q4_0")]
# What llama-cpp-python has no names for, or others.
GGML_TYPE_BF16, GGML_LOG_LEVEL_ERROR = 30, 4
# Least correlation of logits with the expected ones. In bf16, a rotary embedding without its scaling has less.
LEAST = {"bf16": 0.999, "q4_0": 0.8}


def prompt(vocab_size):
    return [i * 7919 % vocab_size for i in range(CONTEXT)]


def check(got, want, file_format, what):
    """Ends the program unless logits are the expected ones."""
    correlation = np.corrcoef(np.asarray(got, np.float64), want)[0, 1]
    # Negated, so that a NaN is refused.
    if not correlation >= LEAST[file_format]:
        sys.exit(f"{what}: logits have a correlation of {correlation} with the expected ones")


# GGUF


def prepare(checkpoint, config):
    """Writes the GGUF files that are not there yet."""
    for suffix, n_layers in [("", config["num_hidden_layers"]), ("-prefill", PREFILL_LAYERS)]:
        once(checkpoint / f"bf16{suffix}.gguf", functools.partial(write_bf16, checkpoint, config, n_layers))
        once(checkpoint / f"q4_0{suffix}.gguf", functools.partial(write_q4_0, checkpoint / f"bf16{suffix}.gguf"))


def once(path, write):
    """Lets `write` write `path`, which is there only when it is whole."""
    if not path.exists():
        partial = path.with_name(path.name + ".partial")
        write(partial)
        partial.rename(path)


def write_bf16(checkpoint, config, n_layers, path):
    import gguf
    import torch
    from safetensors import safe_open

    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
    for layer, (theirs, ours) in itertools.product(
        range(n_layers),
        [
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ],
    ):
        names[f"model.layers.{layer}.{ours}"] = f"blk.{layer}.{theirs}"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(n_layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tensor("rope_freqs.weight", rope_divisors(config))
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    with safe_open(checkpoint / "model.safetensors", "pt") as tensors:
        for ours, theirs in names.items():
            tensor = tensors.get_tensor(f"{ours}.weight")
            n_heads = heads.get(ours.rpartition(".")[2])
            if n_heads:
                # A head's numbers i and i + d/2 are turned together: here they are neighbors.
                tensor = tensor.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)
            if tensor.dim() == 1:
                writer.add_tensor(f"{theirs}.weight", tensor.float().numpy())
            else:
                codes = tensor.contiguous().view(torch.uint8).numpy()
                writer.add_tensor(f"{theirs}.weight", codes, raw_dtype=gguf.GGMLQuantizationType.BF16)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    writer.close()


def rope_divisors(config):
    """What Llama 3 divides the frequencies of its rotary embedding by."""
    scaling, dim = config["rope_scaling"], config["head_dim"]
    wavelength = 2 * math.pi * config["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = np.clip((scaling["original_max_position_embeddings"] / wavelength - low) / (high - low), 0, 1)
    return (1 / ((1 - kept) / scaling["factor"] + kept)).astype(np.float32)


def write_q4_0(source, path):
    lc = llama_cpp()
    options = lc.llama_model_quantize_default_params()
    options.ftype, options.pure = lc.LLAMA_FTYPE_MOSTLY_Q4_0, True
    if lc.llama_model_quantize(os.fsencode(source), os.fsencode(path), ctypes.byref(options)) != 0:
        sys.exit(f"{source} was not quantized")


# llama.cpp


@functools.cache
def llama_cpp():
    """The package, which says errors alone from here on; its own filter takes warnings for errors."""
    import llama_cpp

    llama_cpp.llama_log_set(complain(llama_cpp), None)
    llama_cpp.llama_backend_init()
    return llama_cpp


@functools.cache
def complain(lc):
    def to_stderr(level, text, _):
        if level == GGML_LOG_LEVEL_ERROR:
            sys.stderr.write(text.decode(errors="replace"))

    return lc.llama_log_callback(to_stderr)


def load(path):
    options = llama_cpp().llama_model_default_params()
    options.n_gpu_layers = 0
    return llama_cpp().llama_model_load_from_file(os.fsencode(path), options) or sys.exit(f"{path} was not loaded")


class Llama:
    """A context of llama.cpp with room for `n_sequences`, on pinned threads that live as long as it does."""

    def __init__(self, model, n_sequences, kv_type, flash):
        self.lc = lc = llama_cpp()
        options = lc.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_seq_max = n_sequences * 2 * CONTEXT, CONTEXT, n_sequences
        options.n_threads = options.n_threads_batch = THREADS
        options.type_k = options.type_v = kv_type
        options.flash_attn_type = lc.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else lc.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = lc.llama_init_from_model(model, options) or sys.exit("llama.cpp: no context")
        self.memory = lc.llama_get_memory(self.context)
        self.vocab_size = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
        self.threads = pinned_threads(lc)
        lc.llama_cpp._lib.llama_attach_threadpool(self.context, self.threads, self.threads)

    def batch(self, tokens, first, sequences, outputs):
        """Tokens at positions from `first` on; those numbered `outputs` have logits."""
        batch = self.lc.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.n_seq_id[i], batch.logits[i] = token, 1, i in outputs
            batch.pos[i] = first if len(sequences) > 1 else first + i
            batch.seq_id[i][0] = sequences[i] if len(sequences) > 1 else sequences[0]
        return batch

    def logits(self, batch):
        """The last logits that the batch asks for."""
        if self.lc.llama_decode(self.context, batch) != 0:
            sys.exit("llama.cpp: not computed")
        return np.ctypeslib.as_array(self.lc.llama_get_logits_ith(self.context, -1), (self.vocab_size,))

    def cut(self, n_sequences, length):
        for sequence in range(n_sequences):
            self.lc.llama_memory_seq_rm(self.memory, sequence, length, -1)

    def close(self):
        self.lc.llama_free(self.context)
        threadpool_function(self.lc, "ggml_threadpool_free")(self.threads)


class ThreadpoolParams(ctypes.Structure):
    """`ggml_threadpool_params`, which the package has no name for."""

    _fields_ = [("cpumask", ctypes.c_bool * 512), ("n_threads", ctypes.c_int), ("prio", ctypes.c_int), ("poll", ctypes.c_uint32)]
    _fields_ += [("strict_cpu", ctypes.c_bool), ("paused", ctypes.c_bool)]


def threadpool_function(lc, name):
    function = getattr(lc.llama_cpp._lib, name)
    function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
    return function


def pinned_threads(lc):
    """Threads of ggml, one on each of the first processors, this thread among them."""
    lc.llama_cpp._lib.llama_attach_threadpool.argtypes = [ctypes.c_void_p] * 3
    options = ThreadpoolParams()
    init = lc.llama_cpp._lib.ggml_threadpool_params_init
    init.argtypes = [ctypes.c_void_p, ctypes.c_int]
    init(ctypes.byref(options), THREADS)
    options.strict_cpu = True
    for processor in PROCESSORS[:THREADS]:
        options.cpumask[processor] = True
    return threadpool_function(lc, "ggml_threadpool_new")(ctypes.byref(options))


def llama_cpp_calls(checkpoint, expected, text):
    """Decode alone and in a batch, and prefill, by llama.cpp."""
    try:
        lc = llama_cpp()
    except ImportError:
        print("llama-cpp-python is not installed; llama.cpp is left out", file=sys.stderr)
        return
    # Its default, and the type that ours has.
    caches = [("keys and values in f16, flash attention", lc.GGML_TYPE_F16, True), ("keys and values in bf16", GGML_TYPE_BF16, False)]
    for short, file_format in FORMATS:
        if text in DECODE:
            model = load(checkpoint / f"{file_format}.gguf")
            for (cache, *options), m in itertools.product(caches, (1, 16)):
                llama = Llama(model, m, *options)
                tokens = prompt(llama.vocab_size)
                llama.logits(llama.batch(tokens, 0, [0], [CONTEXT - 1]))
                for sequence in range(1, m):
                    # As bits, into a cache of its own.
                    lc.llama_memory_seq_cp(llama.memory, 0, sequence, -1, -1)
                batch = llama.batch(tokens[:1] * m, CONTEXT, list(range(m)), range(m))

                def decode(llama=llama, batch=batch, m=m):
                    logits = llama.logits(batch)
                    llama.cut(m, CONTEXT)
                    return logits

                check(decode(), expected["decode"], file_format, f"llama.cpp, {DECODE}, {file_format}, m {m}, {cache}")
                yield DECODE, f"{short}_m{m}_t{THREADS}", "llama.cpp", f"{file_format}, {cache}", decode
                llama.close()
            lc.llama_model_free(model)
        if text in PREFILL:
            model = load(checkpoint / f"{file_format}-prefill.gguf")
            for cache, *options in caches:
                llama = Llama(model, 1, *options)
                batch = llama.batch(prompt(llama.vocab_size), 0, [0], [CONTEXT - 1])

                def prefill(llama=llama, batch=batch):
                    llama.cut(1, 0)
                    return llama.logits(batch)

                check(prefill(), expected["prefill"], file_format, f"llama.cpp, {PREFILL}, {file_format}, {cache}")
                yield PREFILL, f"{short}_t{THREADS}", "llama.cpp", f"{file_format}, {cache}", prefill
                llama.close()
            lc.llama_model_free(model)


# transformers


def transformers_calls(checkpoint, expected, text):
    """Decode and prefill in bf16 by transformers, not compiled."""
    try:
        import torch
        import transformers
    except ImportError:
        print("torch or transformers is not installed; transformers is left out", file=sys.stderr)
        return
    torch.set_num_threads(THREADS)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for attention, (row, n_layers) in itertools.product(["sdpa", "eager"], [(DECODE, None), (PREFILL, PREFILL_LAYERS)]):
        if text not in row:
            continue
        config = transformers.AutoConfig.from_pretrained(checkpoint)
        config.num_hidden_layers = n_layers or config.num_hidden_layers
        model = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint, config=config, dtype=torch.bfloat16, attn_implementation=attention
        )
        tokens = torch.tensor([prompt(config.vocab_size)])

        @torch.inference_mode()
        def forward(tokens, cache, model=model):
            return model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits

        cache = transformers.DynamicCache(config=config)

        def decode(cache=cache, token=tokens[:, :1], forward=forward):
            logits = forward(token, cache)
            # Without its last token.
            cache.crop(-1)
            return logits

        def prefill(tokens=tokens, config=config, forward=forward):
            return forward(tokens, transformers.DynamicCache(config=config))

        if row == DECODE:
            forward(tokens, cache)
        run, name, shape = (decode, "decode", "bf16_m1") if row == DECODE else (prefill, "prefill", "bf16")
        check(run().float().flatten().numpy(), expected[name], "bf16", f"transformers, {row}, {attention}")
        yield row, f"{shape}_t{THREADS}", "transformers", attention, run


def version(peer):
    package = {"llama.cpp": "llama-cpp-python"}.get(peer, peer)
    return f"{peer} {importlib.metadata.version(package)}"


def main():
    arguments = parser(__doc__)
    arguments.add_argument("checkpoint", type=pathlib.Path)
    arguments.add_argument("--prepare", action="store_true", help="write the GGUF files and time nothing")
    options = arguments.parse_args()
    try:
        prepare(options.checkpoint, json.loads((options.checkpoint / "config.json").read_text()))
    except ImportError as error:
        print(f"{error}; no GGUF files are written", file=sys.stderr)
    if options.prepare or len(PROCESSORS) < THREADS:
        return
    from safetensors.numpy import load_file

    expected = load_file(options.checkpoint / "expected.safetensors")
    # llama.cpp last: it pins this thread.
    for calls in (transformers_calls, llama_cpp_calls):
        print_fastest(calls(options.checkpoint, expected, options.filter), options, version, lambda _: THREADS)


if __name__ == "__main__":
    main()
