// Attention of decoding rows, one per sequence, over their sequences' pages. Bound by reading keys
// and values. Plain twin: attention/plain.py.

#include "exponential.h"
#include "kernels.h"
#include "vectors.h"

#include <limits>
#include <vector>

namespace blockllm {
namespace {

struct Pages {
    const float* data;      // [pages, ..., 2, kv_heads, page_size, dim], from one layer's keys
    int64_t page_stride;    // floats from page to page
    int64_t value_stride;   // floats from a page's keys to its values
    int64_t page_size;
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

// Lane i: the sum of all lanes of sums[i]. A tree, so that it costs three operations a sum.
template <int COUNT = LANES>
inline floats join(const floats* sums) {
    if constexpr (COUNT == 1) {
        return sums[0];
    } else {
        constexpr bool NEAR = COUNT <= 4;
        return fold<NEAR ? 1 : 4, NEAR ? 4 : LANES>(
            join<COUNT / 2>(sums), join<COUNT / 2>(sums + COUNT / 2),
            std::make_integer_sequence<unsigned, LANES>());
    }
}

// Products of LANES tokens' keys with the queries of GROUPS heads, lane i token i's. Tokens behind
// `last` count as it.
template <int DIM, int GROUPS>
inline void score_tokens(floats (&scores)[GROUPS], const float* query, const float* keys,
                         int64_t last) {
    constexpr int TOGETHER = 4;  // tokens that a load of the query serves
    floats sums[GROUPS][LANES];
    for (int t = 0; t < LANES; t += TOGETHER) {
        const float* key[TOGETHER];
        for (int i = 0; i < TOGETHER; ++i) key[i] = keys + (t + i < last ? t + i : last) * DIM;
        floats own[GROUPS][TOGETHER] = {};
        for (int d = 0; d < DIM; d += LANES)
            for (int i = 0; i < TOGETHER; ++i) {
                const floats part = load(key[i] + d);
                for (int g = 0; g < GROUPS; ++g) own[g][i] += load(query + g * DIM + d) * part;
            }
        for (int g = 0; g < GROUPS; ++g) std::memcpy(&sums[g][t], own[g], sizeof own[g]);
    }
    for (int g = 0; g < GROUPS; ++g) scores[g] = join(sums[g]);
}

// rows[g * stride + t] = query g . key t
template <int DIM, int GROUPS>
inline void score(float* rows, int64_t stride, const float* query, const float* keys,
                  int64_t tokens, int64_t dim) {
    if constexpr (DIM > 0) {
        for (int64_t t = 0; t < tokens; t += LANES) {
            const int64_t count = tokens - t < LANES ? tokens - t : LANES;
            floats scores[GROUPS];
            score_tokens<DIM, GROUPS>(scores, query, keys + t * DIM, count - 1);
            for (int g = 0; g < GROUPS; ++g) {
                float* to = rows + g * stride + t;
                if (count == LANES) store(to, scores[g]);
                else for (int64_t i = 0; i < count; ++i) to[i] = scores[g][i];
            }
        }
    } else {
        for (int64_t t = 0; t < tokens; ++t) {
            rows[t] = 0;
            for (int64_t d = 0; d < dim; ++d) rows[t] += query[d] * keys[t * dim + d];
        }
    }
}

// The most vectors, up to `most`, that a row of `count` is cut into without a rest.
constexpr int largest_part(int count, int most) {
    while (count % most) --most;
    return most;
}

// out[g] += sum over tokens of weights[g * stride + t] times value t
template <int DIM, int GROUPS>
inline void add_values(float* out, const float* weights, int64_t stride, const float* values,
                       int64_t tokens, int64_t dim) {
    if constexpr (DIM > 0) {
        constexpr int PART = largest_part(DIM / LANES, MOST_SUMS / GROUPS);
        for (int first = 0; first < DIM; first += PART * LANES) {
            floats sums[GROUPS][PART];  // in registers over the page
            for (int g = 0; g < GROUPS; ++g)
                std::memcpy(sums[g], out + g * DIM + first, sizeof sums[g]);
            for (int64_t t = 0; t < tokens; ++t)
                for (int v = 0; v < PART; ++v) {
                    const floats value = load(values + t * DIM + first + v * LANES);
                    for (int g = 0; g < GROUPS; ++g) sums[g][v] += weights[g * stride + t] * value;
                }
            for (int g = 0; g < GROUPS; ++g)
                std::memcpy(out + g * DIM + first, sums[g], sizeof sums[g]);
        }
    } else {
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t d = 0; d < dim; ++d) out[d] += weights[t] * values[t * dim + d];
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

// Calls visit(where the keys of a KV head begin, the same on the next page, number of tokens) for
// every page of tokens first..context. The last page is its own next one.
template <typename Visit>
void each_page(const Pages& pages, const int32_t* table, int64_t head, int64_t dim, int64_t first,
               int64_t context, Visit visit) {
    const int64_t size = pages.page_size, last = (context - 1) / size;
    const auto keys = [&](int64_t p) {
        return pages.data + table[p] * pages.page_stride + head * size * dim;
    };
    for (int64_t p = first / size; p <= last; ++p) {
        const int64_t from = p * size > first ? p * size : first;
        const int64_t to = p < last ? (p + 1) * size : context;
        visit(keys(p) + (from - p * size) * dim, keys(p < last ? p + 1 : p), to - from);
    }
}

// One query head's softmax over the tokens seen so far; weights are relative to the best score of
// these (Milakov and Gimelshein, arXiv 1805.02867).
struct Softmax {
    floats total = {};  // of all weights, lane by lane
    float best = -std::numeric_limits<float>::infinity();

    // Scores of some more tokens -> their weights. `out`, the weighted sum so far, is made to fit
    // where there is a new best. There is room for whole vectors of scores.
    void weigh(float* scores, int64_t tokens, float scale, float* out, int64_t dim) {
        const int64_t end = divide_up(tokens, LANES) * LANES;
        for (int64_t t = tokens; t < end; ++t) scores[t] = -std::numeric_limits<float>::infinity();
        floats tops = floats{} + best;
        for (int64_t t = 0; t < end; t += LANES) {
            const floats scaled = load(scores + t) * scale;
            store(scores + t, scaled);
            tops = scaled > tops ? scaled : tops;
        }
        float top = best;
#pragma omp simd reduction(max : top)
        for (int i = 0; i < LANES; ++i) top = tops[i] > top ? tops[i] : top;
        if (top > best) {
            const float shrink = exp_negative(best - top);
            total *= shrink;
            for (int64_t d = 0; d < dim; ++d) out[d] *= shrink;
            best = top;
        }
        for (int64_t t = 0; t < end; t += LANES) {
#pragma omp simd
            for (int64_t i = t; i < t + LANES; ++i) scores[i] = exp_negative(scores[i] - top);
            total += load(scores + t);
        }
    }

    void finish(float* out, int64_t dim) const {
        float sum = 0;
        for (int i = 0; i < LANES; ++i) sum += total[i];
        const float inverse = 1.0f / sum;
        for (int64_t d = 0; d < dim; ++d) out[d] *= inverse;
    }
};

// What one thread needs for a sequence. It is kept from call to call: new memory costs more.
struct Room {
    std::vector<float> weights;  // [heads, page_size in whole vectors]
    std::vector<Softmax> known;  // [heads]
};

// KV heads head..head + num of one sequence with all query heads that share them; q and out
// point at the first of those. Softmax over tokens first..context, page by page.
template <int DIM>
void attend_heads(float* out, const float* q, const Pages& pages, const int32_t* table,
                  int64_t head, int64_t num, int64_t groups, int64_t first, int64_t context,
                  float scale, int64_t any_dim, Room& room) {
    const int64_t dim = DIM ? DIM : any_dim, head_stride = pages.page_size * dim;
    const int64_t heads = num * groups, width = divide_up(pages.page_size, LANES) * LANES;
    room.weights.resize(heads * width);
    room.known.assign(heads, Softmax());
    float* weights = room.weights.data();
    std::memset(out, 0, sizeof(float) * heads * dim);
    each_page(pages, table, head, dim, first, context,
              [&](const float* keys, const float* next, int64_t tokens) {
        for (int64_t h = 0; h < num; ++h)
            each_group<DIM>(groups, [&]<int GROUPS>(int64_t g) {
                const int64_t own = h * groups + g;
                score<DIM, GROUPS>(weights + own * width, width, q + own * dim,
                                   keys + h * head_stride, tokens, dim);
            });
        for (int64_t h = 0; h < heads; ++h)
            room.known[h].weigh(weights + h * width, tokens, scale, out + h * dim, dim);
        for (int64_t h = 0; h < num; ++h) {
            for (int64_t i = 0; i < head_stride; i += 16)  // a processor's own asking ends at 4 KB
                __builtin_prefetch(next + h * head_stride + i, 0, 2);
            each_group<DIM>(groups, [&]<int GROUPS>(int64_t g) {
                const int64_t own = h * groups + g;
                add_values<DIM, GROUPS>(out + own * dim, weights + own * width, width,
                                        keys + pages.value_stride + h * head_stride, tokens, dim);
            });
        }
    });
    for (int64_t h = 0; h < heads; ++h) room.known[h].finish(out + h * dim, dim);
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
    thread_local Room room;
    const Pages pages{keys, page_stride, value_stride, page_size};
    const int64_t groups = heads / kv_heads, own = head * groups * dim;
    const int64_t first = window && context > window ? context - window : 0;
    auto run = dim == 64    ? attend_heads<64>
               : dim == 128 ? attend_heads<128>
               : dim == 96  ? attend_heads<96>
               : dim == 80  ? attend_heads<80>
                            : attend_heads<0>;
    run(out + own, q + own, pages, table, head, num, groups, first, context, scale, dim, room);
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
