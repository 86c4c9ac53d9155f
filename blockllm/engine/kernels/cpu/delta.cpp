// y += D x for the rows of each tile, D its model's difference from the weight that all share: in 1,
// 2 or 4 bits, or sparse. A panel of codes becomes fp32 in L1, block by block, and all rows of the
// tile are multiplied by it there. Sums run in one order, so a row's bits do not depend on the rows
// beside it. Plain twin: kernels/coded.py.

#include "vectors.h"

#include <vector>

namespace blockllm {
namespace {

constexpr int64_t DEPTH = 128;  // inputs decoded at a time: 16 KB
constexpr int64_t AHEAD = 1024;  // bytes of codes that are asked for ahead

// Of one model and one linear, in 8-byte fields; kernels/coded.py writes them.
struct Part {
    const void* codes;      // [panels, in * bits / 8, PANEL] bytes; sparse: int32 columns
    const float* values;    // scales [panels, groups, PANEL]; sparse: elements
    const int32_t* ends;    // sparse: where each output's elements end
    int64_t bits;           // 0: sparse, -1: no such part
    int64_t group;          // inputs of one scale
    int64_t first_column, columns;
};

typedef int32_t ints __attribute__((vector_size(LANES * 4)));
typedef uint8_t bytes __attribute__((vector_size(LANES)));

// Inputs from..to of a panel -> weights [to - from, PANEL]. `from` and the group begin with a byte.
template <int BITS>
void decode(float* weights, const Part& part, int64_t panel, int64_t in, int64_t from, int64_t to) {
    constexpr int COUNT = 8 / BITS, MASK = (1 << BITS) - 1;
    const uint8_t* codes = static_cast<const uint8_t*>(part.codes) + panel * in / COUNT * PANEL;
    const float* scales = part.values + panel * (in / part.group) * PANEL;
    while (from < to) {
        const int64_t group = from / part.group;
        const int64_t end = (group + 1) * part.group < to ? (group + 1) * part.group : to;
        floats scale[VECTORS], lowest[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            scale[v] = load(scales + group * PANEL + v * LANES);
            lowest[v] = scale[v] * (-0.5f * MASK);
        }
        for (; from < end; from += COUNT, weights += COUNT * PANEL)
            for (int v = 0; v < VECTORS; ++v) {
                bytes packed;
                std::memcpy(&packed, codes + from / COUNT * PANEL + v * LANES, sizeof packed);
                const ints wide = __builtin_convertvector(packed, ints);
                for (int c = 0; c < COUNT; ++c) {
                    const ints code = (wide >> (c * BITS)) & MASK;
                    store(weights + c * PANEL + v * LANES,
                          __builtin_convertvector(code, floats) * scale[v] + lowest[v]);
                }
            }
    }
}

void decode(float* weights, const Part& part, int64_t panel, int64_t in, int64_t from, int64_t to) {
    if (part.bits == 1) return decode<1>(weights, part, panel, in, from, to);
    if (part.bits == 2) return decode<2>(weights, part, panel, in, from, to);
    decode<4>(weights, part, panel, in, from, to);
}

struct Rows {
    const float* x;  // packed tiles [in, height]
    int64_t in;
    Tiles tiles;
};

// sums [rows, PANEL] += the coded panel times the rows
void add_coded(float* sums, const Rows& rows, const Part& part, int64_t panel) {
    alignas(64) float weights[DEPTH * PANEL];
    const int64_t step = PANEL * part.bits / 8;  // bytes per input
    const char* codes = static_cast<const char*>(part.codes) + panel * rows.in * step + AHEAD;
    for (int64_t from = 0; from < rows.in; from += DEPTH) {
        const int64_t to = from + DEPTH < rows.in ? from + DEPTH : rows.in;
        decode(weights, part, panel, rows.in, from, to);
        for (int64_t tile = 0; tile < rows.tiles.count; ++tile) {
            const int64_t start = rows.tiles.start(tile);
            with_height(rows.tiles.size(tile), [&]<int HEIGHT>() {
                floats kept[HEIGHT][VECTORS];
                std::memcpy(kept, sums + start * PANEL, sizeof kept);
                multiply<HEIGHT, PANEL>(kept, rows.x + start * rows.in + from * HEIGHT, weights,
                                        PANEL, to - from, codes + from * step, step);
                std::memcpy(sums + start * PANEL, kept, sizeof kept);
            });
        }
    }
}

// sums [rows, PANEL] += the panel's elements times the rows
void add_sparse(float* sums, const Rows& rows, const Part& part, int64_t panel) {
    const int32_t* columns = static_cast<const int32_t*>(part.codes);
    const int64_t first = panel * PANEL;
    const int64_t width = part.columns - first < PANEL ? part.columns - first : PANEL;
    for (int64_t tile = 0; tile < rows.tiles.count; ++tile) {
        const int64_t start = rows.tiles.start(tile);
        const float* x = rows.x + start * rows.in;
        with_height(rows.tiles.size(tile), [&]<int HEIGHT>() {
            for (int64_t c = 0; c < width; ++c) {
                float sum[HEIGHT] = {};
                int64_t element = first + c ? part.ends[first + c - 1] : 0;
                for (; element < part.ends[first + c]; ++element)
                    for (int r = 0; r < HEIGHT; ++r)
                        sum[r] += x[columns[element] * HEIGHT + r] * part.values[element];
                for (int r = 0; r < HEIGHT; ++r) sums[(start + r) * PANEL + c] += sum[r];
            }
        });
    }
}

}  // namespace
}  // namespace blockllm

using namespace blockllm;

extern "C" {

// segments [num_segments, 3]: first row, end, model; parts [models, num_parts, stacked]: those that
// are stacked change the same columns; scratch holds rows * in floats
void delta_run(float* y, int64_t y_stride, const float* x, int64_t x_stride, int64_t in,
               const int32_t* segments, int64_t num_segments, const Part* parts, int64_t num_parts,
               int64_t stacked, float* scratch, int threads) {
    struct Task {
        const int32_t* segment;
        const Part* parts;
        int64_t panel;
    };
    std::vector<Task> tasks;
    for (int64_t s = 0; s < num_segments; ++s)
        for (int64_t p = 0; p < num_parts; ++p) {
            const int32_t* segment = segments + 3 * s;
            const Part* first = parts + (segment[2] * num_parts + p) * stacked;
            if (first->bits < 0) continue;
            for (int64_t panel = 0; panel < divide_up(first->columns, PANEL); ++panel)
                tasks.push_back({segment, first, panel});
        }
    if (tasks.empty()) return;
    const int64_t num_tasks = static_cast<int64_t>(tasks.size());
    const int64_t chunk = divide_up(num_tasks, threads * 8);
#pragma omp parallel num_threads(threads) if (num_tasks > 1)
    {
#pragma omp for schedule(static)
        for (int64_t s = 0; s < num_segments; ++s) {
            const int64_t first = segments[3 * s];
            const Tiles tiles(segments[3 * s + 1] - first);
            for (int64_t t = 0; t < tiles.count; ++t)
                pack_rows(scratch + (first + tiles.start(t)) * in,
                          x + (first + tiles.start(t)) * x_stride, x_stride, tiles.size(t), in);
        }
        std::vector<float> sums;
#pragma omp for schedule(dynamic, chunk)
        for (int64_t t = 0; t < num_tasks; ++t) {
            const Task& task = tasks[t];
            const int64_t first = task.segment[0], height = task.segment[1] - first;
            sums.assign(height * PANEL, 0.0f);
            const Rows rows{scratch + first * in, in, Tiles(height)};
            for (int64_t i = 0; i < stacked && task.parts[i].bits >= 0; ++i) {
                if (task.parts[i].bits)
                    add_coded(sums.data(), rows, task.parts[i], task.panel);
                else
                    add_sparse(sums.data(), rows, task.parts[i], task.panel);
            }
            const int64_t column = task.panel * PANEL, spare = task.parts->columns - column;
            for (int64_t r = 0; r < height; ++r) {
                float* to = y + (first + r) * y_stride + task.parts->first_column + column;
                for (int64_t c = 0; c < (spare < PANEL ? spare : PANEL); ++c)
                    to[c] += sums[r * PANEL + c];
            }
        }
    }
}

}  // extern "C"
