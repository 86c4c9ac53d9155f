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

// Even plus odd units of UNIT lanes, a's and then b's, within every SCOPE lanes.
template <int UNIT, int SCOPE, unsigned... I>
inline floats fold(floats a, floats b, std::integer_sequence<unsigned, I...>) {
    constexpr unsigned HALF = SCOPE / UNIT / 2;
    const floats even = BLOCKLLM_SHUFFLE(
        a, b, (I % SCOPE / UNIT / HALF * LANES + I / SCOPE * SCOPE +
               I % SCOPE / UNIT % HALF * 2 * UNIT + I % UNIT)...);
    const floats odd = BLOCKLLM_SHUFFLE(
        a, b, (I % SCOPE / UNIT / HALF * LANES + I / SCOPE * SCOPE +
               I % SCOPE / UNIT % HALF * 2 * UNIT + UNIT + I % UNIT)...);
    return even + odd;
}

// One KV head's keys or values of some neighbouring tokens, `width` floats apart.
struct Vectors {
    const float* first;
    int64_t width;
    const float* operator[](int64_t token) const { return first + token * width; }
};

// Products of COUNT tokens from `token` on with the queries of GROUPS heads, each summed over all
// lanes but LANES / COUNT: with COUNT == LANES, lane i is token i's. Tokens behind `last` count as
// it. A tree, so that sums over lanes cost three operations a token.
template <int DIM, int GROUPS, int COUNT>
inline void score_tokens(floats (&sums)[GROUPS], const float* query, const Vectors& keys,
                         int64_t token, int64_t last) {
    if constexpr (COUNT == 1) {
        const float* key = keys[token < last ? token : last];
        for (int g = 0; g < GROUPS; ++g) sums[g] = load(query + g * DIM) * load(key);
        for (int d = LANES; d < DIM; d += LANES) {
            const floats part = load(key + d);
            for (int g = 0; g < GROUPS; ++g) sums[g] += load(query + g * DIM + d) * part;
        }
    } else {
        floats right[GROUPS];
        score_tokens<DIM, GROUPS, COUNT / 2>(sums, query, keys, token, last);
        score_tokens<DIM, GROUPS, COUNT / 2>(right, query, keys, token + COUNT / 2, last);
        constexpr bool NEAR = COUNT <= 4;
        for (int g = 0; g < GROUPS; ++g)
            sums[g] = fold<NEAR ? 1 : 4, NEAR ? 4 : LANES>(
                sums[g], right[g], std::make_integer_sequence<unsigned, LANES>());
    }
}

// rows[g * stride + t] = query g . key t
template <int DIM, int GROUPS>
inline void score(float* rows, int64_t stride, const float* query, const Vectors& keys,
                  int64_t tokens, int64_t dim) {
    if constexpr (DIM > 0) {
        for (int64_t t = 0; t < tokens; t += LANES) {
            const int64_t count = tokens - t < LANES ? tokens - t : LANES;
            floats sums[GROUPS];
            score_tokens<DIM, GROUPS, LANES>(sums, query, keys, t, tokens - 1);
            for (int g = 0; g < GROUPS; ++g)
                std::memcpy(rows + g * stride + t, &sums[g], count * sizeof(float));
        }
    } else {
        for (int64_t t = 0; t < tokens; ++t) {
            rows[t] = 0;
            for (int64_t d = 0; d < dim; ++d) rows[t] += query[d] * keys[t][d];
        }
    }
}

// out[g] += sum over tokens of weights[g * stride + t] times value t
template <int DIM, int GROUPS>
inline void add_values(float* out, const float* weights, int64_t stride, const Vectors& values,
                       int64_t tokens, int64_t dim) {
    if constexpr (DIM > 0) {
        floats sums[GROUPS][DIM / LANES];  // in registers over the page
        for (int g = 0; g < GROUPS; ++g)
            for (int v = 0; v < DIM / LANES; ++v) sums[g][v] = load(out + g * DIM + v * LANES);
        for (int64_t t = 0; t < tokens; ++t) {
            for (int v = 0; v < DIM / LANES; ++v) {
                const floats value = load(values[t] + v * LANES);
                for (int g = 0; g < GROUPS; ++g) sums[g][v] += weights[g * stride + t] * value;
            }
        }
        for (int g = 0; g < GROUPS; ++g)
            for (int v = 0; v < DIM / LANES; ++v) store(out + g * DIM + v * LANES, sums[g][v]);
    } else {
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t d = 0; d < dim; ++d) out[d] += weights[t] * values[t][d];
    }
}

// Query heads of one KV head that are looked after together, so that its vectors are read once:
// as many as registers allow. Calls function.template operator()<N>(first head).
template <int DIM, typename Function>
inline void each_group(int64_t groups, Function&& function) {
    constexpr int MOST = DIM == 0 || LANES < 16 ? 1 : DIM <= 64 ? 4 : 2;
    int64_t g = 0;
    if constexpr (MOST >= 4)
        for (; g + 4 <= groups; g += 4) function.template operator()<4>(g);
    if constexpr (MOST >= 2)
        for (; g + 2 <= groups; g += 2) function.template operator()<2>(g);
    for (; g < groups; ++g) function.template operator()<1>(g);
}

// Calls visit(rows of the page, first token, number of tokens) for every page of tokens
// first..context.
template <typename Visit>
void each_page(const Pages& pages, const int32_t* table, int64_t offset, int64_t width,
               int64_t first, int64_t context, Visit visit) {
    const int64_t size = pages.page_size;
    for (int64_t p = first / size; p * size < context; ++p) {
        const int64_t from = p * size > first ? p * size : first;
        const int64_t to = (p + 1) * size < context ? (p + 1) * size : context;
        const float* page = pages.data + table[p] * pages.page_stride + offset;
        visit(page + (from - p * size) * width, from - first, to - from);
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
              [&](const float* keys, int64_t start, int64_t tokens) {
        for (int64_t h = 0; h < num; ++h)
            each_group<DIM>(groups, [&]<int GROUPS>(int64_t g) {
                const int64_t own = h * groups + g;
                score<DIM, GROUPS>(weights + own * count + start, count, q + own * dim,
                                   {keys + (head + h) * dim, width}, tokens, dim);
            });
    });
    for (int64_t h = 0; h < num * groups; ++h) {
        float* row = weights + h * count;
        for (int64_t t = 0; t < count; ++t) row[t] *= scale;
        softmax(row, count);
    }
    std::memset(out, 0, sizeof(float) * num * groups * dim);
    each_page(pages, table, pages.value_stride, width, first, context,
              [&](const float* values, int64_t start, int64_t tokens) {
        for (int64_t h = 0; h < num; ++h)
            each_group<DIM>(groups, [&]<int GROUPS>(int64_t g) {
                const int64_t own = h * groups + g;
                add_values<DIM, GROUPS>(out + own * dim, weights + own * count + start, count,
                                        {values + (head + h) * dim, width}, tokens, dim);
            });
    });
}

}  // namespace
}  // namespace blockllm

using namespace blockllm;

extern "C" {

// KV heads head..head + num of one sequence; out and q: [heads, dim]
void decode_heads(float* out, const float* q, const float* keys, int64_t page_stride,
                  int64_t value_stride, const int32_t* table, int64_t context, int64_t head,
                  int64_t num, int64_t heads, int64_t kv_heads, int64_t dim, int64_t page_size,
                  int64_t window, float scale) {
    thread_local std::vector<float> scratch;
    const Pages pages{keys, page_stride, value_stride, page_size, kv_heads};
    const int64_t groups = heads / kv_heads, own = head * groups * dim;
    const int64_t first = window && context > window ? context - window : 0;
    auto run = dim == 64    ? attend_heads<64>
               : dim == 128 ? attend_heads<128>
               : dim == 96  ? attend_heads<96>
               : dim == 80  ? attend_heads<80>
                            : attend_heads<0>;
    run(out + own, q + own, pages, table, head, num, groups, first, context, scale, dim, scratch);
}

// out [n, heads, dim]; q: rows of q_stride floats; tables: rows of table_stride page numbers
void paged_decode(float* out, const float* q, int64_t q_stride, const float* keys,
                  int64_t page_stride, int64_t value_stride, const int32_t* tables,
                  int64_t table_stride, const int64_t* contexts, int64_t n, int64_t heads,
                  int64_t kv_heads, int64_t dim, int64_t page_size, int64_t window, float scale,
                  int threads) {
    // whole sequences read memory in order; few sequences are split by heads to use all threads
    const int64_t share = n >= 2 * threads ? kv_heads : kv_heads * n / threads;
    int64_t num = share < 1 ? 1 : share > kv_heads ? kv_heads : share;
    while (kv_heads % num) --num;
    const int64_t parts = kv_heads / num;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t task = 0; task < n * parts; ++task) {
        const int64_t i = task / parts, head = task % parts * num;
        decode_heads(out + i * heads * dim, q + i * q_stride, keys, page_stride, value_stride,
                     tables + i * table_stride, contexts[i], head, num, heads, kv_heads, dim,
                     page_size, window, scale);
    }
}

}  // extern "C"
