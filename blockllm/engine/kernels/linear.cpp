// y = x W^T + b in fp32 with W packed once: panels of 32 outputs, [panels, in, 32].
//
// All rows of a hop stream through a panel while it is in cache; the sum over `in` runs in one fixed
// order, so a row's bits do not depend on the rows beside it. Plain twin: torch's linear.

#include "vectors.h"

#include <vector>

namespace blockllm {
namespace {

constexpr int64_t DEPTH = 512;  // inputs per block: its weights stay in L2 for all tiles
constexpr int64_t AHEAD = 4096;  // bytes that a lone tile asks for ahead of its reads
// Many rows take two panels at a time where registers allow: fewer loads for each product.
constexpr int PAIR = LANES == 16 ? 2 : 1;
constexpr int64_t PAIRED_ROWS = 48;  // from here on

struct Job {
    float* y;
    int64_t y_stride;
    const float* x;  // packed tiles
    const float* weights;
    const float* bias;
    int64_t in, out;
    Tiles tiles;
};

template <int HEIGHT, int PANELS>
using Sums = floats[HEIGHT][PANELS * VECTORS];

template <int HEIGHT, int PANELS>
void finish_tile(const Job& job, int64_t tile, int64_t panel, const Sums<HEIGHT, PANELS>& sums) {
    constexpr int64_t WIDTH = PANELS * PANEL;
    const int64_t column = panel * PANEL;
    const int64_t width = job.out - column < WIDTH ? job.out - column : WIDTH;
    float* y = job.y + job.tiles.start(tile) * job.y_stride + column;
    for (int r = 0; r < HEIGHT; ++r, y += job.y_stride) {
        float row[WIDTH];
        float* to = width == WIDTH ? y : row;
        for (int v = 0; v < PANELS * VECTORS; ++v) store(to + v * LANES, sums[r][v]);
        if (job.bias)
            for (int64_t c = 0; c < width; ++c) to[c] += job.bias[column + c];
        if (to == row) std::memcpy(y, row, width * sizeof(float));
    }
}

// Inputs from..to of some panels for one tile. Between blocks the sums wait in `kept`, which lies
// together: rows of y lie pages apart.
template <int HEIGHT, int PANELS>
void run_tile(const Job& job, int64_t tile, int64_t panel, int64_t from, int64_t to, float* kept) {
    constexpr int COUNT = PANELS * VECTORS;
    kept += job.tiles.start(tile) * PANELS * PANEL;
    Sums<HEIGHT, PANELS> sums;
    for (int r = 0; r < HEIGHT; ++r)
        for (int v = 0; v < COUNT; ++v)
            sums[r][v] = from ? load(kept + (r * COUNT + v) * LANES) : floats{};
    const int64_t passes = job.tiles.count, block = (to - from) * PANEL, size = job.in * PANEL;
    const float* weights = job.weights + panel * size + from * PANEL;
    const float* x = job.x + job.tiles.start(tile) * job.in + from * HEIGHT;
    const auto* bytes = reinterpret_cast<const char*>(weights);
    if (passes == 1) {  // asks for memory at a fixed distance
        multiply<HEIGHT, PANELS * PANEL>(sums, x, weights, PANEL, to - from, bytes + AHEAD,
                                         PANEL * 4, size);
    } else {  // several share the asking for the next block, panel after panel
        const int64_t share = tile * PANELS * block / passes;
        const int64_t skipped = to == job.in ? (PANELS - 1) * size : 0;
        const int64_t next = block + skipped + share / block * size + share % block;
        multiply<HEIGHT, PANELS * PANEL, 1>(sums, x, weights, PANEL, to - from, bytes + next * 4,
                                            PANELS * PANEL * 4 / passes, size);
    }
    if (to == job.in) return finish_tile<HEIGHT, PANELS>(job, tile, panel, sums);
    for (int r = 0; r < HEIGHT; ++r)
        for (int v = 0; v < COUNT; ++v) store(kept + (r * COUNT + v) * LANES, sums[r][v]);
}

template <int PANELS>
void run_panels(const Job& job, int64_t panel, float* kept) {
    const int64_t depth = job.tiles.count > 1 ? DEPTH : job.in;
    for (int64_t from = 0; from < job.in; from += depth) {
        const int64_t to = from + depth < job.in ? from + depth : job.in;
        for (int64_t tile = 0; tile < job.tiles.count; ++tile)
            with_height<TILE / PANELS>(job.tiles.size(tile), [&]<int HEIGHT>() {
                run_tile<HEIGHT, PANELS>(job, tile, panel, from, to, kept);
            });
    }
}

}  // namespace
}  // namespace blockllm

using namespace blockllm;

extern "C" {

// y [rows, out] = x [rows, in] W^T + bias; scratch holds rows * in floats
void linear_run(float* y, int64_t y_stride, const float* x, int64_t x_stride, const float* packed,
                const float* bias, float* scratch, int64_t rows, int64_t in, int64_t out,
                int threads) {
    const int64_t together = rows < PAIRED_ROWS ? 1 : PAIR;
    const Tiles tiles(rows, TILE / together);
    const Job job{y, y_stride, rows == 1 ? x : scratch, packed, bias, in, out, tiles};
    const int64_t panels = divide_up(out, PANEL), groups = divide_up(panels, together);
#pragma omp parallel num_threads(threads)
    {
        if (rows > 1) {
#pragma omp for schedule(static)
            for (int64_t tile = 0; tile < tiles.count; ++tile)
                pack_rows(scratch + tiles.start(tile) * in, x + tiles.start(tile) * x_stride,
                          x_stride, tiles.size(tile), in);
        }
        std::vector<float> kept(tiles.count > 1 ? rows * PANEL * together : 0);
#pragma omp for schedule(guided)
        for (int64_t group = 0; group < groups; ++group) {
            const int64_t panel = group * together;
            if (together == PAIR && panel + PAIR <= panels)
                run_panels<PAIR>(job, panel, kept.data());
            else
                run_panels<1>(job, panel, kept.data());
        }
    }
}

}  // extern "C"
