// y += B (A x) for the rows of each segment with its own model's A and B (scale folded into B).
// A tile of rows goes through shrink and expand without leaving its core. Plain twin:
// kernels/triton/pool.py.

#include "vectors.h"

#include <vector>

namespace blockllm {
namespace {

constexpr int NARROW = 16;  // ranks whose weights lie together in A: ranks are small

// Of one model and one linear, in 8-byte fields; kernels/adapters.py writes them.
struct Part {
    const float* b;     // [panels, rank, 32], null where the model leaves these outputs alone
    const float* bias;  // [columns] or null
    int64_t first_column, columns, first_rank, rank;
};
struct Adapter {
    const float* a;  // [panels, in, 16]
    int64_t rank;    // of all parts together
};

template <int HEIGHT>
void shrink(float* v, const Adapter& adapter, const float* x, int64_t in) {
    for (int64_t panel = 0; panel < divide_up(adapter.rank, NARROW); ++panel) {
        floats sums[HEIGHT][NARROW / LANES] = {};
        const float* a = adapter.a + panel * in * NARROW;
        multiply<HEIGHT, NARROW>(sums, x, a, NARROW, in, reinterpret_cast<const char*>(a) + 2048,
                                 NARROW * 4);
        float rows[HEIGHT][NARROW];
        std::memcpy(rows, sums, sizeof rows);
        for (int r = 0; r < HEIGHT; ++r)
            for (int c = 0; c < NARROW; ++c) v[(panel * NARROW + c) * HEIGHT + r] = rows[r][c];
    }
}

template <int HEIGHT>
void expand(float* y, int64_t y_stride, const Part& part, const float* v) {
    for (int64_t panel = 0; panel < divide_up(part.columns, PANEL); ++panel) {
        const int64_t column = panel * PANEL;
        const int64_t width = part.columns - column < PANEL ? part.columns - column : PANEL;
        floats sums[HEIGHT][VECTORS] = {};
        const float* b = part.b + panel * part.rank * PANEL;
        multiply<HEIGHT, PANEL>(sums, v + part.first_rank * HEIGHT, b, PANEL, part.rank,
                                reinterpret_cast<const char*>(b) + 4096, PANEL * 4);
        float rows[HEIGHT][PANEL];
        std::memcpy(rows, sums, sizeof rows);
        for (int r = 0; r < HEIGHT; ++r) {
            float* to = y + r * y_stride + part.first_column + column;
            for (int64_t c = 0; c < width; ++c)
                to[c] += rows[r][c] + (part.bias ? part.bias[column + c] : 0.0f);
        }
    }
}

}  // namespace
}  // namespace blockllm

using namespace blockllm;

extern "C" {

// segments [num_segments, 3]: first row, end, model; adapters and parts are tables by model, parts
// [models, num_parts]
void lora_run(float* y, int64_t y_stride, const float* x, int64_t x_stride, int64_t in,
              const int32_t* segments, int64_t num_segments, const Adapter* adapters,
              const Part* parts, int64_t num_parts, int threads) {
    struct Task {
        int64_t first, height, model;
    };
    std::vector<Task> tasks;
    for (int64_t s = 0; s < num_segments; ++s) {
        const int32_t* segment = segments + 3 * s;
        if (!adapters[segment[2]].rank) continue;
        const Tiles tiles(segment[1] - segment[0]);
        for (int64_t t = 0; t < tiles.count; ++t)
            tasks.push_back({segment[0] + tiles.start(t), tiles.size(t), segment[2]});
    }
    const int64_t num_tasks = static_cast<int64_t>(tasks.size());
#pragma omp parallel num_threads(threads) if (num_tasks > 1)
    {
        std::vector<float> packed, v;
#pragma omp for schedule(dynamic, 1)
        for (int64_t t = 0; t < num_tasks; ++t) {
            const Task& task = tasks[t];
            const Adapter& adapter = adapters[task.model];
            packed.resize(TILE * in);
            v.resize(TILE * (adapter.rank + NARROW));
            pack_rows(packed.data(), x + task.first * x_stride, x_stride, task.height, in);
            with_height(task.height, [&]<int HEIGHT>() {
                shrink<HEIGHT>(v.data(), adapter, packed.data(), in);
                for (int64_t p = 0; p < num_parts; ++p) {
                    const Part& part = parts[task.model * num_parts + p];
                    if (part.b) expand<HEIGHT>(y + task.first * y_stride, y_stride, part, v.data());
                }
            });
        }
    }
}

}  // extern "C"
