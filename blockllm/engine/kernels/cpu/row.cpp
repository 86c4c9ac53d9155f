// Decoder layers and a head for one row: all threads stay together through all layers. Between two
// linears of one row there is little to do but to start and stop threads, and memory is idle
// meanwhile; here every thread does the little for itself and waits only where it needs what others
// computed. The functions are those of the other kernels, so the bits are too.

#include "kernels.h"
#include "layers.h"
#include "row.h"
#include "small.h"
#include "vectors.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <vector>

namespace blockllm {
namespace {

constexpr int64_t TAKEN = 64 / PANEL;  // panels that a thread takes at once

// One matrix's panels, of which every thread has a run to itself and then helps the others.
struct Runs {
    std::atomic<int32_t>* taken;  // of each run, `stride` apart
    int64_t stride, panels;
    int threads;

    int64_t begin(int run) const { return panels * run / threads; }

    // Calls function(first, last) until all panels are taken.
    template <typename Function>
    void share(int me, Function&& function) const {
        for (int i = 0; i < threads; ++i) {
            const int run = (me + i) % threads;
            const int64_t from = begin(run), size = begin(run + 1) - from;
            for (;;) {
                const int64_t own = taken[run * stride].fetch_add(TAKEN, std::memory_order_relaxed);
                if (own >= size) break;
                function(from + own, from + std::min(own + TAKEN, size));
            }
        }
    }
};

// One thread's way through the layers.
class Walk {
public:
    Walk(const RowCall& call, std::atomic<int32_t>* taken, int64_t stride, int me, int threads)
        : call_(call), taken_(taken), stride_(stride), me_(me), threads_(threads),
          normed_(call.widest), codes_(call.widest / 4 + 1) {}

    void attention(const Layer& layer, int64_t kv_layer) {
        norm(call_.states, layer.norm, layer.hidden, layer.eps);
        multiply(layer.qkv, call_.fused, normed_.data());
        attend(layer, kv_layer);
#pragma omp barrier
        multiply(layer.o, call_.y, call_.active, [&](int64_t from, int64_t to) {
            for (int64_t c = from; c < to; ++c) call_.sum[c] = call_.states[c] + call_.y[c];
        });
    }

    void mlp(const Layer& layer, const float* x) {
        norm(x, layer.mlp_norm, layer.hidden, layer.eps);
        multiply(layer.gate_up, call_.fused, normed_.data());
        const int64_t size = layer.down.in, from = part(size, me_), to = part(size, me_ + 1);
        gate_vector(call_.active + from, call_.fused + from, call_.fused + size + from, to - from);
#pragma omp barrier
        multiply(layer.down, call_.y, call_.active, [&](int64_t first, int64_t last) {
            for (int64_t c = first; c < last; ++c) call_.states[c] = x[c] + call_.y[c];
        });
    }

    // What a layer without an MLP leaves.
    void keep_sum(int64_t hidden) {
        const int64_t from = part(hidden, me_), to = part(hidden, me_ + 1);
        std::copy(call_.sum + from, call_.sum + to, call_.states + from);
#pragma omp barrier
    }

    void head(const Head& head, int64_t hidden) {
        norm(call_.states, head.norm, hidden, head.eps);
        multiply(head.projection, call_.logits, normed_.data());
    }

private:
    // Where a thread's part of some columns begins: at a cache line, so that none is written by two.
    int64_t part(int64_t columns, int thread) const {
        return thread == threads_ ? columns : columns * thread / threads_ / 16 * 16;
    }

    void norm(const float* x, const float* weight, int64_t hidden, double eps) {
        norm_vector(normed_.data(), x, weight, hidden, static_cast<float>(eps));
    }

    // y = W x + b, and then whatever else is done to the columns first..last; waits for the others.
    template <typename Then>
    void multiply(const Matrix& matrix, float* y, const float* x, Then&& then) {
        const float step = matrix.code == INT8 ? int8_round(codes_.data(), x, matrix.in) : 0.0f;
        const Runs runs{taken_++, stride_, divide_up(matrix.out, PANEL), threads_};
        runs.share(me_, [&](int64_t first, int64_t last) {
            if (matrix.code == INT8)
                int8_row(y, codes_.data(), step, static_cast<const int8_t*>(matrix.weights),
                         matrix.scale, matrix.offsets, matrix.bias, matrix.in, matrix.out, first,
                         last);
            else
                linear_row(y, x, matrix.weights, matrix.code, matrix.bias, matrix.in, matrix.out,
                           first, last);
            then(first * PANEL, std::min(last * PANEL, matrix.out));
        });
#pragma omp barrier
    }

    void multiply(const Matrix& matrix, float* y, const float* x) {
        multiply(matrix, y, x, [](int64_t, int64_t) {});
    }

    void attend(const Layer& layer, int64_t kv_layer) {
        const Rows& at = call_.at;
        float* keys = at.keys_of(kv_layer);
        const int64_t dim = layer.dim, groups = layer.heads / layer.kv_heads;
        float *k = call_.fused + layer.heads * dim, *v = k + layer.kv_heads * dim;
        const int64_t first = layer.kv_heads * me_ / threads_;
        const int64_t num = layer.kv_heads * (me_ + 1) / threads_ - first;
        if (!num) return;
        prepare(call_.fused + first * groups * dim, num * groups, layer.q_norm, layer);
        prepare(k + first * dim, num, layer.k_norm, layer);
        float* key = keys + *at.write_pages_of(kv_layer) * at.page_stride +
                     (first * at.page_size + *at.write_offsets) * dim;
        write_heads(key, k + first * dim, num, dim, at.page_size);
        write_heads(key + at.value_stride, v + first * dim, num, dim, at.page_size);
        decode_heads(call_.active, call_.fused, keys, at.page_stride, at.value_stride,
                     at.tables_of(kv_layer), *at.contexts, first, num, layer.heads,
                     layer.kv_heads, dim, at.page_size, layer.window,
                     static_cast<float>(layer.scale));
    }

    void prepare(float* heads, int64_t count, const float* weight, const Layer& layer) const {
        for (int64_t h = 0; weight && h < count; ++h)
            norm_vector(heads + h * layer.dim, heads + h * layer.dim, weight, layer.dim,
                        static_cast<float>(layer.eps));
        const int64_t own = (call_.at.rotations ? *call_.at.rotations : 0) * layer.dim;
        rotate_heads(heads, count, call_.at.cos + own, call_.at.sin + own, layer.dim);
    }

    const RowCall& call_;
    std::atomic<int32_t>* taken_;  // panels of the matrix that comes next, see Runs
    int64_t stride_;
    int me_, threads_;
    std::vector<float> normed_;
    std::vector<int32_t> codes_;
};

void walk(const RowCall& call, Walk&& thread) {
    int64_t kv_layer = call.kv_layer;
    for (int64_t i = 0; i < call.count; ++i) {
        const Layer& layer = *call.layers[i];
        const bool attends = layer.qkv.weights, has_mlp = layer.gate_up.weights;
        if (attends) thread.attention(layer, kv_layer++);
        if (has_mlp) thread.mlp(layer, attends ? call.sum : call.states);
        else if (attends) thread.keep_sum(layer.hidden);
    }
    if (call.head) thread.head(*call.head, call.layers[0]->hidden);
}

}  // namespace

void row_run(const RowCall& call, int threads) {
    // runs are counted in cache lines of their own
    const int64_t stride = divide_up(4 * call.count + 1, 16) * 16;
    std::vector<std::atomic<int32_t>> taken(stride * threads);
#pragma omp parallel num_threads(threads)
    walk(call, Walk(call, taken.data(), stride, omp_get_thread_num(), omp_get_num_threads()));
}

}  // namespace blockllm
