// Programs for one row: all threads stay together through all ops. Between two linears of one row
// there is little to do but to start and stop threads, and memory is idle meanwhile; here every thread
// does the little for itself and waits only where it needs what others computed. The functions are
// those of the other kernels, so the bits are too.

#include "kernels.h"
#include "program.h"
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

// One thread's way through a program. What threads share is written by all of them together, each its
// part, and read behind a barrier; the normed vector is each thread's own.
class Walk {
public:
    Walk(const RowCall& call, std::atomic<int32_t>* taken, int64_t stride, int me, int threads)
        : call_(call), kv_layer_(call.kv_layer), taken_(taken), stride_(stride), me_(me),
          threads_(threads), normed_(call.program.inputs), codes_(call.program.inputs / 4 + 1) {
        std::copy_n(call.registers, REGISTERS, room_);
        room_[NORMED] = normed_.data();
        std::copy_n(room_, REGISTERS, values_);
        values_[STREAM] = static_cast<const float*>(call.x);
    }

    void run() {
        for (int64_t i = 0; i < call_.program.count; ++i) {
            const LayerOps& layer = call_.program.layers[i];
            for (int64_t n = 0; n < layer.count; ++n) run(layer.ops[n]);
        }
    }

private:
    void run(const NativeOp& op) {
        switch (op.code) {
            case LOOK_UP: return look_up_row(op);
            case NORM: return norm(op);
            case NORM_HEADS: return norm_heads(op);
            case LINEAR: return linear(op);
            case WRITE: return write(op);
            case ATTEND: return attend(op);
            case GATE: return gate(op, gate_vector);
            case GATE_RELU: return gate(op, relu_vector);
            case ADD: return add(op);
        }
    }

    float* write_to(int64_t target) {
        values_[target] = room_[target];
        return room_[target];
    }

    // Where a thread's part of some columns begins: at a cache line, so that none is written by two.
    int64_t part(int64_t columns, int thread) const {
        return thread == threads_ ? columns : columns * thread / threads_ / 16 * 16;
    }

    void look_up_row(const NativeOp& op) {
        const int64_t size = op.matrix.outputs;
        look_up(write_to(op.target), *static_cast<const int64_t*>(call_.x), op.matrix,
                part(size, me_), part(size, me_ + 1));
#pragma omp barrier
    }

    void norm(const NativeOp& op) {
        const float* x = values_[op.source];
        norm_vector(write_to(op.target), x, op.weight, op.width, static_cast<float>(op.eps));
    }

    void linear(const NativeOp& op) {
        const float* x = values_[op.source];
        float* y = write_to(op.target);
        if (op.added < 0) return multiply(op.matrix, y, x, [](int64_t, int64_t) {});
        if (op.source == NORMED) {  // the others may still read what is added to
#pragma omp barrier
        }
        const float* before = values_[op.added];
        float* sum = write_to(op.added);
        multiply(op.matrix, y, x, [&](int64_t from, int64_t to) {
            for (int64_t c = from; c < to; ++c) sum[c] = before[c] + y[c];
        });
    }

    // y = W x + b, and then whatever else is done to the columns first..last; waits for the others.
    template <typename Then>
    void multiply(const Matrix& matrix, float* y, const float* x, Then&& then) {
        const float step = matrix.code == INT8 ? int8_round(codes_.data(), x, matrix.inputs) : 0.0f;
        const Runs runs{taken_++, stride_, divide_up(matrix.outputs, PANEL), threads_};
        runs.share(me_, [&](int64_t first, int64_t last) {
            if (matrix.code == INT8)
                int8_row(y, codes_.data(), step, static_cast<const int8_t*>(matrix.weights),
                         matrix.scale, matrix.offsets, matrix.bias, matrix.inputs, matrix.outputs,
                         first, last);
            else
                linear_row(y, x, matrix.weights, matrix.code, matrix.bias, matrix.inputs,
                           matrix.outputs, first, last);
            then(first * PANEL, std::min(last * PANEL, matrix.outputs));
        });
#pragma omp barrier
    }

    template <typename Function>
    void gate(const NativeOp& op, Function&& function) {
        const int64_t size = op.width / 2, from = part(size, me_), to = part(size, me_ + 1);
        const float* x = values_[op.source];
        function(write_to(op.target) + from, x + from, x + size + from, to - from);
#pragma omp barrier
    }

    // target += source, both as wide as the stream
    void add(const NativeOp& op) {
#pragma omp barrier  // the others may still read what is added to
        const float *x = values_[op.target], *y = values_[op.source];
        float* sum = write_to(op.target);
        const int64_t size = call_.program.widths[STREAM];
        for (int64_t c = part(size, me_); c < part(size, me_ + 1); ++c) sum[c] = x[c] + y[c];
#pragma omp barrier
    }

    // Up to the barrier behind attention a thread has heads of its own: those of some keys, and of the
    // queries that read them.
    int64_t head(int64_t heads, int thread) const { return heads * thread / threads_; }

    void norm_heads(const NativeOp& op) {
        const int64_t groups = op.heads / op.kv_heads;
        float* heads = room_[op.target] + op.first * op.dim;
        for (int64_t h = head(op.kv_heads, me_) * groups; h < head(op.kv_heads, me_ + 1) * groups; ++h)
            norm_vector(heads + h * op.dim, heads + h * op.dim, op.weight, op.dim,
                        static_cast<float>(op.eps));
    }

    void write(const NativeOp& op) {
        const KVAccess& kv = call_.kv;
        const int64_t dim = op.dim, groups = op.heads / op.kv_heads;
        const int64_t first = head(op.kv_heads, me_), num = head(op.kv_heads, me_ + 1) - first;
        float* q = room_[op.target];
        float *k = q + op.heads * dim, *v = k + op.kv_heads * dim;
        const int64_t own = (kv.rotations ? *kv.rotations : 0) * dim;
        rotate_heads(q + first * groups * dim, num * groups, kv.cos + own, kv.sin + own, dim);
        rotate_heads(k + first * dim, num, kv.cos + own, kv.sin + own, dim);
        float* key = keys_of(kv, kv_layer_) + *write_pages_of(kv, kv_layer_) * kv.page_stride +
                     (first * kv.page_size + *kv.write_offsets) * dim;
        write_heads(key, k + first * dim, num, dim, kv.page_size);
        write_heads(key + kv.value_stride, v + first * dim, num, dim, kv.page_size);
    }

    void attend(const NativeOp& op) {
        const KVAccess& kv = call_.kv;
        const int64_t first = head(op.kv_heads, me_), num = head(op.kv_heads, me_ + 1) - first;
        const float* q = values_[op.source];
        float* out = write_to(op.target);
        if (num)
            decode_heads(out, q, keys_of(kv, kv_layer_), kv.page_stride, kv.value_stride,
                         tables_of(kv, kv_layer_), *kv.contexts, first, num, op.heads, op.kv_heads,
                         op.dim, kv.page_size, op.window, static_cast<float>(op.scale));
        ++kv_layer_;
#pragma omp barrier
    }

    const RowCall& call_;
    int64_t kv_layer_;
    std::atomic<int32_t>* taken_;  // panels of the matrix that comes next, see Runs
    int64_t stride_;
    int me_, threads_;
    std::vector<float> normed_;
    std::vector<int32_t> codes_;
    float* room_[REGISTERS];
    const float* values_[REGISTERS];  // where each register's row is
};

}  // namespace

void row_run(const RowCall& call, int threads) {
    // runs are counted in cache lines of their own
    const int64_t stride = divide_up(call.program.linears + 1, 16) * 16;
    std::vector<std::atomic<int32_t>> taken(stride * threads);
#pragma omp parallel num_threads(threads)
    Walk(call, taken.data(), stride, omp_get_thread_num(), omp_get_num_threads()).run();
}

}  // namespace blockllm
