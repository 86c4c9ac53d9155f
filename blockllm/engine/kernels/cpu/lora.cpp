// y += B (A x) for the rows of each segment with its own model's A and B (scale folded into B).
//
// First A x of all rows, then what B makes of it; both are cut finely enough that a lone row keeps
// all threads busy. A x sums along the inputs, so rows of x are read where they lie: packing them
// would cost as much as the products with a small rank. Every sum runs in one fixed order, so a
// row's bits do not depend on the rows beside it. Plain twin: kernels/adapter_pool.py.

#include "kernels.h"
#include "vectors.h"

#include <memory>
#include <utility>
#include <vector>

namespace blockllm {
namespace {

constexpr int GROUP = 4;   // ranks that are summed together; in A they take turns,
constexpr int CHUNK = 16;  // so many inputs each
constexpr int WIDE = 64;   // outputs whose B lies together
constexpr int WIDTH = GROUP * LANES;       // outputs that are summed together
constexpr int ROWS = MOST_SUMS / GROUP;    // of a tile
constexpr int64_t AHEAD = 2048;  // bytes that are asked for ahead of reads

// Of one model and one linear, in 8-byte fields; kernels/adapters.py writes them.
struct Part {
    const float* b;     // [columns / 64, rank, 64], null where the model leaves these outputs alone
    const float* bias;  // [columns, padded to 64] or null
    int64_t first_column, columns, first_rank, rank;
};
struct Adapter {
    const float* a;  // [ranks / 4, in / 16, 4, 16]
    int64_t rank;    // of all parts together
};
struct Linear {
    int64_t in;
    const Adapter* adapters;  // [models]
    const Part* parts;        // [models, num_parts]
    int64_t num_parts, most_ranks;
};
struct Tile {
    int64_t first, height, model;
};

// Sums neighbours STEP lanes apart: of a into the lanes without that bit, of b into those with it.
template <int STEP, unsigned... LANE>
inline floats add_pairs(floats a, floats b, std::integer_sequence<unsigned, LANE...>) {
    return BLOCKLLM_SHUFFLE(a, b, (LANE & STEP ? LANES + LANE - STEP : LANE)...) +
           BLOCKLLM_SHUFFLE(a, b, (LANE & STEP ? LANES + LANE : LANE + STEP)...);
}

// Lane i of the result is the sum of all lanes of sums[i].
template <int STEP = LANES / 2>
inline floats add_lanes(floats* sums) {
    for (int i = 0; i < STEP; ++i)
        sums[i] = add_pairs<STEP>(sums[i], sums[i + STEP],
                                  std::make_integer_sequence<unsigned, LANES>());
    if constexpr (STEP > 1) return add_lanes<STEP / 2>(sums);
    return sums[0];
}

template <int HEIGHT>
inline void add_products(floats (&sums)[HEIGHT * GROUP], const float* a, const float* x,
                         int64_t x_stride) {
    for (int part = 0; part < CHUNK; part += LANES) {
        floats w[GROUP];
        for (int g = 0; g < GROUP; ++g) w[g] = load(a + g * CHUNK + part);
        for (int r = 0; r < HEIGHT; ++r) {
            const floats inputs = load(x + r * x_stride + part);
            for (int g = 0; g < GROUP; ++g) sums[r * GROUP + g] += inputs * w[g];
        }
    }
}

// v [4, HEIGHT] = A x for a group of ranks
template <int HEIGHT>
void shrink(float* v, const float* a, const float* x, int64_t x_stride, int64_t in) {
    constexpr int COUNT = HEIGHT * GROUP;
    floats sums[COUNT] = {};
    int64_t k = 0;
    for (; k + CHUNK <= in; k += CHUNK, a += GROUP * CHUNK) {
        for (int g = 0; g < GROUP; ++g)
            __builtin_prefetch(reinterpret_cast<const char*>(a + g * CHUNK) + AHEAD);
        add_products<HEIGHT>(sums, a, x + k, x_stride);
    }
    if (k < in) {
        float rest[HEIGHT][CHUNK] = {};
        for (int r = 0; r < HEIGHT; ++r)
            std::memcpy(rest[r], x + r * x_stride + k, (in - k) * sizeof(float));
        add_products<HEIGHT>(sums, a, rest[0], CHUNK);
    }
    for (int first = 0; first < COUNT; first += LANES) {
        floats some[LANES] = {};
        for (int i = 0; i < LANES && first + i < COUNT; ++i) some[i] = sums[first + i];
        const floats added = add_lanes(some);
        for (int i = first; i < COUNT && i < first + LANES; ++i)
            v[i % GROUP * HEIGHT + i / GROUP] = added[i - first];
    }
}

template <int HEIGHT>
void add_to(float* y, int64_t y_stride, int64_t width, const floats (&sums)[HEIGHT][GROUP]) {
    for (int r = 0; r < HEIGHT; ++r, y += y_stride) {
        if (width >= WIDTH) {
            for (int g = 0; g < GROUP; ++g) store(y + g * LANES, load(y + g * LANES) + sums[r][g]);
        } else {
            float row[WIDTH];
            std::memcpy(row, sums[r], sizeof row);
            for (int64_t c = 0; c < width; ++c) y[c] += row[c];
        }
    }
}

// A panel of y [HEIGHT, 64] += B v
template <int HEIGHT>
void expand(float* y, int64_t y_stride, const Part& part, int64_t panel, const float* v) {
    const float* b = part.b + panel * part.rank * WIDE;
    y += part.first_column;
    for (int64_t column = panel * WIDE; column < (panel + 1) * WIDE && column < part.columns;
         column += WIDTH, b += WIDTH) {
        for (int r = 0; r < HEIGHT; ++r)
            for (int c = 0; c < WIDTH; c += 16)
                __builtin_prefetch(y + r * y_stride + column + c, 1);
        floats sums[HEIGHT][GROUP];
        for (int g = 0; g < GROUP; ++g) {
            const floats start = part.bias ? load(part.bias + column + g * LANES) : floats{};
            for (int r = 0; r < HEIGHT; ++r) sums[r][g] = start;
        }
        multiply<HEIGHT, WIDTH>(sums, v + part.first_rank * HEIGHT, b, WIDE, part.rank,
                                reinterpret_cast<const char*>(b) + AHEAD, WIDE * 4);
        add_to<HEIGHT>(y + column, y_stride, part.columns - column, sums);
    }
}

// segments [num_segments, 3]: first row, end, model. Neighbours of one model are cut as one.
std::vector<Tile> cut(const int32_t* segments, int64_t num_segments, const Adapter* adapters) {
    std::vector<Tile> tiles;
    const int32_t* behind = segments + 3 * num_segments;
    for (const int32_t* segment = segments; segment < behind; segment += 3) {
        const int64_t first = segment[0], model = segment[2];
        while (segment + 3 < behind && segment[3] == segment[1] && segment[5] == model)
            segment += 3;
        const int64_t end = segment[1];
        const Tiles own(adapters[model].rank ? end - first : 0, ROWS);
        for (int64_t t = 0; t < own.count; ++t)
            tiles.push_back({first + own.start(t), own.size(t), model});
    }
    return tiles;
}

// Ranks 4 * group.. of a tile: v [most ranks, height] = A x
void run_group(float* v, const float* x, int64_t x_stride, const Tile& tile, const Linear& linear,
               int64_t group) {
    const Adapter& adapter = linear.adapters[tile.model];
    const int64_t rank = group * GROUP;
    if (rank >= adapter.rank) return;
    const float* a = adapter.a + rank * divide_up(linear.in, CHUNK) * CHUNK;
    with_height<ROWS>(tile.height, [&]<int HEIGHT>() {
        shrink<HEIGHT>(v + rank * HEIGHT, a, x + tile.first * x_stride, x_stride, linear.in);
    });
}

// One of the panels of all parts.
void run_panel(float* y, int64_t y_stride, const float* v, const Tile& tile, const Linear& linear,
               int64_t panel) {
    const Part* part = linear.parts + tile.model * linear.num_parts;
    for (; panel >= divide_up(part->columns, WIDE); ++part) panel -= divide_up(part->columns, WIDE);
    if (!part->b) return;
    with_height<ROWS>(tile.height, [&]<int HEIGHT>() {
        expand<HEIGHT>(y + tile.first * y_stride, y_stride, *part, panel, v);
    });
}

}  // namespace
}  // namespace blockllm

using namespace blockllm;

extern "C" {

// segments [num_segments, 3]: first row, end, model
void lora_run(float* y, int64_t y_stride, const float* x, int64_t x_stride,
              const int32_t* segments, int64_t num_segments, const void* of, int threads) {
    const auto* linear = static_cast<const Linear*>(of);
    const std::vector<Tile> tiles = cut(segments, num_segments, linear->adapters);
    const int64_t num_tiles = static_cast<int64_t>(tiles.size());
    const int64_t groups = divide_up(linear->most_ranks, GROUP), size = groups * GROUP * ROWS;
    int64_t panels = 0;
    for (int64_t p = 0; p < linear->num_parts; ++p)
        panels += divide_up(linear->parts[p].columns, WIDE);
    const auto v = std::make_unique_for_overwrite<float[]>(num_tiles * size);
#pragma omp parallel num_threads(threads) if (num_tiles)
    {
#pragma omp for schedule(guided)
        for (int64_t i = 0; i < num_tiles * groups; ++i)
            run_group(&v[i / groups * size], x, x_stride, tiles[i / groups], *linear, i % groups);
#pragma omp for schedule(guided)
        for (int64_t i = 0; i < num_tiles * panels; ++i)
            run_panel(y, y_stride, &v[i / panels * size], tiles[i / panels], *linear, i % panels);
    }
}

}  // extern "C"
