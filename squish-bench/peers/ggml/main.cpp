// Times ggml's product of packed weights with rows of activations, on one pinned thread and on two, and prints one JSON object per line:
//
//     {"row": "product/int8_q8", "peer": "ggml 0.21.0", "shape": "m1_4096x4096", "ns_min": 690000.0, "ns_median": 700000.0,
//      "threads": 1, "form": "q8_0"}
//
// y[m][n] = sum over k of w[n][k] * x[m][k], with weights w [n, k] in one of ggml's types and f32 activations x [m, k]; shapes are
// written m{m}_{n}x{k}, with _t2 for two threads. `ggml` has the weights as its files have them, `ggml-repack` in the CPU backend's extra
// buffer type for weights, if that takes the type on this CPU. ggml rounds the activations to 8 bits per block of 32 (mxfp4, q4_0, q8_0)
// or to bf16 as a part of its product.
//
// The weights are so many copies that no cache holds them, and each product, planned beforehand, takes the next. Each answer is compared with the f64 product of the decoded weights before it is timed, and a wrong one ends the program.
//
//     ggml-peer [--filter TEXT] [--quick]

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml.h"

namespace {

// Weights of one product, all copies together: more than any last level of cache.
constexpr std::size_t ROTATED_BYTES = 400'000'000;
// Rows of weights that differ; a matrix repeats them, so that few need to be encoded and multiplied in f64.
constexpr std::int64_t DISTINCT_ROWS = 1024;
constexpr std::int64_t K = 4096;

struct Shape {
    std::int64_t m;
    std::int64_t n;
    int n_threads;

    std::string name() const {
        std::string name = "m" + std::to_string(m) + "_" + std::to_string(n) + "x" + std::to_string(K);
        return n_threads == 1 ? name : name + "_t" + std::to_string(n_threads);
    }
};

constexpr Shape SHAPES[] = {
    {1, 4096, 1}, {1, 4096, 2}, {4, 4096, 1}, {8, 4096, 1}, {16, 4096, 1}, {512, 4096, 1}, {512, 4096, 2}, {1, 14336, 1}, {1, 14336, 2},
};

struct Format {
    ggml_type type;
    // The row that it is a peer of.
    const char * row;
};

constexpr Format FORMATS[] = {
    {GGML_TYPE_F32, "product/f32"},       {GGML_TYPE_BF16, "product/bf16"},     {GGML_TYPE_MXFP4, "product/mxfp4_q8"},
    {GGML_TYPE_Q4_0, "product/int4_q8"},  {GGML_TYPE_Q8_0, "product/int8_q8"},
};

// ggml has no FP8: its other format of 8 bits stands there, under a name that says so.
constexpr const char * FP8_ROW = "product/fp8_bf16";

struct Options {
    std::string filter;
    bool quick = false;

    bool wants(const char * row) const { return std::strstr(row, filter.c_str()) != nullptr; }
};

[[noreturn]] void fail(const std::string & why) {
    std::fprintf(stderr, "ggml-peer: %s\n", why.c_str());
    std::exit(1);
}

std::vector<float> normal(std::size_t n, float deviation, unsigned seed) {
    std::mt19937 bits(seed);
    std::normal_distribution<float> draw(0.0F, deviation);
    std::vector<float> x(n);
    std::generate(x.begin(), x.end(), [&] { return draw(bits); });
    return x;
}

// Weights [DISTINCT_ROWS, K], encoded and decoded again.
struct Weights {
    ggml_type type;
    std::vector<std::uint8_t> encoded;
    std::vector<float> decoded;

    Weights(ggml_type type, const std::vector<float> & values) : type(type), decoded(values.size()) {
        encoded.resize(ggml_row_size(type, K) * DISTINCT_ROWS);
        ggml_quantize_chunk(type, values.data(), encoded.data(), 0, DISTINCT_ROWS, K, nullptr);
        const auto to_float = ggml_get_type_traits(type)->to_float;
        if (to_float != nullptr) {
            to_float(encoded.data(), decoded.data(), K * DISTINCT_ROWS);
        } else {
            decoded = values;
        }
    }

    // The encoded rows, repeated to n of them.
    std::vector<std::uint8_t> rows(std::int64_t n) const {
        const std::size_t row_size = ggml_row_size(type, K);
        std::vector<std::uint8_t> out(row_size * n);
        for (std::size_t at = 0; at < out.size(); at += encoded.size()) {
            std::memcpy(&out[at], encoded.data(), std::min(encoded.size(), out.size() - at));
        }
        return out;
    }
};

// Variance of the error that rounding brings to x[k], k in one block of 32: that of a uniform distribution over one step.
void rounding_variances(ggml_type rounded_to, const float * x, double * variances) {
    double amax = 0;
    for (int k = 0; k < 32; ++k) {
        amax = std::max(amax, std::fabs(static_cast<double>(x[k])));
    }
    for (int k = 0; k < 32; ++k) {
        double step = 0;
        if (rounded_to == GGML_TYPE_Q8_0) {
            step = amax / 127;
        } else if (rounded_to == GGML_TYPE_BF16) {
            step = std::fabs(static_cast<double>(x[k])) / 128;
        }
        variances[k] = step * step / 12;
    }
}

// Ends the program unless y [m, n] is w x: within seven deviations of what rounding the activations does, and 2e-6 of the sum of
// magnitudes for the sums in f32. Of many rows of activations, 8 are looked at.
void check(const Weights & w, const std::vector<float> & x, const std::vector<float> & y, const Shape & shape, const std::string & what) {
    const ggml_type rounded_to = ggml_get_type_traits_cpu(w.type)->vec_dot_type;
    if (rounded_to != GGML_TYPE_F32 && rounded_to != GGML_TYPE_BF16 && rounded_to != GGML_TYPE_Q8_0) {
        fail(what + ": activations are rounded to a type whose error is not known here");
    }
    std::vector<double> variances(K);
    const std::int64_t n_checked = std::min<std::int64_t>(shape.m, 8);
    for (std::int64_t checked = 0; checked < n_checked; ++checked) {
        // The first, the last, and some between.
        const std::int64_t m = checked * (shape.m - 1) / std::max<std::int64_t>(1, n_checked - 1);
        const float * row = &x[m * K];
        for (std::int64_t k = 0; k < K; k += 32) {
            rounding_variances(rounded_to, row + k, &variances[k]);
        }
        for (std::int64_t i = 0; i < DISTINCT_ROWS; ++i) {
            const float * weights = &w.decoded[i * K];
            double exact = 0, magnitude = 0, variance = 0;
            for (std::int64_t k = 0; k < K; ++k) {
                const double weight = weights[k], product = weight * row[k];
                exact += product;
                magnitude += std::fabs(product);
                variance += weight * weight * variances[k];
            }
            const double bound = 7 * std::sqrt(variance) + 2e-6 * magnitude;
            for (std::int64_t n = i; n < shape.n; n += DISTINCT_ROWS) {
                const double got = y[m * shape.n + n];
                // Negated, so that a NaN is refused.
                if (!(std::fabs(got - exact) <= bound)) {
                    fail(what + ": y[" + std::to_string(m) + "][" + std::to_string(n) + "] is " + std::to_string(got) + ", not " +
                         std::to_string(exact) + " within " + std::to_string(bound));
                }
            }
        }
    }
}

// Processors that this process may use, in their order, read before ggml pins the calling thread.
std::vector<int> allowed_processors() {
    cpu_set_t set;
    CPU_ZERO(&set);
    std::vector<int> processors;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        for (int i = 0; i < std::min<int>(CPU_SETSIZE, GGML_MAX_N_THREADS); ++i) {
            if (CPU_ISSET(i, &set)) {
                processors.push_back(i);
            }
        }
    }
    return processors;
}

struct FreeThreadpool {
    void operator()(ggml_threadpool * pool) const { ggml_threadpool_free(pool); }
};

// One thread on each of the first processors, this thread among them.
std::unique_ptr<ggml_threadpool, FreeThreadpool> pinned_threads(int n, const std::vector<int> & processors) {
    ggml_threadpool_params params = ggml_threadpool_params_default(n);
    params.strict_cpu = true;
    for (int i = 0; i < n; ++i) {
        params.cpumask[processors[i]] = true;
    }
    std::unique_ptr<ggml_threadpool, FreeThreadpool> pool(ggml_threadpool_new(&params));
    if (!pool) {
        fail("no threads");
    }
    return pool;
}

ggml_context_ptr new_context(std::size_t n_tensors) {
    const std::size_t graphs = n_tensors * ggml_graph_overhead_custom(4, false);
    ggml_context_ptr context(ggml_init({4 * n_tensors * ggml_tensor_overhead() + graphs, nullptr, true}));
    if (!context) {
        fail("no context");
    }
    return context;
}

ggml_backend_buffer_ptr allocated(ggml_context * context, ggml_backend_buffer_type_t type) {
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors_from_buft(context, type));
    if (!buffer) {
        fail("no memory for the tensors");
    }
    return buffer;
}

// The CPU backend's extra buffer type for weights, or null if ggml was built without.
ggml_backend_buffer_type_t repack_buffer_type(ggml_backend_dev_t cpu) {
    void * address = ggml_backend_reg_get_proc_address(ggml_backend_cpu_reg(), "ggml_backend_dev_get_extra_bufts");
    if (address == nullptr) {
        return nullptr;
    }
    const auto extra_types = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(address);
    for (ggml_backend_buffer_type_t * type = extra_types(cpu); type != nullptr && *type != nullptr; ++type) {
        if (std::strcmp(ggml_backend_buft_name(*type), "CPU_REPACK") == 0) {
            return *type;
        }
    }
    return nullptr;
}

struct Figures {
    double ns_min;
    double ns_median;
};

// Times of one call of run, from samples as long as those of the benches, whose minimum would not be comparable to that of shorter ones: 20
// of 1, 2, ... 20 times so many calls that all take half a second (quick: a fifth of one), or of equally many if that would take twice as long;
// five at least of calls that exceed a twentieth of it.
template <typename Run>
Figures time_calls(const Run & run, bool quick) {
    using Clock = std::chrono::steady_clock;
    const auto ns_since = [](Clock::time_point start) {
        return std::chrono::duration<double, std::nano>(Clock::now() - start).count();
    };
    const double span = quick ? 200e6 : 500e6;
    double n_warm_ups = 0;
    const auto began = Clock::now();
    for (; n_warm_ups < 3 || ns_since(began) < span / 10; ++n_warm_ups) {
        run();
    }
    const double once = ns_since(began) / n_warm_ups;
    const double step = std::ceil(span / once / 210);
    const bool grow = step * 210 * once <= 2 * span;
    const int n_samples = grow ? 20 : static_cast<int>(std::clamp(span / once, 5.0, 20.0));
    std::vector<double> samples;
    for (int i = 1; i <= n_samples; ++i) {
        const int calls = static_cast<int>(grow ? i * step : std::ceil(span / once / 20));
        const auto start = Clock::now();
        for (int call = 0; call < calls; ++call) {
            run();
        }
        samples.push_back(ns_since(start) / calls);
    }
    std::sort(samples.begin(), samples.end());
    return {samples[0], samples[samples.size() / 2]};
}

// So many copies of weights [n, K] that no cache holds them.
struct Copies {
    std::int64_t n;
    std::vector<ggml_tensor *> tensors;
    ggml_context_ptr context;
    ggml_backend_buffer_ptr buffer;
    bool is_filled = false;

    Copies(ggml_backend_buffer_type_t buffer_type, ggml_type type, std::int64_t n)
        : n(n), tensors((ROTATED_BYTES + ggml_row_size(type, K) * n - 1) / (ggml_row_size(type, K) * n)),
          context(new_context(tensors.size())) {
        for (ggml_tensor *& copy : tensors) {
            copy = ggml_new_tensor_2d(context.get(), type, K, n);
        }
        buffer = allocated(context.get(), buffer_type);
    }

    // Once, by the calling thread.
    void fill(const Weights & weights) {
        if (is_filled) {
            return;
        }
        const std::vector<std::uint8_t> rows = weights.rows(n);
        for (ggml_tensor * copy : tensors) {
            ggml_backend_tensor_set(copy, rows.data(), 0, rows.size());
        }
        is_filled = true;
    }
};

// Times one product, or returns false if the buffer type does not take the weights.
bool measure(ggml_backend_dev_t cpu, Copies & copies, const Weights & weights, const Shape & shape,
             const std::vector<int> & processors, bool quick, const std::string & what, Figures & figures) {
    const std::size_t n_copies = copies.tensors.size();
    const ggml_context_ptr context = new_context(n_copies + 1);
    std::vector<ggml_tensor *> products(n_copies);
    ggml_tensor * input = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, K, shape.m);
    for (std::size_t i = 0; i < n_copies; ++i) {
        products[i] = ggml_mul_mat(context.get(), copies.tensors[i], input);
    }
    const ggml_backend_buffer_ptr buffer = allocated(context.get(), ggml_backend_dev_buffer_type(cpu));
    if (!ggml_backend_dev_supports_op(cpu, products[0])) {
        return false;
    }

    // By the calling thread, which is pinned from here on.
    const auto pool = pinned_threads(shape.n_threads, processors);
    copies.fill(weights);
    const std::vector<float> x = normal(shape.m * K, 1.0F, 2);
    ggml_backend_tensor_set(input, x.data(), 0, x.size() * sizeof(float));

    std::vector<ggml_cgraph *> graphs(n_copies);
    std::vector<ggml_cplan> plans(n_copies);
    std::vector<std::uint8_t> work;
    for (std::size_t i = 0; i < n_copies; ++i) {
        graphs[i] = ggml_new_graph_custom(context.get(), 4, false);
        ggml_build_forward_expand(graphs[i], products[i]);
        plans[i] = ggml_graph_plan(graphs[i], shape.n_threads, pool.get());
        work.resize(std::max(work.size(), plans[i].work_size));
    }
    for (ggml_cplan & plan : plans) {
        plan.work_data = work.data();
    }

    std::vector<float> y(shape.m * shape.n);
    std::size_t next = 0;
    const auto run = [&] {
        if (ggml_graph_compute(graphs[next], &plans[next]) != GGML_STATUS_SUCCESS) {
            fail(what + ": not computed");
        }
        next = (next + 1) % n_copies;
    };
    // The first and the last copy; the others as a warm-up.
    for (std::size_t i = 0; i < n_copies; ++i) {
        run();
        if (i == 0 || i + 1 == n_copies) {
            ggml_backend_tensor_get(products[i], y.data(), 0, y.size() * sizeof(float));
            check(weights, x, y, shape, what);
        }
    }
    figures = time_calls(run, quick);
    return true;
}

void print(const char * row, const std::string & peer, const Shape & shape, const Figures & figures, ggml_type type) {
    std::printf("{\"row\": \"%s\", \"peer\": \"%s %s\", \"shape\": \"%s\", \"ns_min\": %.1f, \"ns_median\": %.1f, \"threads\": %d, "
                "\"form\": \"%s\"}\n",
                row, peer.c_str(), ggml_version(), shape.name().c_str(), figures.ns_min, figures.ns_median, shape.n_threads,
                ggml_type_name(type));
    std::fflush(stdout);
}

// ggml's warnings; it also says which tensors it repacks.
void complain(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) {
        std::fputs(text, stderr);
    }
}

Options parse(int n_args, char ** args) {
    Options options;
    for (int i = 1; i < n_args; ++i) {
        const std::string arg = args[i];
        if (arg == "--quick") {
            options.quick = true;
        } else if (arg == "--filter" && i + 1 < n_args) {
            options.filter = args[++i];
        } else {
            fail("unknown argument `" + arg + "`");
        }
    }
    return options;
}

}  // namespace

int main(int n_args, char ** args) {
    const Options options = parse(n_args, args);
    ggml_log_set(complain, nullptr);
    const std::vector<int> processors = allowed_processors();
    ggml_cpu_init();
    ggml_backend_dev_t cpu = ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);

    std::vector<std::pair<std::string, ggml_backend_buffer_type_t>> peers{{"ggml", ggml_backend_dev_buffer_type(cpu)}};
    if (ggml_backend_buffer_type_t repack = repack_buffer_type(cpu)) {
        peers.emplace_back("ggml-repack", repack);
    } else {
        std::fprintf(stderr, "ggml-peer: ggml was built without its buffer type CPU_REPACK, which is left out\n");
    }

    const std::vector<float> values = normal(DISTINCT_ROWS * K, 0.02F, 1);
    for (const Format & format : FORMATS) {
        const bool stands_for_fp8 = format.type == GGML_TYPE_Q8_0 && options.wants(FP8_ROW);
        if (!options.wants(format.row) && !stands_for_fp8) {
            continue;
        }
        const Weights weights(format.type, values);
        for (const auto & [peer, buffer_type] : peers) {
            std::unique_ptr<Copies> copies;
            for (const Shape & shape : SHAPES) {
                if (static_cast<std::size_t>(shape.n_threads) > processors.size()) {
                    continue;
                }
                const std::string what = peer + " " + ggml_type_name(format.type) + " " + shape.name();
                if (!copies || copies->n != shape.n) {
                    // Those of the other size go first: there is not always room for both.
                    copies.reset();
                    copies = std::make_unique<Copies>(buffer_type, format.type, shape.n);
                }
                Figures figures{};
                if (!measure(cpu, *copies, weights, shape, processors, options.quick, what, figures)) {
                    break;
                }
                if (options.wants(format.row)) {
                    print(format.row, peer, shape, figures, format.type);
                }
                if (stands_for_fp8) {
                    print(FP8_ROW, peer + "-" + ggml_type_name(format.type), shape, figures, format.type);
                }
            }
        }
    }
    return 0;
}
