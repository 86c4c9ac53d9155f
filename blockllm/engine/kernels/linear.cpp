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

struct Job {
    float* y;
    int64_t y_stride;
    const float* x;  // packed tiles
    const float* weights;
    const float* bias;
    int64_t in, out;
    Tiles tiles;
};

template <int HEIGHT>
void finish_tile(const Job& job, int64_t tile, int64_t panel,
                 const floats (&sums)[HEIGHT][VECTORS]) {
    const int64_t column = panel * PANEL;
    const int64_t width = job.out - column < PANEL ? job.out - column : PANEL;
    float* y = job.y + job.tiles.start(tile) * job.y_stride + column;
    for (int r = 0; r < HEIGHT; ++r, y += job.y_stride) {
        float row[PANEL];
        for (int v = 0; v < VECTORS; ++v) store(row + v * LANES, sums[r][v]);
        if (job.bias)
            for (int64_t c = 0; c < width; ++c) row[c] += job.bias[column + c];
        std::memcpy(y, row, width * sizeof(float));
    }
}

// Inputs from..to of one panel for one tile. Between blocks the sums wait in `kept`, which lies
// together: rows of y lie pages apart.
template <int HEIGHT>
void run_tile(const Job& job, int64_t tile, int64_t panel, int64_t from, int64_t to, float* kept) {
    kept += job.tiles.start(tile) * PANEL;
    floats sums[HEIGHT][VECTORS];
    for (int r = 0; r < HEIGHT; ++r)
        for (int v = 0; v < VECTORS; ++v)
            sums[r][v] = from ? load(kept + r * PANEL + v * LANES) : floats{};
    const float* weights = job.weights + (panel * job.in + from) * PANEL;
    // a lone tile asks for memory at a fixed distance; several share the asking for the next block
    const int64_t passes = job.tiles.count, block = (to - from) * PANEL * 4;
    const char* ahead = reinterpret_cast<const char*>(weights) +
                        (passes == 1 ? AHEAD : block + tile * block / passes);
    multiply<HEIGHT, PANEL>(sums, job.x + job.tiles.start(tile) * job.in + from * HEIGHT, weights,
                            PANEL, to - from, ahead, PANEL * 4 / passes);
    if (to == job.in) return finish_tile<HEIGHT>(job, tile, panel, sums);
    std::memcpy(kept, sums, sizeof sums);
}

void run_panel(const Job& job, int64_t panel, float* kept) {
    const int64_t depth = job.tiles.count > 1 ? DEPTH : job.in;
    for (int64_t from = 0; from < job.in; from += depth) {
        const int64_t to = from + depth < job.in ? from + depth : job.in;
        for (int64_t tile = 0; tile < job.tiles.count; ++tile)
            with_height(job.tiles.size(tile), [&]<int HEIGHT>() {
                run_tile<HEIGHT>(job, tile, panel, from, to, kept);
            });
    }
}

}  // namespace
}  // namespace blockllm

using namespace blockllm;

extern "C" {

// weight [out, in] -> outputs first_row.. of packed [panels, in, 32], which starts as zeros
void linear_pack(float* packed, const float* weight, int64_t first_row, int64_t out, int64_t in,
                 int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t block = 0; block < divide_up(in, 64); ++block) {
        const int64_t end = block * 64 + 64 < in ? block * 64 + 64 : in;
        for (int64_t r = 0; r < out; ++r) {
            const int64_t row = first_row + r;
            float* to = packed + row / PANEL * in * PANEL + row % PANEL;
            for (int64_t k = block * 64; k < end; ++k) to[k * PANEL] = weight[r * in + k];
        }
    }
}

// y [rows, out] = x [rows, in] W^T + bias; scratch holds rows * in floats
void linear_run(float* y, int64_t y_stride, const float* x, int64_t x_stride, const float* packed,
                const float* bias, float* scratch, int64_t rows, int64_t in, int64_t out,
                int threads) {
    const Tiles tiles(rows);
    const Job job{y, y_stride, rows == 1 ? x : scratch, packed, bias, in, out, tiles};
    const int64_t panels = divide_up(out, PANEL);
    int64_t chunk = panels / (threads * 4);
    chunk = chunk < 1 ? 1 : chunk;
#pragma omp parallel num_threads(threads)
    {
        if (rows > 1) {
#pragma omp for schedule(static)
            for (int64_t tile = 0; tile < tiles.count; ++tile)
                pack_rows(scratch + tiles.start(tile) * in, x + tiles.start(tile) * x_stride,
                          x_stride, tiles.size(tile), in);
        }
        std::vector<float> kept(tiles.count > 1 ? rows * PANEL : 0);
#pragma omp for schedule(dynamic, chunk)
        for (int64_t panel = 0; panel < panels; ++panel) run_panel(job, panel, kept.data());
    }
}

}  // extern "C"
