// y = x W^T + b in fp32 with W packed once: panels of outputs, [panels, in, PANEL] in fp32
// or [panels, in / 2, PANEL, 2] in 16 bits, which become fp32 on their way into the sums.
//
// All rows of a hop stream through a panel while it is in cache; the sum over `in` runs in one fixed
// order, so a row's bits do not depend on the rows beside it. Plain twin: torch's linear.

#include "codes.h"
#include "kernels.h"

#include <algorithm>
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
    const uint32_t* weights;
    const float* bias;
    int64_t in, out;
    Tiles tiles;
};

// Some inputs of some panels as they are packed, and the words that are read after them.
struct Block {
    int64_t from, to;
    const uint32_t* weights;
    const uint32_t* next;
    int64_t words, stride;  // of one panel's block, between panels
};

// What one thread needs between tiles. It is kept from call to call: new memory costs more.
struct Room {
    std::vector<float> sums;  // [tiles, height, panels, PANEL]: rows of y lie pages apart
    alignas(64) float expanded[PAIR * DEPTH * PANEL];  // a block in fp32, [DEPTH, panels, PANEL]
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

// All inputs of a panel for the only tile: asks for memory at a fixed distance.
template <typename Code, int HEIGHT>
void run_lone(const Job& job, int64_t panel) {
    const uint32_t* weights = job.weights + panel * job.in / Code::INPUTS * PANEL;
    Sums<HEIGHT, 1> sums = {};
    multiply<HEIGHT, PANEL, PANEL * 4 / 64, Code>(
        sums, job.x, weights, PANEL, job.in, reinterpret_cast<const char*>(weights) + AHEAD,
        PANEL * 4);
    finish_tile<HEIGHT, 1>(job, 0, panel, sums);
}

// A block for one of several tiles, which share the asking for the next block, panel after panel.
// The first tile brings it to fp32 for all.
template <typename Code, int HEIGHT, int PANELS>
void run_tile(const Job& job, int64_t tile, int64_t panel, const Block& block, Room& room) {
    constexpr int COUNT = PANELS * VECTORS;
    constexpr bool EXPANDS = Code::INPUTS > 1;
    float* kept = room.sums.data() + job.tiles.start(tile) * PANELS * PANEL;
    Sums<HEIGHT, PANELS> sums;
    for (int r = 0; r < HEIGHT; ++r)
        for (int v = 0; v < COUNT; ++v)
            sums[r][v] = block.from ? load(kept + (r * COUNT + v) * LANES) : floats{};
    const int64_t depth = block.to - block.from, passes = job.tiles.count;
    const float* x = job.x + job.tiles.start(tile) * job.in + block.from * HEIGHT;
    const int64_t share = tile * PANELS * block.words / passes;
    const auto* ahead = reinterpret_cast<const char*>(
        block.next + share / block.words * block.stride + share % block.words);
    const int64_t step = PANELS * PANEL * 4 / passes;
    if (EXPANDS && tile > 0)
        multiply<HEIGHT, PANELS * PANEL, 1>(sums, x, room.expanded, PANELS * PANEL, depth, ahead,
                                            step / Code::INPUTS);
    else
        multiply<HEIGHT, PANELS * PANEL, 1, Code>(sums, x, block.weights, PANEL, depth, ahead,
                                                  step, block.stride,
                                                  EXPANDS ? room.expanded : nullptr);
    if (block.to == job.in) return finish_tile<HEIGHT, PANELS>(job, tile, panel, sums);
    for (int r = 0; r < HEIGHT; ++r)
        for (int v = 0; v < COUNT; ++v) store(kept + (r * COUNT + v) * LANES, sums[r][v]);
}

template <typename Code, int PANELS>
void run_panels(const Job& job, int64_t panel, Room& room) {
    const int64_t size = job.in / Code::INPUTS * PANEL;  // words of a panel
    const uint32_t* weights = job.weights + panel * size;
    for (int64_t from = 0; from < job.in; from += DEPTH) {
        const int64_t to = std::min(from + DEPTH, job.in);
        const int64_t words = (to - from) / Code::INPUTS * PANEL;
        const uint32_t* next = weights + words + (to == job.in ? (PANELS - 1) * size : 0);
        const Block block{from, to, weights, next, words, size};
        for (int64_t tile = 0; tile < job.tiles.count; ++tile)
            with_height<TILE / PANELS>(job.tiles.size(tile), [&]<int HEIGHT>() {
                run_tile<Code, HEIGHT, PANELS>(job, tile, panel, block, room);
            });
        weights = next;
    }
}

// One thread's part of the panels, `together` at a time.
template <typename Code>
void share_panels(const Job& job, int64_t together) {
    const int64_t panels = divide_up(job.out, PANEL), tiles = job.tiles.count;
    thread_local Room room;
    if (tiles > 1) room.sums.resize(job.tiles.rows * PANEL * together);
#pragma omp for schedule(guided)
    for (int64_t group = 0; group < divide_up(panels, together); ++group) {
        const int64_t panel = group * together;
        if (tiles == 1)
            with_height(job.tiles.size(0),
                        [&]<int HEIGHT>() { run_lone<Code, HEIGHT>(job, panel); });
        else if (together == PAIR && panel + PAIR <= panels)
            run_panels<Code, PAIR>(job, panel, room);
        else
            run_panels<Code, 1>(job, panel, room);
    }
}

}  // namespace
}  // namespace blockllm

using namespace blockllm;

extern "C" {

// y [rows, out] = x [rows, in] W^T + bias; scratch holds rows * in floats; code says what the
// weights are: 0 fp32, 1 bf16, 2 fp16, these with even `in`
void linear_run(float* y, int64_t y_stride, const float* x, int64_t x_stride, const void* packed,
                int64_t code, const float* bias, float* scratch, int64_t rows, int64_t in,
                int64_t out, int threads) {
    if (!rows) return;
    const int64_t together = rows < PAIRED_ROWS ? 1 : PAIR;
    const Tiles tiles(rows, TILE / together);
    const auto* weights = static_cast<const uint32_t*>(packed);
    const Job job{y, y_stride, rows == 1 ? x : scratch, weights, bias, in, out, tiles};
#pragma omp parallel num_threads(threads)
    {
        if (rows > 1) {
#pragma omp for schedule(static)
            for (int64_t tile = 0; tile < tiles.count; ++tile)
                pack_rows(scratch + tiles.start(tile) * in, x + tiles.start(tile) * x_stride,
                          x_stride, tiles.size(tile), in);
        }
        if (code == 0) share_panels<Floats>(job, together);
        if (code == 1) share_panels<Bfloats>(job, together);
        if (code == 2) share_panels<Halves>(job, together);
    }
}

// Some panels of one row: the same bits. x [in]
void linear_row(float* y, const float* x, const void* packed, int64_t code, const float* bias,
                int64_t in, int64_t out, int64_t first, int64_t last) {
    const Job job{y, 0, x, static_cast<const uint32_t*>(packed), bias, in, out, Tiles(1)};
    for (int64_t panel = first; panel < last; ++panel) {
        if (code == 0) run_lone<Floats, 1>(job, panel);
        if (code == 1) run_lone<Bfloats, 1>(job, panel);
        if (code == 2) run_lone<Halves, 1>(job, panel);
    }
}

}  // extern "C"
