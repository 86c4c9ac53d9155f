// Causal attention of runs of rows (prompts, whole or in chunks) over their sequences' pages: online
// softmax over blocks of tokens, as in FlashAttention (arXiv 2205.14135). Plain twin:
// attention/plain.py.

#include "exponential.h"
#include "kernels.h"
#include "transpose.h"

#include <vector>

namespace blockllm {
namespace {

constexpr int64_t BLOCK = 64;  // tokens whose scores are held at a time

struct Run {
    const float* q;  // of the run's first row and the KV head's first query head
    float* out;
    int64_t q_stride, out_stride;  // floats from row to row
    int64_t rows, position;        // how many rows; position of the first
    int64_t groups, dim, window;
    float scale;
};

struct Scratch {
    std::vector<float> keys, values, q, sums, best, total;
};

// Keys and values of tokens first..first + count of one head: keys [dim, BLOCK], values
// [BLOCK, width] with zeros behind `dim`. Behind `count` are zeros: no row sees those tokens,
// but 0 * NaN would show.
void gather(Scratch& s, const float* keys, int64_t page_stride, int64_t value_stride,
            const int32_t* table, int64_t page_size, int64_t first, int64_t count, int64_t dim,
            int64_t width) {
    for (int64_t t = 0; t < BLOCK; t += LANES) {
        const float* key[LANES];
        for (int i = 0; i < LANES; ++i) {
            const int64_t token = first + (t + i < count ? t + i : count - 1);
            key[i] = keys + table[token / page_size] * page_stride + token % page_size * dim;
            float* value = &s.values[(t + i) * width];
            if (t + i < count) std::memcpy(value, key[i] + value_stride, dim * sizeof(float));
            else std::memset(value, 0, dim * sizeof(float));
        }
        int64_t d = 0;
        for (; d + LANES <= dim; d += LANES) {
            words square[LANES];
            for (int i = 0; i < LANES; ++i)
                square[i] = t + i < count ? load_words(key[i] + d) : words{};
            transpose(square);
            for (int c = 0; c < LANES; ++c)
                std::memcpy(&s.keys[(d + c) * BLOCK + t], &square[c], sizeof(words));
        }
        for (; d < dim; ++d)
            for (int i = 0; i < LANES; ++i)
                s.keys[d * BLOCK + t + i] = t + i < count ? key[i][d] : 0.0f;
    }
}

// One tile of query vectors against one block of tokens. Query vector i belongs to row i / groups.
template <int HEIGHT>
void attend_tile(const Run& run, Scratch& s, int64_t start, int64_t first, int64_t count,
                 int64_t width) {
    const float* q = &s.q[start * run.dim];
    float scores[HEIGHT][BLOCK];
    for (int64_t c = 0; c < BLOCK; c += PANEL) {
        floats sums[HEIGHT][VECTORS] = {};
        multiply<HEIGHT, PANEL, 0>(sums, q, &s.keys[c], BLOCK, run.dim);
        for (int r = 0; r < HEIGHT; ++r) std::memcpy(&scores[r][c], sums[r], PANEL * 4);
    }
    for (int r = 0; r < HEIGHT; ++r) {
        const int64_t row = run.position + (start + r) / run.groups;
        int64_t from = run.window && row - run.window + 1 > first ? row - run.window + 1 - first : 0;
        int64_t to = row + 1 - first < count ? row + 1 - first : count;
        if (to < 0) to = 0;
        if (from > to) from = to;
        float best = s.best[start + r];
#pragma omp simd reduction(max : best)
        for (int64_t t = from; t < to; ++t) best = scores[r][t] > best ? scores[r][t] : best;
        const bool any = to > from;
        const float keep = any ? exp_negative(s.best[start + r] - best) : 1.0f;
        float total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t t = 0; t < BLOCK; ++t) {
            const bool seen = t >= from && t < to;
            const float weight = exp_negative(seen ? scores[r][t] - best : 0.0f);
            scores[r][t] = seen ? weight : 0.0f;
            total += scores[r][t];
        }
        s.total[start + r] = s.total[start + r] * keep + total;
        if (any) s.best[start + r] = best;
        if (keep != 1.0f)
            for (int64_t d = 0; d < width; ++d) s.sums[(start + r) * width + d] *= keep;
    }
    for (int64_t c = 0; c < width; c += PANEL) {
        floats sums[HEIGHT][VECTORS];
        for (int r = 0; r < HEIGHT; ++r)
            for (int v = 0; v < VECTORS; ++v)
                sums[r][v] = load(&s.sums[(start + r) * width + c + v * LANES]);
        multiply<HEIGHT, PANEL, 0, Floats, 1, BLOCK>(sums, scores[0], &s.values[c], width, BLOCK);
        for (int r = 0; r < HEIGHT; ++r)
            for (int v = 0; v < VECTORS; ++v)
                store(&s.sums[(start + r) * width + c + v * LANES], sums[r][v]);
    }
}

void attend_run(const Run& run, Scratch& s, const float* keys, int64_t page_stride,
                int64_t value_stride, const int32_t* table, int64_t page_size) {
    const int64_t vectors = run.rows * run.groups, width = divide_up(run.dim, PANEL) * PANEL;
    const Tiles tiles(vectors);
    s.keys.resize(run.dim * BLOCK);
    s.values.assign(BLOCK * width, 0.0f);
    s.q.resize(vectors * run.dim);
    s.sums.assign(vectors * width, 0.0f);
    s.best.assign(vectors, -3e38f);
    s.total.assign(vectors, 0.0f);
    for (int64_t tile = 0; tile < tiles.count; ++tile) {
        const int64_t start = tiles.start(tile), height = tiles.size(tile);
        for (int64_t r = 0; r < height; ++r) {
            const int64_t vector = start + r;
            const float* from = run.q + vector / run.groups * run.q_stride +
                                vector % run.groups * run.dim;
            float* to = &s.q[start * run.dim + r];
            for (int64_t d = 0; d < run.dim; ++d) to[d * height] = from[d] * run.scale;
        }
    }
    const int64_t context = run.position + run.rows;
    // blocks begin at the same tokens for every run, so that a row's sums do not depend on its run
    const int64_t before = run.position + 1 - run.window;
    int64_t first = run.window && before > 0 ? before / BLOCK * BLOCK : 0;
    for (; first < context; first += BLOCK) {
        const int64_t count = context - first < BLOCK ? context - first : BLOCK;
        gather(s, keys, page_stride, value_stride, table, page_size, first, count, run.dim, width);
        for (int64_t tile = 0; tile < tiles.count; ++tile) {
            const int64_t last = (tiles.start(tile + 1) - 1) / run.groups;
            if (run.position + last < first) continue;  // all of its rows lie before the block
            with_height(tiles.size(tile), [&]<int HEIGHT>() {
                attend_tile<HEIGHT>(run, s, tiles.start(tile), first, count, width);
            });
        }
    }
    for (int64_t vector = 0; vector < vectors; ++vector) {
        float* to = run.out + vector / run.groups * run.out_stride + vector % run.groups * run.dim;
        const float inverse = 1.0f / s.total[vector];
        for (int64_t d = 0; d < run.dim; ++d) to[d] = s.sums[vector * width + d] * inverse;
    }
}

}  // namespace
}  // namespace blockllm

using namespace blockllm;

extern "C" {

// tiles [num_tiles, 4]: sequence, first row, end, position of the first row. q and out: rows of
// [heads, dim]; tables: rows of table_stride page numbers, one per sequence
void paged_prefill(float* out, int64_t out_stride, const float* q, int64_t q_stride,
                   const float* keys, int64_t page_stride, int64_t value_stride,
                   const int32_t* tables, int64_t table_stride, const int32_t* tiles,
                   int64_t num_tiles, int64_t heads, int64_t kv_heads, int64_t dim,
                   int64_t page_size, int64_t window, float scale, int threads) {
    const int64_t groups = heads / kv_heads;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < num_tiles * kv_heads; ++task) {
            const int32_t* tile = tiles + task / kv_heads * 4;
            const int64_t head = task % kv_heads;
            const Run run{q + tile[1] * q_stride + head * groups * dim,
                          out + tile[1] * out_stride + head * groups * dim,
                          q_stride, out_stride, tile[2] - tile[1], tile[3],
                          groups, dim, window, scale};
            attend_run(run, scratch, keys + head * page_size * dim, page_stride, value_stride,
                       tables + tile[0] * table_stride, page_size);
        }
    }
}

}  // extern "C"
