// Attention of decoding rows, one per sequence, over their sequences' pages. Bound by reading keys
// and values. Plain twin: attention/plain.py.

#include "exponential.h"
#include "kernels.h"
#include "vectors.h"

#include <vector>

namespace blockllm {
namespace {

struct Pages {
    const float* data;      // [pages, ..., 2, page_size, kv_heads, dim], from one layer's keys
    int64_t page_stride;    // floats from page to page
    int64_t value_stride;   // floats from a page's keys to its values
    int64_t page_size, kv_heads;
};

// Lanes i of a and b in groups of STEP: even groups plus odd groups, a's and b's by turns.
template <int STEP, unsigned... I>
inline floats add_groups(floats a, floats b, std::integer_sequence<unsigned, I...>) {
    const floats even = BLOCKLLM_SHUFFLE(
        a, b, (I / STEP % 2 * LANES + I / STEP / 2 * 2 * STEP + I % STEP)...);
    const floats odd = BLOCKLLM_SHUFFLE(
        a, b, (I / STEP % 2 * LANES + (I / STEP / 2 * 2 + 1) * STEP + I % STEP)...);
    return even + odd;
}

// Lane i of the result is the sum of parts[i]'s lanes: a tree that costs three operations a sum.
template <int STEP = 1>
inline floats add_lanes(floats* parts) {
    if constexpr (STEP == LANES) {
        return parts[0];
    } else {
        for (int i = 0; i < LANES / STEP / 2; ++i)
            parts[i] = add_groups<STEP>(parts[2 * i], parts[2 * i + 1],
                                        std::make_integer_sequence<unsigned, LANES>());
        return add_lanes<2 * STEP>(parts);
    }
}

// Asks for the lines of one vector, unless there is none.
template <int DIM>
inline void prefetch(const float* vector) {
    if (vector)
        for (int d = 0; d < DIM; d += 16) __builtin_prefetch(vector + d);
}

// row[t] = query . key of each token; keys lie `width` floats apart. `next` (or null) is asked for
// token by token, so that asking never waits for itself.
template <int DIM>
inline void score(float* row, const float* query, const float* keys, const float* next,
                  int64_t width, int64_t tokens, int64_t dim) {
    if constexpr (DIM > 0) {
        for (int64_t t = 0; t < tokens; t += LANES) {
            const int64_t count = tokens - t < LANES ? tokens - t : LANES;
            floats parts[LANES];
            for (int i = 0; i < LANES; ++i) {
                const float* key = keys + (t + (i < count ? i : count - 1)) * width;
                prefetch<DIM>(next ? next + (t + i) * width : nullptr);
                parts[i] = load(query) * load(key);
                for (int d = LANES; d < DIM; d += LANES) parts[i] += load(query + d) * load(key + d);
            }
            const floats sums = add_lanes(parts);
            std::memcpy(row + t, &sums, count * sizeof(float));
        }
    } else {
        for (int64_t t = 0; t < tokens; ++t) {
            float sum = 0;
            for (int64_t d = 0; d < dim; ++d) sum += query[d] * keys[t * width + d];
            row[t] = sum;
        }
    }
}

// out += weights . values of the tokens
template <int DIM>
inline void add_values(float* out, const float* weights, const float* values, const float* next,
                       int64_t width, int64_t tokens, int64_t dim) {
    if constexpr (DIM > 0) {
        floats sums[DIM / LANES];  // in registers over the page
        for (int v = 0; v < DIM / LANES; ++v) sums[v] = load(out + v * LANES);
        for (int64_t t = 0; t < tokens; ++t) {
            prefetch<DIM>(next ? next + t * width : nullptr);
            for (int v = 0; v < DIM / LANES; ++v)
                sums[v] += weights[t] * load(values + t * width + v * LANES);
        }
        for (int v = 0; v < DIM / LANES; ++v) store(out + v * LANES, sums[v]);
    } else {
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t d = 0; d < dim; ++d) out[d] += weights[t] * values[t * width + d];
    }
}

// Calls visit(rows of this page, rows of the next or null, first token, number of tokens) for
// every page of tokens first..context.
template <typename Visit>
void each_page(const Pages& pages, const int32_t* table, int64_t offset, int64_t width,
               int64_t first, int64_t context, Visit visit) {
    const int64_t size = pages.page_size;
    for (int64_t p = first / size; p * size < context; ++p) {
        const float* rows = pages.data + table[p] * pages.page_stride + offset;
        const float* next = nullptr;
        if ((p + 1) * size < context) next = pages.data + table[p + 1] * pages.page_stride + offset;
        const int64_t from = p * size > first ? p * size : first;
        const int64_t to = (p + 1) * size < context ? (p + 1) * size : context;
        visit(rows + (from - p * size) * width, next, from - first, to - from);
    }
}

void softmax(float* row, int64_t count) {
    float best = row[0], total = 0;
#pragma omp simd reduction(max : best)
    for (int64_t t = 1; t < count; ++t) best = row[t] > best ? row[t] : best;
#pragma omp simd reduction(+ : total)
    for (int64_t t = 0; t < count; ++t) {
        row[t] = exp_negative(row[t] - best);
        total += row[t];
    }
    const float inverse = 1.0f / total;
#pragma omp simd
    for (int64_t t = 0; t < count; ++t) row[t] *= inverse;
}

// KV heads head..head + num of one sequence with all query heads that share them; q and out
// point at the first of those. Softmax over tokens first..context.
template <int DIM>
void attend_heads(float* out, const float* q, const Pages& pages, const int32_t* table,
                  int64_t head, int64_t num, int64_t groups, int64_t first, int64_t context,
                  float scale, int64_t any_dim, std::vector<float>& scratch) {
    const int64_t dim = DIM ? DIM : any_dim;
    const int64_t count = context - first, width = pages.kv_heads * dim;
    scratch.resize(num * groups * count);
    float* weights = scratch.data();  // [num * groups, count]
    each_page(pages, table, 0, width, first, context,
              [&](const float* keys, const float* next, int64_t start, int64_t tokens) {
        for (int64_t h = 0; h < num * groups; ++h) {
            const float *query = q + h * dim, *key = keys + (head + h / groups) * dim;
            const float* ahead = next && h % groups == 0 ? next + (key - keys) : nullptr;
            score<DIM>(weights + h * count + start, query, key, ahead, width, tokens, dim);
        }
    });
    for (int64_t h = 0; h < num * groups; ++h) {
        float* row = weights + h * count;
        for (int64_t t = 0; t < count; ++t) row[t] *= scale;
        softmax(row, count);
    }
    std::memset(out, 0, sizeof(float) * num * groups * dim);
    each_page(pages, table, pages.value_stride, width, first, context,
              [&](const float* values, const float* next, int64_t start, int64_t tokens) {
        for (int64_t h = 0; h < num * groups; ++h) {
            const float* value = values + (head + h / groups) * dim;
            const float* ahead = next && h % groups == 0 ? next + (value - values) : nullptr;
            const float* row = weights + h * count + start;
            add_values<DIM>(out + h * dim, row, value, ahead, width, tokens, dim);
        }
    });
}

}  // namespace
}  // namespace blockllm

using namespace blockllm;

extern "C" {

// out [n, heads, dim]; q: rows of q_stride floats; tables: rows of table_stride page numbers
void paged_decode(float* out, const float* q, int64_t q_stride, const float* keys,
                  int64_t page_stride, int64_t value_stride, const int32_t* tables,
                  int64_t table_stride, const int64_t* contexts, int64_t n, int64_t heads,
                  int64_t kv_heads, int64_t dim, int64_t page_size, int64_t window, float scale,
                  int threads) {
    const Pages pages{keys, page_stride, value_stride, page_size, kv_heads};
    const int64_t groups = heads / kv_heads;
    // whole sequences read memory in order; few sequences are split by heads to use all threads
    const int64_t share = n >= 2 * threads ? kv_heads : kv_heads * n / threads;
    int64_t num = share < 1 ? 1 : share > kv_heads ? kv_heads : share;
    while (kv_heads % num) --num;
    const int64_t parts = kv_heads / num;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> scratch;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < n * parts; ++task) {
            const int64_t i = task / parts, head = task % parts * num, context = contexts[i];
            const int64_t first = window && context > window ? context - window : 0;
            const int32_t* table = tables + i * table_stride;
            const float* query = q + i * q_stride + head * groups * dim;
            float* to = out + (i * heads + head * groups) * dim;
            auto run = dim == 64    ? attend_heads<64>
                       : dim == 128 ? attend_heads<128>
                       : dim == 96  ? attend_heads<96>
                       : dim == 80  ? attend_heads<80>
                                    : attend_heads<0>;
            run(to, query, pages, table, head, num, groups, first, context, scale, dim, scratch);
        }
    }
}

}  // extern "C"
